"""The one builder of Spark sessions: on one machine, or the session that a platform gives.

spark-submit and Databricks hand over a session or a master of their own; then only what the project's
correctness needs is set (UTC, Delta), never sizes. Alone on one machine, the settings are those that make
small Delta jobs fast (few partitions, no UI).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from lam_spark.config import SparkConfig
from lam_spark.errors import ConfigError, values_may_be_shown

DELTA_VERSION = "4.0.1"
DELTA_PACKAGE = f"io.delta:delta-spark_2.13:{DELTA_VERSION}"
POSTGRESQL_VERSION = "42.7.14"
POSTGRESQL_PACKAGE = f"org.postgresql:postgresql:{POSTGRESQL_VERSION}"

# What results and memory depend on: set wherever the job runs.
_EVERYWHERE = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    # A batch to Python holds whole sequences: by default it would be ten thousand of them.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
}
_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_ONE_MACHINE = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / "lam_spark-warehouse"),
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    "spark.sql.parquet.compression.codec": "zstd",
    # A truncated plan text in a log line may hold values of the data: none is printed.
    "spark.sql.maxPlanStringLength": "0",
    "spark.sql.debug.maxToStringFields": "8",
    # Nobody looks at the plans' texts here, and the long form costs the driver time with each query.
    "spark.sql.ui.explainMode": "simple",
}


def kept_jars() -> list[Path]:
    """What the set-up keeps, so that a session starts without a network: Delta's jars, PostgreSQL's driver."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    kept = (f"delta-{DELTA_VERSION}", f"postgresql-{POSTGRESQL_VERSION}")
    return [jar for name in kept for jar in sorted((Path(cache) / "lam_spark" / "jars" / name).glob("*.jar"))]


def added_jars(settings: SparkConfig) -> dict[str, str]:
    """The kept jars, or else the packages that Spark fetches; beside those that the configuration names."""
    jars = [str(jar) for jar in kept_jars()]
    sources = {"spark.jars": jars, "spark.jars.packages": [] if jars else [DELTA_PACKAGE, POSTGRESQL_PACKAGE]}
    for key, values in sources.items():
        if key in settings.settings:
            values.append(settings.settings[key])
    return {key: ",".join(values) for key, values in sources.items() if values}


def platform_gives_session() -> bool:
    """True under spark-submit, in a cluster's notebook, or where a session is already active."""
    return (
        SparkSession.getActiveSession() is not None
        or "PYSPARK_GATEWAY_PORT" in os.environ
        or "DATABRICKS_RUNTIME_VERSION" in os.environ
        or "SPARK_REMOTE" in os.environ
    )


def spark_session(settings: SparkConfig, app_name: str = "lam_spark") -> SparkSession:
    """Give the platform's session, or start one on this machine.

    Raises:
        ConfigError: the platform's session was started without Delta, which cannot be added afterwards.
    """
    # PySpark writes what a query failed by on stderr, the row and all, before anybody can catch it.
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).disabled = not values_may_be_shown()
    builder = SparkSession.builder.appName(app_name)
    given = platform_gives_session()
    options = {**_DELTA, **_EVERYWHERE}
    if not given:
        os.environ["PYSPARK_PYTHON"] = sys.executable
        os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        # One worker, one core: torch in a UDF must not start a pool of threads of its own.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        options |= _ONE_MACHINE
        log = Path(__file__).parent / "log4j2.properties"
        shown = str(values_may_be_shown()).lower()
        options["spark.driver.extraJavaOptions"] = (
            f"-Dlog4j2.configurationFile={log} -Dlam_spark.exceptions={shown}"
        )
        options |= {
            "spark.master": settings.master,
            "spark.driver.memory": settings.driver_memory,
            "spark.sql.shuffle.partitions": str(settings.shuffle_partitions),
            "spark.default.parallelism": str(settings.shuffle_partitions),
        }
    jars = {} if given else added_jars(settings)
    for key, value in (options | settings.settings | jars).items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    for key, value in _EVERYWHERE.items():
        spark.conf.set(key, value)
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ and "io.delta" not in (
        spark.conf.get("spark.sql.extensions", "") or ""
    ):
        raise ConfigError(
            "the running Spark session has no Delta: start it with "
            f"--packages {DELTA_PACKAGE} "
            + " ".join(f"--conf {key}={value}" for key, value in _DELTA.items())
        )
    return spark
