"""SIGINT, SIGTERM and SIGHUP during a command, in processes without Spark, and the handlers of other programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lam_spark.errors import Interrupted
from lam_spark.runtime.signals import are_handled, ended_by_signals, interruptible

ROOT = Path(__file__).parents[2]
# A command whose stage waits for a signal, and takes the seconds of its second argument to end.
COMMAND = """
import sys, time
from lam_spark import cli
from lam_spark.runtime.signals import ended_by_signals

def end():
    print("ending", flush=True)
    time.sleep(float(sys.argv[1]))

def run(config, names, summary):
    with ended_by_signals(end):
        print("running", flush=True)
        time.sleep(60)

cli._run = run
sys.exit(cli.main(["consent", "--conf", "conf/complete_journey.yaml"]))
"""
MESSAGE = "lam-spark consent: interrupted; the last good tables are unchanged\n"
Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def command() -> Iterator[Command]:
    """Starts the command and waits until its stage runs: `command(seconds to end)`."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float = 0.0, *prefix: str) -> subprocess.Popen[str]:
        arguments = [*prefix, sys.executable, "-c", COMMAND, str(seconds)]
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )
        started.append(process)
        wait_for("running", process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def default_signals() -> None:
    """Undo what the tests were started with: `nohup` and a shell's background jobs ignore signals."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def wait_for(line: str, process: subprocess.Popen[str]) -> None:
    """Read one line of a process's stdout."""
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_run_with_a_summary(command: Command, number: str, code: int) -> None:
    process = command()
    process.send_signal(signal.Signals[number])
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    summary = json.loads(stdout.splitlines()[-1])
    assert summary == {"run_id": None, "stage": "consent", "status": "interrupted", "exit_code": code}
    assert stderr == MESSAGE


def test_under_nohup_a_hangup_is_ignored(command: Command) -> None:
    process = command(0.0, "nohup")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_same_signal_right_after_the_first_counts_once(command: Command, number: signal.Signals) -> None:
    """`timeout` sends SIGTERM twice, and a terminal that closes SIGHUP."""
    process = command(0.3)
    process.send_signal(number)
    wait_for("ending", process)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_the_process_at_once(command: Command, first: signal.Signals) -> None:
    process = command(60.0)
    process.send_signal(first)
    wait_for("ending", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT


def test_a_second_sigterm_after_a_second_ends_the_process_at_once(command: Command) -> None:
    process = command(60.0)
    process.send_signal(signal.SIGTERM)
    wait_for("ending", process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_run_whose_terminal_closes_ends_in_order(tmp_path: Path) -> None:
    """The closed terminal is stdout and stderr of the run: the message and the summary have nowhere to go."""
    code = tmp_path / "code"
    script = COMMAND.replace("sys.exit(", f"open({str(code)!r}, 'w').write(str(") + ")"
    terminal, of_run = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{script}", "0"],
        cwd=ROOT,
        stdin=of_run,
        stdout=of_run,
        stderr=of_run,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    os.close(of_run)
    output = b""
    while not output.endswith(b"\n"):
        output += os.read(terminal, 100)
    assert output == b"running\r\n"
    os.close(terminal)
    process.wait(timeout=30)
    assert code.read_text() == "129"


def test_what_started_last_is_ended_first_and_before_the_exception() -> None:
    ended: list[str] = []

    def failing() -> None:
        raise OSError("the JVM has ended")

    with interruptible(), ended_by_signals(lambda: ended.append("jobs")), ended_by_signals(failing):
        with ended_by_signals(lambda: ended.append("a training")):
            pass
        with ended_by_signals(lambda: ended.append("another training")), pytest.raises(Interrupted) as raised:
            signal.raise_signal(signal.SIGTERM)
        assert ended == ["another training", "jobs"]
    assert (str(raised.value), raised.value.exit_code) == ("interrupted by SIGTERM", 143)


def test_the_handlers_of_before_are_restored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with interruptible():
        assert are_handled()
        assert not {signal.getsignal(number) for number in numbers} & set(before)
    assert [signal.getsignal(number) for number in numbers] == before
    assert not are_handled()


def test_a_handler_that_a_library_installed_is_replaced() -> None:
    """PySpark installs one of SIGINT when a SparkContext starts."""
    with interruptible():
        ours = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ended_by_signals(lambda: None):
            assert signal.getsignal(signal.SIGINT) == ours


def test_inside_another_program_no_handler_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a handler was installed")

    monkeypatch.setattr(signal, "signal", refuse)
    with ended_by_signals(lambda: None):
        assert not are_handled()


def test_outside_the_main_thread_nothing_changes() -> None:
    """Only the main thread may install handlers."""
    entered: list[bool] = []

    def run() -> None:
        with interruptible(), ended_by_signals(lambda: None):
            entered.append(are_handled())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [False]
