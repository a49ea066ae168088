"""The one builder of Spark sessions: the session of a platform, or one on this machine.

spark-submit and Databricks provide a session or a master; then only what correctness needs is set (UTC, Delta), no
sizes. On a single machine the settings are those that make small Delta jobs fast (few partitions, no UI).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from lam_spark.config import SparkConfig
from lam_spark.config.secrets import read_secrets
from lam_spark.errors import ConfigError, values_may_be_shown
from lam_spark.storage.files import current_umask

DELTA_VERSION = "4.0.1"
DELTA_PACKAGE = f"io.delta:delta-spark_2.13:{DELTA_VERSION}"
POSTGRESQL_VERSION = "42.7.14"
POSTGRESQL_PACKAGE = f"org.postgresql:postgresql:{POSTGRESQL_VERSION}"

# Results and memory depend on these: they are set wherever the job runs.
_REQUIRED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    # A batch to Python holds whole sequences; the default is ten thousand of them.
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
    # A truncated plan in a log line may quote values of the data.
    "spark.sql.maxPlanStringLength": "0",
    "spark.sql.debug.maxToStringFields": "8",
    # The long form costs the driver time with each query.
    "spark.sql.ui.explainMode": "simple",
}


def cached_jars() -> list[Path]:
    """Jars that the set-up caches, so that a session starts without a network: Delta, PostgreSQL's driver."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folders = (f"delta-{DELTA_VERSION}", f"postgresql-{POSTGRESQL_VERSION}")
    return [
        jar for name in folders for jar in sorted((Path(cache) / "lam_spark" / "jars" / name).glob("*.jar"))
    ]


def jar_settings(spark: SparkConfig) -> dict[str, str]:
    """Settings that add the cached jars, or the packages that Spark downloads, to those of the configuration."""
    jars = [str(jar) for jar in cached_jars()]
    sources = {"spark.jars": jars, "spark.jars.packages": [] if jars else [DELTA_PACKAGE, POSTGRESQL_PACKAGE]}
    for key, values in sources.items():
        if key in spark.settings:
            values.append(spark.settings[key])
    return {key: ",".join(values) for key, values in sources.items() if values}


def active_session() -> SparkSession | None:
    """The session that is active in this thread, if there is one."""
    return SparkSession.getActiveSession()


def is_provided_by_platform() -> bool:
    """Whether a session exists or a platform provides one: spark-submit, a cluster's notebook."""
    return (
        active_session() is not None
        or "PYSPARK_GATEWAY_PORT" in os.environ
        or "DATABRICKS_RUNTIME_VERSION" in os.environ
        or "SPARK_REMOTE" in os.environ
    )


def spark_session(spark: SparkConfig, app_name: str = "lam_spark") -> SparkSession:
    """Return the platform's session, or start one on this machine.

    Raises:
        ConfigError: The platform's session was started without Delta, which cannot be added afterwards; or a secret
            is not in the environment.
    """
    # PySpark logs the error of a failed query, with the row that it quotes, before the caller can catch it.
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).disabled = not values_may_be_shown()
    options = {**_DELTA, **_REQUIRED}
    configured = {**spark.settings, **read_secrets("spark.secrets", spark.secrets)}
    if is_provided_by_platform():
        options |= configured
    else:
        options |= _with_configured(_one_machine_settings(spark), configured) | jar_settings(spark)
    builder = SparkSession.builder.appName(app_name)
    for key, value in options.items():
        builder = builder.config(key, value)
    session: SparkSession = builder.getOrCreate()
    for key, value in _REQUIRED.items():
        session.conf.set(key, value)
    extensions = session.conf.get("spark.sql.extensions", "") or ""
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ and "io.delta" not in extensions:
        raise ConfigError(
            f"the running Spark session has no Delta: start it with --packages {DELTA_PACKAGE} "
            + " ".join(f"--conf {key}={value}" for key, value in _DELTA.items())
        )
    return session


def _with_configured(ours: Mapping[str, str], configured: Mapping[str, str]) -> dict[str, str]:
    """Our settings, replaced by configured ones; Java options are joined, so that ours stay in force."""
    joined = {
        key: f"{ours[key]} {value}" if key in ours and key.endswith("JavaOptions") else value
        for key, value in configured.items()
    }
    return {**ours, **joined}


def _one_machine_settings(spark: SparkConfig) -> dict[str, str]:
    """Settings of a session on this machine; also sets the environment of its Python workers."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # One worker per core: torch in a UDF must not start a thread pool of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    log_settings = Path(__file__).parent / "log4j2.properties"
    shown = str(values_may_be_shown()).lower()
    return {
        **_ONE_MACHINE,
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log_settings} -Dlam_spark.exceptions={shown}",
        # Spark sets the permissions of files itself, whatever the umask of its process is.
        "spark.hadoop.fs.permissions.umask-mode": f"{current_umask():03o}",
        "spark.master": spark.master,
        "spark.driver.memory": spark.driver_memory,
        "spark.sql.shuffle.partitions": str(spark.shuffle_partitions),
        "spark.default.parallelism": str(spark.shuffle_partitions),
    }
