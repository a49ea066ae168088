"""Ctrl-C, sent as by a terminal to the process group of a run, ends the run with exit code 130."""

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
    condition: Callable[[], bool], stage: str, data: DataSet
) -> tuple[int, dict[str, Any], str]:
    """Send SIGINT to a run once a condition holds. Returns exit code, summary and stderr.

    Asserts that all processes of the run have ended.
    """
    process = start(stage, "--conf", str(data.conf), start_new_session=True)
    stdout, stderr = stop_when(condition, process, lambda: os.killpg(process.pid, signal.SIGINT), timeout=400)
    return process.returncode, json.loads(stdout.splitlines()[-1]), stderr


def test_a_run_interrupted_during_a_spark_job_exits_with_130(
    make_data_set: Callable[..., DataSet], tmp_path: Path
) -> None:
    data = make_data_set(tmp_path / "shop", customers=20)
    code, summary, stderr = interrupt_when((data.root / "staging").exists, "ingest", data)
    assert (code, summary["exit_code"], summary["status"]) == (130, 130, "interrupted")
    assert LAST_LINE.format("ingest") in stderr.splitlines()
    assert not (data.root / "tables" / "events").exists()  # the interruption came before publication
    (entry,) = rows(data.root, "audit")
    assert (entry["stage"], entry["status"]) == ("ingest", "failed")
    assert json.loads(entry["entry"])["error"] == "KeyboardInterrupt"
    assert not (data.root / "staging").exists()


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
