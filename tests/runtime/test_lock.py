"""The workspace lock and the wait for the JVM of a killed run, tested with separate processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lam_spark.errors import ConcurrentRunError, ConfigError
from lam_spark.runtime.jvm import jvm_pid
from lam_spark.runtime.lock import workspace_lock
from lam_spark.runtime.log import RunLog

HOLD = """
import sys
from pathlib import Path
from lam_spark.runtime.lock import workspace_lock
with workspace_lock(Path(sys.argv[1]), "the-other-run"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that locks `tmp_path` until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_locked_workspace_is_refused_and_the_error_names_the_holder(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(ConcurrentRunError) as raised, workspace_lock(tmp_path, "this-run"):
        pass
    assert str(raised.value) == (
        f'another run holds the workspace {tmp_path}: {{"run_id": "the-other-run", "pid": {holder.pid}, "host": '
        f'"{os.uname().nodename}"}}. Wait for it, or use another root'
    )


def test_a_refused_run_does_not_release_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(ConcurrentRunError, match="the-other-run"),
            workspace_lock(tmp_path, "this-run"),
        ):
            pass


def test_a_killed_process_releases_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    assert holder.wait() == -9
    with workspace_lock(tmp_path, "this-run"):
        assert "this-run" in (tmp_path / ".lock").read_text()


def test_a_finished_process_releases_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.communicate("")
    assert holder.returncode == 0
    with workspace_lock(tmp_path, "this-run"):
        pass


def test_the_lock_creates_the_folder_and_is_released_after_an_error(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), workspace_lock(root, "first"):
        raise ZeroDivisionError
    with workspace_lock(root, "second"):
        assert "first" not in (root / ".lock").read_text()


def test_another_workspace_is_not_locked(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with workspace_lock(tmp_path / "other", "this-run"):
        pass


def test_a_root_that_cannot_be_created_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "root"
    with pytest.raises(ConfigError) as raised, workspace_lock(root, "this-run"):
        pass
    assert str(raised.value) == (
        f"expected a writable folder at root = {root}: Not a directory; set another with --set root=PATH"
    )


# A run that is killed; its JVM, here another program, runs on.
KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from lam_spark.runtime.lock import workspace_lock
with workspace_lock(Path(sys.argv[1]), "the-killed-run") as lock:
    jvm = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, start_new_session=True)
    lock.record_jvm(jvm.pid)
    print(jvm.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left_jvm(tmp_path: Path) -> Iterator[psutil.Process]:
    """The JVM of a killed run of the workspace `tmp_path`."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -9
    process = psutil.Process(int(killed.stdout))
    yield process
    if process.is_running():
        process.kill()


@pytest.fixture
def wait(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Takes the lock, waits for the JVM of a killed run and returns what was logged about it."""

    def wait_for_killed_run(limit: float = 30.0) -> list[dict[str, Any]]:
        log = RunLog("this-run", tmp_path / "logs")
        try:
            with workspace_lock(tmp_path, "this-run") as lock:
                lock.wait_for_killed_run(log, limit)
        finally:
            log.close()
        return [json.loads(line) for line in (tmp_path / "logs" / "this-run.jsonl").read_text().splitlines()]

    return wait_for_killed_run


def test_the_next_run_waits_until_the_jvm_of_a_killed_run_has_ended(
    left_jvm: psutil.Process, wait: Callable[..., list[dict[str, Any]]]
) -> None:
    ends = threading.Timer(0.3, left_jvm.kill)
    ends.start()
    (record,) = wait()
    assert not ends.is_alive()
    assert (record["event"], record["killed_run"], record["pid"]) == (
        "waiting for the JVM of a killed run",
        "the-killed-run",
        left_jvm.pid,
    )


def test_a_jvm_that_does_not_end_is_an_error_for_every_further_run(
    left_jvm: psutil.Process, wait: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(ConcurrentRunError) as raised:
            wait(limit=0.1)
        assert str(raised.value) == (
            "the run the-killed-run was killed, but its JVM still runs and may write to "
            f"{tmp_path}: wait until it has ended, or end it with kill -9 {left_jvm.pid}"
        )
    left_jvm.kill()
    wait()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_run_that_was_not_killed_names_no_jvm_afterwards(
    wait: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    with contextlib.suppress(ZeroDivisionError), workspace_lock(tmp_path, "failed") as lock:
        lock.record_jvm(os.getpid())
        assert json.loads((tmp_path / ".lock").read_text())["jvm"]["pid"] == os.getpid()
        raise ZeroDivisionError
    assert (tmp_path / ".lock").read_text() == ""
    assert wait(limit=0.0) == []


@pytest.mark.parametrize(
    "change", [{"started": 1.0}, {"host": "another-machine"}, {"pid": 2**22 + 1}, {"unknown": 1}, None]
)
def test_only_the_same_process_of_this_machine_is_waited_for(
    wait: Callable[..., list[dict[str, Any]]], tmp_path: Path, change: dict[str, Any] | None
) -> None:
    """Another process may have got the id; processes of other machines are not seen; the content may be torn."""
    with workspace_lock(tmp_path, "killed") as lock:
        lock.record_jvm(os.getpid())
        holder = json.loads((tmp_path / ".lock").read_text())
    text = json.dumps({"jvm": holder["jvm"] | change}) if change else json.dumps(holder)[:-5]
    (tmp_path / ".lock").write_text(text)
    assert wait(limit=0.0) == []


def session_of(gateway: object) -> Any:
    """A Spark session of this gateway."""
    return SimpleNamespace(sparkContext=SimpleNamespace(_gateway=gateway))


@pytest.mark.parametrize(("parent", "pid"), [("java", 41), ("bash", None)])
def test_the_jvm_is_the_launched_process_or_under_spark_submit_the_parent(
    monkeypatch: pytest.MonkeyPatch, parent: str, pid: int | None
) -> None:
    starter = SimpleNamespace(pid=41, name=lambda: parent)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: starter))
    assert jvm_pid(session_of(SimpleNamespace(proc=SimpleNamespace(pid=7)))) == 7
    assert jvm_pid(session_of(SimpleNamespace(proc=None))) == pid


def test_the_jvm_of_databricks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17")
    assert jvm_pid(session_of(SimpleNamespace())) is None
