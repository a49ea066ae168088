"""Ctrl-C and SIGTERM, sent as by a terminal or a service to the process group of a run, end it in order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lam_spark.cli import run_job
from tests.support.runs import rows, start, stop_when
from tests.support.shop import ONE_TARGET

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.support.shop import DataSet

pytestmark = pytest.mark.long

LAST_LINE = "lam-spark {}: interrupted; the last good tables are unchanged"


def logged(root: Path, event: str) -> bool:
    """Whether a log of the workspace contains a record of this event."""
    return any(f'"event": "{event}"' in file.read_text() for file in (root / "logs").glob("*.jsonl"))


def interrupt_when(
    condition: Callable[[], bool], stage: str, data: DataSet, number: signal.Signals = signal.SIGINT
) -> tuple[int, dict[str, Any], str]:
    """Send a signal to the processes of a run, its JVM included, once a condition holds.

    Returns exit code, summary and stderr. Asserts that all processes of the run have ended.
    """
    process = start(stage, "--conf", str(data.conf), start_new_session=True)
    stdout, stderr = stop_when(condition, process, lambda: os.killpg(process.pid, number), timeout=400)
    return process.returncode, json.loads(stdout.splitlines()[-1]), stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_spark_job_ends_the_run_with_an_audit_entry(
    make_data_set: Callable[..., DataSet], tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    data = make_data_set(tmp_path / "shop", customers=20)
    code, summary, stderr = interrupt_when((data.root / "staging").exists, "ingest", data, number)
    assert (code, summary["exit_code"], summary["status"]) == (exit_code, exit_code, "interrupted")
    assert LAST_LINE.format("ingest") in stderr.splitlines()
    assert not (data.root / "tables" / "events").exists()  # the interruption came before publication
    (entry,) = rows(data.root, "audit")
    assert (entry["stage"], entry["status"]) == ("ingest", "failed")
    assert json.loads(entry["entry"])["error"] == f"interrupted by {number.name}"
    assert not (data.root / "staging").exists()
    assert not (data.root / "tables" / "running_stage.json").exists()
    assert (data.root / ".lock").read_text() == ""  # the next run has no JVM to wait for


def test_a_run_interrupted_during_training_exits_with_130_and_ends_its_processes(
    make_data_set: Callable[..., DataSet], spark: SparkSession, tmp_path: Path
) -> None:
    data = make_data_set(tmp_path / "shop", customers=120, targets=ONE_TARGET)
    for stage in ("ingest", "consent", "sequences", "examples", "snapshot"):
        assert run_job(stage, ["--conf", str(data.conf)]) == 0
    code, summary, stderr = interrupt_when(lambda: logged(data.root, "epoch"), "train", data)
    assert (code, summary["exit_code"], summary["status"]) == (130, 130, "interrupted")
    assert LAST_LINE.format("train") in stderr.splitlines()
    last = max(rows(data.root, "audit"), key=lambda entry: entry["sequence"])
    assert (last["stage"], last["status"]) == ("train", "failed")
