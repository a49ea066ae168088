"""A rank's process: it leaves with its driver, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from lam_spark.training import worker


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would start ranks."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set instead of this process's end."""
    event = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: event.set())
    monkeypatch.setattr(worker, "_SECONDS_BETWEEN_LOOKS", 0.01)
    return event


def name(process: subprocess.Popen[bytes], later: float = 0.0) -> str:
    return f"{process.pid}:{psutil.Process(process.pid).create_time() + later}"


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As NTP does: when the machine was started is told from the clock."""
    told = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: told + seconds)


def test_a_rank_stays_when_the_clock_is_set_and_leaves_with_its_driver(
    driver: subprocess.Popen[bytes],
    left: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = name(driver)
    set_clock(monkeypatch, 3.0)
    worker.leave_with_driver(given)
    assert not left.wait(0.2)
    set_clock(monkeypatch, 7200.0)
    assert not left.wait(0.2)
    driver.kill()  # nobody waits for it: it stays a zombie
    assert left.wait(10)
    assert capfd.readouterr().err == f"a rank leaves: its driver, process {driver.pid}, is gone\n"


def test_a_rank_whose_driver_was_gone_before_it_came_leaves(
    driver: subprocess.Popen[bytes], left: threading.Event
) -> None:
    worker.leave_with_driver(name(driver, later=-3600.0))  # the number is another process's now
    assert left.wait(10)
