"""A session that a platform gives: Delta cannot be added to it, so one without Delta is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from lam_spark.config import SparkConfig
from lam_spark.errors import ConfigError
from lam_spark.runtime import session

if TYPE_CHECKING:
    from tests.support.shop import DataSet

# A process of its own: the tests' own session, which other files share, has Delta.
GIVEN_WITHOUT_DELTA = """
import sys
from pyspark.sql import SparkSession
from lam_spark.cli import run_job
SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
sys.exit(run_job("consent", sys.argv[1:]))
"""


# What it has to be started with, as the README says.
NEEDED = [
    ("--packages", "io.delta:delta-spark_2.13:4.0.1"),
    ("--conf", "spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension"),
    ("--conf", "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog"),
]


class Given:
    """A session that runs already, and its builder: extensions are as they were at its start."""

    def __init__(self, extensions: str | None) -> None:
        self.builder = self.conf = self
        self.options: dict[str, str] = {}
        self._extensions = extensions

    def getActiveSession(self) -> Self:  # noqa: N802
        return self

    def appName(self, name: str) -> Self:  # noqa: N802
        return self

    def config(self, key: str, value: str) -> Self:
        self.options[key] = value
        return self

    def getOrCreate(self) -> Self:  # noqa: N802
        return self

    def set(self, key: str, value: str) -> None:
        self.options[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        return self._extensions if key == "spark.sql.extensions" else self.options.get(key, default)


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Given]:
    """Gives a session with these extensions."""
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)

    def give(extensions: str | None) -> Given:
        given = Given(extensions)
        monkeypatch.setattr(session, "SparkSession", given)
        return given

    return give


@pytest.mark.parametrize("extensions", [None, "", "org.apache.iceberg.spark.extensions.SomeExtensions"])
def test_without_delta_the_error_names_all_that_is_needed(
    platform: Callable[[str | None], Given], extensions: str | None
) -> None:
    platform(extensions)
    with pytest.raises(ConfigError, match="the running Spark session has no Delta: start it with ") as raised:
        session.spark_session(SparkConfig())
    assert re.findall(r"(--\w+) (\S+)", str(raised.value)) == NEEDED


def test_a_session_with_delta_is_taken_and_keeps_its_sizes(platform: Callable[[str | None], Given]) -> None:
    given = platform("some.other.Extension,io.delta.sql.DeltaSparkSessionExtension")
    assert session.spark_session(SparkConfig(driver_memory="3g", settings={"spark.mine": "1"})) is given
    assert (given.options["spark.sql.session.timeZone"], given.options["spark.mine"]) == ("UTC", "1")
    sizes = ("spark.master", "spark.driver.memory", "spark.sql.shuffle.partitions", "spark.jars")
    assert [key for key in sizes if key in given.options] == []


def test_databricks_brings_its_own_delta(
    platform: Callable[[str | None], Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = platform(None)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "16.4")
    assert session.spark_session(SparkConfig()) is given


@pytest.mark.long
@pytest.mark.spark
def test_a_real_session_that_was_started_without_delta_is_refused(
    make_data_set: Callable[..., DataSet], tmp_path: Path
) -> None:
    data = make_data_set(tmp_path / "shop", customers=20)
    done = subprocess.run(
        [sys.executable, "-c", GIVEN_WITHOUT_DELTA, "--conf", str(data.conf)],
        cwd=tmp_path,  # Spark may leave a folder for its own tables
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error.startswith("the running Spark session has no Delta: start it with ")
    assert re.findall(r"(--\w+) (\S+)", error) == NEEDED
    assert f"lam-spark consent: ConfigError: {error}" in done.stderr
    assert not (data.root / "tables").exists()
