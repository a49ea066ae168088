"""Shared fixtures: one Spark session, a small data set, run contexts; distribution of tests over processes."""

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
from tests.support.shop import QUICK, SECRET, DataSet, context_builder, draw_data_set
from tests.support.tables import Prepared

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lam_spark.runtime.context import RunContext

hypothesis.settings.register_profile("unit", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("unit")

# Hadoop forks a `chmod` for each file that it writes; with vfork that takes half the time.
JAVA_OPTIONS = "-XX:+UseSerialGC -Djdk.lang.Process.launchMechanism=VFORK"
# Processes of the tests live for a minute: only the quick compiler pays off. The shared session lives for many: after
# some minutes a test needs about 0.8 times the CPU with the optimising compiler.
QUICK_COMPILER = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
# Adaptive execution replans after each shuffle: of a few rows, the stage `examples` takes 1.5 times as long with it.
# The processes that tests start have it, as users do.
SETTINGS = QUICK | {"spark.sql.adaptive.enabled": "false"}


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """With `-n`: the tests of a file stay in one process, and so do all of tests/e2e, which share one long run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        # These share the fixture `prepared`, which takes most of a minute.
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
    """Hook of xdist."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a Spark session, and those that run whole stages; the longest file comes first."""
    # Begun last, it would keep one process busy for a quarter of an hour while the other has nothing left.
    items.sort(key=lambda item: item.path.name != "test_spark_launchers.py")
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.spark)
        if "/tests/e2e/" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def secret() -> Iterator[str]:
    """Key of the pseudonyms, in the environment of the tests and of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAM_SPARK_SECRET", SECRET)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("LAM_SPARK_LOG", raising=False)
        patch.setenv("JDK_JAVA_OPTIONS", f"{JAVA_OPTIONS} {QUICK_COMPILER}")
        yield SECRET


@pytest.fixture(scope="session")
def spark(secret: str) -> Iterator[SparkSession]:
    """Session of all tests: two cores, three partitions, UTC, Delta."""
    from lam_spark.config import SparkConfig
    from lam_spark.runtime.session import is_provided_by_platform, spark_session

    assert not is_provided_by_platform(), "a test or plug-in started a session of its own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", JAVA_OPTIONS)
        session = spark_session(
            SparkConfig(master="local[2]", driver_memory="2g", shuffle_partitions=3, settings=SETTINGS),
            "lam_spark tests",
        )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def make_data_set(secret: str) -> Callable[..., DataSet]:
    """Generates the small shop under a root folder: `make_data_set(tmp_path / "shop")`."""
    return draw_data_set


@pytest.fixture
def make_context(spark: SparkSession, tmp_path: Path) -> Callable[..., RunContext]:
    """Builds run contexts: `make_context(config)`; by default for an empty shop in `tmp_path / "shop"`."""
    return context_builder(spark, tmp_path / "shop")


@pytest.fixture(scope="session")
def prepared(
    spark: SparkSession, make_data_set: Callable[..., DataSet], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    """The shop after ingest, consent, sequences, examples and snapshot; tests only read it."""
    from lam_spark.stages import STAGES

    root = tmp_path_factory.mktemp("prepared") / "shop"
    data = make_data_set(root, customers=200)
    ctx = context_builder(spark, root)(data.config())
    names = ("ingest", "consent", "sequences", "examples", "snapshot")
    return Prepared(data, ctx, {name: STAGES[name].load()(ctx) for name in names})


@pytest.fixture(scope="session")
def finished(make_data_set: Callable[..., DataSet], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One full run. `test_reruns.py`, which changes its workspace, comes last by its name."""
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
    """The same workspace after `embed`, which `run` does not include.

    For test files that come after `test_full_run.py` by name, which checks the state that `run` alone leaves.
    """
    from lam_spark.cli import run_job

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_job("embed", ["--conf", str(finished.data.conf)])
    summary = json.loads(out.getvalue().splitlines()[-1])
    assert code == 0, summary
    return Finished(finished.data, code, out.getvalue(), err.getvalue(), summary, versions(finished.root))
