"""A running session is reused if it has Delta and refused otherwise: Delta cannot be added after the start."""

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

# Runs in a separate process, because the shared session of the tests has Delta.
SESSION_WITHOUT_DELTA = """
import sys
from pyspark.sql import SparkSession
from lam_spark.cli import run_job
SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
sys.exit(run_job("consent", sys.argv[1:]))
"""
LOGGED_BY_SPARK = """
from lam_spark.config import SparkConfig
from lam_spark.runtime.session import spark_session
spark = spark_session(SparkConfig(master="local[1]", driver_memory="512m"))
logger = spark.sparkContext._jvm.org.slf4j.LoggerFactory.getLogger("a.test")
logger.error("cannot open jdbc:x://me:hush@host?sslPassword=hush&ssl=true")
spark.stop()
"""
# Options that a session must be started with, as in the README.
REQUIRED_OPTIONS = [
    ("--packages", "io.delta:delta-spark_2.13:4.0.1"),
    ("--conf", "spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension"),
    ("--conf", "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog"),
]


class RunningSession:
    """A running session, which is its own builder. Its extensions cannot be changed."""

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
def platform(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], RunningSession]:
    """Starts a platform's session with these extensions."""
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)

    def start(extensions: str | None) -> RunningSession:
        running = RunningSession(extensions)
        monkeypatch.setattr(session, "SparkSession", running)
        return running

    return start


@pytest.mark.parametrize("extensions", [None, "", "org.apache.iceberg.spark.extensions.SomeExtensions"])
def test_a_session_without_delta_is_refused_with_the_required_options(
    platform: Callable[[str | None], RunningSession], extensions: str | None
) -> None:
    platform(extensions)
    with pytest.raises(ConfigError, match="the running Spark session has no Delta: start it with ") as raised:
        session.spark_session(SparkConfig())
    assert re.findall(r"(--\w+) (\S+)", str(raised.value)) == REQUIRED_OPTIONS


def test_a_session_with_delta_is_reused_and_keeps_its_sizes(
    platform: Callable[[str | None], RunningSession],
) -> None:
    running = platform("some.other.Extension,io.delta.sql.DeltaSparkSessionExtension")
    assert session.spark_session(SparkConfig(driver_memory="3g", settings={"spark.custom": "1"})) is running
    assert (running.options["spark.sql.session.timeZone"], running.options["spark.custom"]) == ("UTC", "1")
    sizes = ("spark.master", "spark.driver.memory", "spark.sql.shuffle.partitions", "spark.jars")
    assert [key for key in sizes if key in running.options] == []


def test_a_databricks_session_needs_no_delta_extension(
    platform: Callable[[str | None], RunningSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = platform(None)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "16.4")
    assert session.spark_session(SparkConfig()) is running


def test_a_secret_setting_comes_from_its_variable(
    platform: Callable[[str | None], RunningSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = platform("io.delta.sql.DeltaSparkSessionExtension")
    config = SparkConfig(secrets={"spark.hadoop.fs.s3a.secret.key": "STORE_KEY"})
    monkeypatch.delenv("STORE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"spark.secrets.spark.hadoop.fs.s3a.secret.key: .* STORE_KEY"):
        session.spark_session(config)
    monkeypatch.setenv("STORE_KEY", "hush")
    session.spark_session(config)
    assert running.options["spark.hadoop.fs.s3a.secret.key"] == "hush"


def test_configured_java_options_are_added_to_ours() -> None:
    ours = {"spark.driver.extraJavaOptions": "-Dours=1", "spark.master": "local[2]"}
    configured = {"spark.driver.extraJavaOptions": "-Xss4m", "spark.master": "local[4]"}
    assert session._with_configured(ours, configured) == {
        "spark.driver.extraJavaOptions": "-Dours=1 -Xss4m",
        "spark.master": "local[4]",
    }


@pytest.mark.long
@pytest.mark.spark
def test_secrets_in_messages_of_spark_are_masked(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", LOGGED_BY_SPARK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "cannot open jdbc:x://me:***@host?sslPassword=***&ssl=true" in completed.stderr
    assert "hush" not in completed.stderr


@pytest.mark.long
@pytest.mark.spark
def test_a_real_session_without_delta_is_refused(
    make_data_set: Callable[..., DataSet], tmp_path: Path
) -> None:
    data = make_data_set(tmp_path / "shop", customers=20)
    completed = subprocess.run(
        [sys.executable, "-c", SESSION_WITHOUT_DELTA, "--conf", str(data.conf)],
        cwd=tmp_path,  # Spark may leave a folder for its own tables
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 2, completed.stderr[-2000:]
    error = json.loads(completed.stdout.splitlines()[-1])["error"]
    assert error.startswith("the running Spark session has no Delta: start it with ")
    assert re.findall(r"(--\w+) (\S+)", error) == REQUIRED_OPTIONS
    assert f"lam-spark consent: ConfigError: {error}" in completed.stderr
    assert not (data.root / "tables").exists()
