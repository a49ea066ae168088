"""Spark settings that apply to some queries only.

Spark reads the settings of `CONFIGURED_SQL` when it analyses an expression and keeps them in the plan: they need to
hold while a DataFrame is built, not while it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from pyspark.sql import SparkSession

# Under which SQL of the configuration is analysed, whatever the session is set to.
CONFIGURED_SQL: Mapping[str, str] = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.ansi.enabled": "true",
    # The check of the configuration reads texts and names as Spark does by default.
    "spark.sql.parser.escapedStringLiterals": "false",
    "spark.sql.ansi.doubleQuotedIdentifiers": "false",
    # A text such as ${env:NAME} is not replaced by the variable.
    "spark.sql.variable.substitute": "false",
    # No file is read by its path, as in SELECT * FROM parquet.`path`.
    "spark.sql.runSQLOnFiles": "false",
}


def configured_sql(spark: SparkSession) -> contextlib.AbstractContextManager[None]:
    """Build DataFrames from SQL of the configuration, or cast what it yields, independent of the session's settings."""
    return session_settings(spark, CONFIGURED_SQL)


@contextlib.contextmanager
def session_settings(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Run queries with these settings and restore the previous ones afterwards."""
    previous = {key: spark.conf.get(key, None) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, earlier in previous.items():
            if earlier is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, earlier)
