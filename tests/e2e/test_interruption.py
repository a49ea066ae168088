"""Ctrl-C as a terminal sends it: to the run and to every process that it has started in its group."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.runs import rows, start, stopped_when

if TYPE_CHECKING:
    from tests.support.shop import DataSet

pytestmark = pytest.mark.long

LAST_LINE = "lam-spark {}: interrupted; the last good tables stand"


def logged(root: Path, event: str) -> bool:
    """Whether any run of the workspace has written such a record."""
    return any(f'"event": "{event}"' in file.read_text() for file in (root / "logs").glob("*.jsonl"))


def interrupted(stage: str, data: DataSet, seen: Callable[[], bool]) -> tuple[int, dict[str, Any], str]:
    """Press Ctrl-C as soon as something is seen; exit code, summary and stderr. No process of it is left."""
    process = start(stage, "--conf", str(data.conf), start_new_session=True)
    stdout, stderr = stopped_when(seen, process, lambda: os.killpg(process.pid, signal.SIGINT), patience=400)
    return process.returncode, json.loads(stdout.splitlines()[-1]), stderr


def test_amid_a_spark_job_a_run_ends_with_130(make_data_set: Callable[..., DataSet], tmp_path: Path) -> None:
    data = make_data_set(tmp_path / "shop", customers=20)
    code, summary, stderr = interrupted("ingest", data, (data.root / "staging").exists)
    assert (code, summary["exit_code"], summary["status"]) == (130, 130, "interrupted")
    assert LAST_LINE.format("ingest") in stderr.splitlines()
    assert not (data.root / "tables" / "events").exists()  # it was at work
    (entry,) = rows(data.root, "audit")
    assert (entry["stage"], entry["status"]) == ("ingest", "failed")
    assert json.loads(entry["entry"])["error"] == "KeyboardInterrupt"
    assert not (data.root / "staging").exists()


def test_amid_training_a_run_ends_with_130_and_its_ranks_with_it(
    make_data_set: Callable[..., DataSet], tmp_path: Path
) -> None:
    data = make_data_set(tmp_path / "shop")
    code, summary, stderr = interrupted("run", data, lambda: logged(data.root, "epoch"))
    assert (code, summary["exit_code"], summary["status"]) == (130, 130, "interrupted")
    assert LAST_LINE.format("run") in stderr.splitlines()
    last = max(rows(data.root, "audit"), key=lambda entry: entry["sequence"])
    assert (last["stage"], last["status"]) == ("train", "failed")
