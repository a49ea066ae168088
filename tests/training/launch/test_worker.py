"""Training process: progress on a full disk, and its end together with its driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from tests.support.disks import full_disk


def test_a_full_disk_delays_progress_records_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last record must be written: without it the model would not be registered."""
    path = tmp_path / worker.PROGRESS_FILE
    records = [{"event": "step", "step": number} for number in range(3)] + [{"event": "done"}]

    def fit(progress: Callable[[dict[str, Any]], None], full_at: set[int]) -> str:
        for number, record in enumerate(records):
            with full_disk(path.stat().st_size + 5) if number in full_at else nullcontext():
                progress(record)
        return "a digest"

    def train(full_at: set[int]) -> str:
        path.unlink(missing_ok=True)
        monkeypatch.setattr(
            worker,
            "Trainer",
            lambda spec, group, progress: SimpleNamespace(fit=lambda: fit(progress, full_at)),
        )
        settings = SimpleNamespace(threads_per_rank=torch.get_num_threads())
        spec = SimpleNamespace(settings=settings, folder=tmp_path)
        return worker.train(spec, LocalGroup())  # type: ignore[arg-type]

    assert train({1, 2}) == "a digest"
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    with pytest.raises(OSError, match="File too large"):
        train({3})


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes the place of the driver."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def exited(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set instead of ending this process."""
    event = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: event.set())
    monkeypatch.setattr(worker, "_POLL_SECONDS", 0.01)
    return event


def name(process: subprocess.Popen[bytes], later: float = 0.0) -> str:
    return f"{process.pid}:{psutil.Process(process.pid).create_time() + later}"


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Change the clock as NTP does: psutil derives the boot time from it."""
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + seconds)


def test_a_process_survives_a_change_of_the_clock_and_ends_with_its_driver(
    driver: subprocess.Popen[bytes],
    exited: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    driver_name = name(driver)
    set_clock(monkeypatch, 3.0)
    worker.exit_with_driver(driver_name)
    assert not exited.wait(0.2)
    set_clock(monkeypatch, 7200.0)
    assert not exited.wait(0.2)
    driver.kill()  # without a wait it stays a zombie
    assert exited.wait(10)
    assert capfd.readouterr().err == f"training process ends: its driver, process {driver.pid}, is gone\n"


def test_a_process_whose_driver_ended_before_it_started_ends(
    driver: subprocess.Popen[bytes], exited: threading.Event
) -> None:
    worker.exit_with_driver(name(driver, later=-3600.0))  # the process id belongs to another process now
    assert exited.wait(10)
