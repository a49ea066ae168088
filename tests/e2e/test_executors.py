"""Spark stages on separate executors, one of which is killed, write the same tables as in local mode."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyspark
import pytest
import yaml
from pyspark.sql import SparkSession

from lam_spark.cli import run_job
from tests.support.runs import rows
from tests.support.shop import ONE_TARGET

if TYPE_CHECKING:
    from tests.support.shop import DataSet

pytestmark = pytest.mark.long

STAGES = ("ingest", "consent", "sequences", "examples", "snapshot")
COMPARED = (
    "identity",
    "events",
    "quarantine",
    "unresolved",
    "reconciliation",
    "ingestion_state",
    "lookups",
    "lookup_versions",
    "consent",
    "vocabulary",
    "value_counts",
    "sequences",
    "examples",
    "training_blocks",
)
# Columns that differ between two runs on the same input.
RUN_COLUMNS = ("run_id", "ingested_at", "recorded_at", "part", "modified")
EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
ALL_STAGES = (
    "import sys; from lam_spark.cli import run_job; "
    f"sys.exit(max(run_job(stage, sys.argv[1:]) for stage in {STAGES}))"
)


@dataclass(frozen=True)
class Cluster:
    """A finished run on separate executors.

    Attributes:
        root: Workspace.
        killed_pid: Process id of the executor that was killed.
        events: Spark's event log.
    """

    root: Path
    killed_pid: int
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def local(
    make_data_set: Callable[..., DataSet], spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> DataSet:
    """The small shop, processed in local mode."""
    data = make_data_set(tmp_path_factory.mktemp("local") / "shop", customers=120, targets=ONE_TARGET)
    for stage in STAGES:
        assert run_job(stage, ["--conf", str(data.conf)]) == 0
    return data


@pytest.fixture(scope="module")
def cluster(local: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The same inputs, processed by two executors with one core each."""
    folder = tmp_path_factory.mktemp("cluster")
    root = folder / "shop"
    shutil.copytree(local.root / "raw", root / "raw")
    content = yaml.safe_load(local.conf.read_text())
    event_log = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": (folder / "events").as_uri()}
    content["root"] = str(root)
    content["spark"] |= {
        "master": "local-cluster[2,1,1024]",
        "settings": content["spark"]["settings"] | event_log | {"spark.eventLog.compress": "false"},
    }
    (folder / "events").mkdir()
    (folder / "shop.yaml").write_text(yaml.safe_dump(content, sort_keys=False))  # the order of fields matters
    process = subprocess.Popen(
        [sys.executable, "-c", ALL_STAGES, "--conf", str(folder / "shop.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SPARK_HOME": str(spark_home(folder)), "SPARK_SCALA_VERSION": "2.13"},
    )
    killed_pids: list[int] = []
    killer = threading.Thread(target=lambda: killed_pids.extend(kill_working_executor(process)))
    killer.start()
    try:
        stdout, stderr = process.communicate(timeout=800)
    finally:
        process.kill()  # has an effect only after a timeout
        killer.join()
    assert process.returncode == 0, (stdout[-2000:], stderr[-2000:])
    assert len(killed_pids) == 1
    events = []
    for path in (folder / "events").rglob("events_*"):
        # Not `splitlines`: a query plan may contain other line separators.
        with path.open(encoding="utf-8") as file:
            events += [json.loads(line) for line in file]
    return Cluster(root, killed_pids[0], events)


def spark_home(folder: Path) -> Path:
    """A `SPARK_HOME` with links to pyspark's files: executors write their files there, not into the package."""
    home = folder / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    return home


def kill_working_executor(process: subprocess.Popen[str]) -> Iterator[int]:
    """Kill the first executor that starts a Python worker, and yield its process id.

    A task of the executor runs at that time: it waits about a second for the worker.
    """
    while process.poll() is None:
        for child in psutil.Process().children(recursive=True):
            # A process may have ended in the meantime.
            with contextlib.suppress(psutil.Error):
                executor = child.parent()
                if "pyspark.daemon" in child.cmdline() and executor and EXECUTOR in executor.cmdline():
                    executor.kill()
                    yield executor.pid
                    return
        time.sleep(0.1)


def content(root: Path, name: str) -> list[str]:
    """Sorted rows of a table as JSON, without the columns that depend on the run."""
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in RUN_COLUMNS}, default=str, sort_keys=True)
        for row in rows(root, name)
    )


@pytest.mark.parametrize("name", COMPARED)
def test_both_runs_write_the_same_rows(local: DataSet, cluster: Cluster, name: str) -> None:
    expected = content(local.root, name)
    assert content(cluster.root, name) == expected
    assert expected or name == "unresolved"  # all ids of the shop are customer ids


def test_every_table_is_compared(local: DataSet, cluster: Cluster) -> None:
    for root in (local.root, cluster.root):
        assert {path.name for path in (root / "tables").iterdir()} == {*COMPARED, "audit"}


def test_tasks_of_the_killed_executor_were_repeated(cluster: Cluster) -> None:
    def events_of(kind: str) -> list[dict[str, Any]]:
        return [event for event in cluster.events if event["Event"] == f"SparkListener{kind}"]

    assert len(events_of("ExecutorAdded")) >= 3  # two, and the replacement of the killed one
    ended_tasks = events_of("TaskEnd")
    lost_tasks = [task for task in ended_tasks if task["Task End Reason"]["Reason"] == "ExecutorLostFailure"]
    assert lost_tasks
    successful = {
        (task["Stage ID"], task["Task Info"]["Index"])
        for task in ended_tasks
        if task["Task End Reason"]["Reason"] == "Success"
    }
    assert {(task["Stage ID"], task["Task Info"]["Index"]) for task in lost_tasks} <= successful
