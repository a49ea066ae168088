"""A rank's process: it leaves with its driver, and only then."""

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


def test_a_full_disk_delays_what_a_training_tells_and_loses_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line it has to write: nobody would know of the model."""
    place = tmp_path / worker.PROGRESS_FILE
    records = [{"event": "step", "step": number} for number in range(3)] + [{"event": "done"}]

    def fit(tell: Callable[[dict[str, Any]], None], full_at: set[int]) -> str:
        for number, record in enumerate(records):
            with full_disk(place.stat().st_size + 5) if number in full_at else nullcontext():
                tell(record)
        return "a digest"

    def trained(full_at: set[int]) -> str:
        place.unlink(missing_ok=True)
        monkeypatch.setattr(
            worker, "Trainer", lambda spec, world, tell: SimpleNamespace(fit=lambda: fit(tell, full_at))
        )
        settings = SimpleNamespace(settings={"threads_per_rank": torch.get_num_threads()}, folder=tmp_path)
        return worker.train(settings, LocalGroup())  # type: ignore[arg-type]

    assert trained({1, 2}) == "a digest"
    assert [json.loads(line) for line in place.read_text().splitlines()] == records
    with pytest.raises(OSError, match="File too large"):
        trained({3})


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
