"""The Spark stages on executors of their own, one of which is killed at work, give what local mode gives."""

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
    "consent",
    "vocabulary",
    "value_counts",
    "sequences",
    "examples",
    "training_blocks",
)
# What differs between two runs of the same: their names, times and folders.
OF_THE_RUN = ("run_id", "ingested_at", "recorded_at", "ingested_at", "part", "modified")
EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
ALL_STAGES = (
    "import sys; from lam_spark.cli import run_job; "
    f"sys.exit(max(run_job(stage, sys.argv[1:]) for stage in {STAGES}))"
)


@dataclass(frozen=True)
class Cluster:
    """What the run on separate executors left.

    Attributes:
        killed: process of the executor that was killed.
        events: Spark's own record of the run.
    """

    root: Path
    killed: int
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def local(
    make_data_set: Callable[..., DataSet], spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> DataSet:
    """The small shop after the stages in local mode."""
    data = make_data_set(tmp_path_factory.mktemp("local") / "shop", customers=200)
    for stage in STAGES:
        assert run_job(stage, ["--conf", str(data.conf)]) == 0
    return data


@pytest.fixture(scope="module")
def cluster(local: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The same inputs through the same stages on two executors of one core each."""
    folder = tmp_path_factory.mktemp("cluster")
    root = folder / "shop"
    shutil.copytree(local.root / "raw", root / "raw")
    content = yaml.safe_load(local.conf.read_text())
    record = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": (folder / "events").as_uri()}
    content["root"] = str(root)
    content["spark"] |= {
        "master": "local-cluster[2,1,1024]",
        "settings": content["spark"]["settings"] | record | {"spark.eventLog.compress": "false"},
    }
    (folder / "events").mkdir()
    (folder / "shop.yaml").write_text(yaml.safe_dump(content, sort_keys=False))  # the order of fields counts
    process = subprocess.Popen(
        [sys.executable, "-c", ALL_STAGES, "--conf", str(folder / "shop.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SPARK_HOME": str(spark_home(folder)), "SPARK_SCALA_VERSION": "2.13"},
    )
    killed: list[int] = []
    watch = threading.Thread(target=lambda: killed.extend(kill_at_work(process)))
    watch.start()
    try:
        stdout, stderr = process.communicate(timeout=800)
    finally:
        process.kill()  # nothing to end, unless the time ran out
        watch.join()
    assert process.returncode == 0, (stdout[-2000:], stderr[-2000:])
    assert len(killed) == 1
    events = []
    for path in (folder / "events").rglob("events_*"):
        with path.open(
            encoding="utf-8"
        ) as file:  # not `splitlines`: a plan may hold any white space there is
            events += [json.loads(line) for line in file]
    return Cluster(root, killed[0], events)


def spark_home(folder: Path) -> Path:
    """pyspark's Spark under a folder of ours: executors keep their files there, and not among the packages."""
    home = folder / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    return home


def kill_at_work(process: subprocess.Popen[str]) -> Iterator[int]:
    """End, with -9, the first executor that starts Python: a task of it waits for that, for about a second."""
    while process.poll() is None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(
                psutil.Error
            ):  # it has ended, or waits to be noticed; the others are looked at
                executor = child.parent()
                if "pyspark.daemon" in child.cmdline() and executor and EXECUTOR in executor.cmdline():
                    executor.kill()
                    yield executor.pid
                    return
        time.sleep(0.1)


def content(root: Path, name: str) -> list[str]:
    """A table's rows, in an order of their own, without what belongs to the run."""
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in OF_THE_RUN}, default=str, sort_keys=True)
        for row in rows(root, name)
    )


@pytest.mark.parametrize("name", COMPARED)
def test_the_tables_are_the_same(local: DataSet, cluster: Cluster, name: str) -> None:
    expected = content(local.root, name)
    assert content(cluster.root, name) == expected
    assert expected or name == "unresolved"  # the shop knows its customers by their own ids only


def test_every_table_is_compared(local: DataSet, cluster: Cluster) -> None:
    for root in (local.root, cluster.root):
        assert {path.name for path in (root / "tables").iterdir()} == {*COMPARED, "audit"}


def test_the_work_of_the_killed_executor_was_done_again(cluster: Cluster) -> None:
    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in cluster.events if event["Event"] == f"SparkListener{kind}"]

    assert len(of("ExecutorAdded")) >= 3  # two, and one in the place of the killed one
    ended = of("TaskEnd")
    lost = [task for task in ended if task["Task End Reason"]["Reason"] == "ExecutorLostFailure"]
    assert lost
    again = {
        (t["Stage ID"], t["Task Info"]["Index"]) for t in ended if t["Task End Reason"]["Reason"] == "Success"
    }
    assert {(task["Stage ID"], task["Task Info"]["Index"]) for task in lost} <= again
