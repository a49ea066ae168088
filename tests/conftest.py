"""Fixtures that tests share: one Spark session, a small data set, runs over it, and how tests are spread."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.runs import Finished, start, versions
from tests.support.shop import QUICK, SECRET, DataSet, draw_data_set, run_builder
from tests.support.tables import Prepared

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lam_spark.runtime.context import Run

hypothesis.settings.register_profile("unit", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("unit")

# Most of the tests' Java machines live for a minute: the quick compiler only. It brings a code cache of 48 MB,
# which the session that all tests share fills: from there on everything is interpreted, and tasks fail.
# Hadoop forks a `chmod` for each file that it writes: with vfork that takes half the time.
JAVA_OPTIONS = (
    "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=512m "
    "-Djdk.lang.Process.launchMechanism=VFORK"
)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """With `-n`: a file's tests stay in one process, and all of tests/e2e, which share one long run, in one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        # These share the fixture `prepared`, which takes the better part of a minute to make.
        prepared = {
            f"tests/{name}.py"
            for name in (
                "sequences/test_stage",
                "training_data/test_stage",
                "storage/test_tables",
                "training_data/test_value_embeddings",
            )
        }
        if file in prepared:
            return "prepared"
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Called by xdist."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a Spark session, and what runs whole stages."""
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.spark)
        if "/tests/e2e/" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def secret() -> Iterator[str]:
    """The key of the pseudonyms, in the environment of everything that the tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAM_SPARK_SECRET", SECRET)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("LAM_SPARK_LOG", raising=False)
        patch.setenv("JDK_JAVA_OPTIONS", JAVA_OPTIONS)
        yield SECRET


@pytest.fixture(scope="session")
def spark(secret: str) -> Iterator[SparkSession]:
    """The session of all tests: two cores, three partitions, UTC, Delta."""
    from lam_spark.config import SparkConfig
    from lam_spark.runtime.session import platform_gives_session, spark_session

    assert not platform_gives_session(), "a test or plug-in started a session of its own"
    session = spark_session(
        SparkConfig(master="local[2]", driver_memory="2g", shuffle_partitions=3, settings=QUICK),
        "lam_spark tests",
    )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def make_data_set(secret: str) -> Callable[..., DataSet]:
    """Draws the small shop under a root folder: `make_data_set(tmp_path / "shop")`."""
    return draw_data_set


@pytest.fixture
def make_run(spark: SparkSession, tmp_path: Path) -> Callable[..., Run]:
    """Builds runs: `make_run(config)`. Without one, the shop in `tmp_path / "shop"`, with nothing in it."""
    return run_builder(spark, tmp_path / "shop")


@pytest.fixture(scope="session")
def prepared(
    spark: SparkSession, make_data_set: Callable[..., DataSet], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    """The shop after ingest, consent, sequences, examples and snapshot. Tests only read it."""
    from lam_spark.consent import stage as ledger
    from lam_spark.events import stage as ingest
    from lam_spark.labels import stage as examples
    from lam_spark.sequences import stage as assemble
    from lam_spark.training_data import stage as snapshot

    root = tmp_path_factory.mktemp("prepared") / "shop"
    data = make_data_set(root, customers=200)
    run = run_builder(spark, root)(data.config())
    stages = {
        "ingest": ingest,
        "consent": ledger,
        "sequences": assemble,
        "examples": examples,
        "snapshot": snapshot,
    }
    return Prepared(data, run, {name: stage.run(run) for name, stage in stages.items()})


@pytest.fixture(scope="session")
def finished(make_data_set: Callable[..., DataSet], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run. `test_reruns.py`, which works on in its workspace, comes last by its name."""
    data = make_data_set(tmp_path_factory.mktemp("e2e") / "shop")
    process = start("run", "--conf", str(data.conf))
    stdout, stderr = process.communicate(timeout=600)
    lines = stdout.splitlines()
    assert lines, stderr[-3000:]
    summary = json.loads(lines[-1])
    assert process.returncode == 0, (summary.get("error"), stderr[-3000:])
    return Finished(data, process.returncode, stdout, stderr, summary, versions(data.root))


@pytest.fixture(scope="session")
def embedded(finished: Finished, spark: SparkSession) -> Finished:
    """The same workspace after `embed` too, which `run` leaves out.

    For tests of files whose names come after `test_full_run.py`, which looks at what `run` alone has left.
    """
    from lam_spark.cli import run_stage

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_stage("embed", ["--conf", str(finished.data.conf)])
    summary = json.loads(out.getvalue().splitlines()[-1])
    assert code == 0, summary
    return Finished(finished.data, code, out.getvalue(), err.getvalue(), summary, versions(finished.root))
