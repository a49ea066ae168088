"""Tables of a database as inputs, through Spark's JDBC reader.

A `timestamp` without time zone is read as the wall clock time in the database, independent of the reading machine's
time zone; a channel's `clock` names the zone of that clock. Rows are fetched in batches, so that a task's memory
does not grow with the table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors.exceptions.base import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, NumericType, TimestampNTZType, TimestampType

from lam_spark.config import InputConfig
from lam_spark.config.secrets import read_secrets
from lam_spark.errors import ConfigError, DataQualityError, first_line
from lam_spark.masking import masked
from lam_spark.runtime.session import POSTGRESQL_PACKAGE
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.session_settings import configured_sql

# Java's DriverManager does not see drivers from --packages or spark.jars: the class has to be named.
_DRIVERS = {"jdbc:postgresql:": "org.postgresql.Driver"}
# Options that split a read into partitions; a query of one row has no such column.
_PARTITION_OPTIONS = frozenset(["partitioncolumn", "lowerbound", "upperbound", "numpartitions"])
_FETCH_SIZE = "5000"  # rows


@dataclass(frozen=True)
class Watermark:
    """Highest value of an input's watermark column, as a literal of the database, and the rows with this value."""

    value: str
    rows: int


def jdbc_rows(
    spark: SparkSession, name: str, spec: InputConfig, increment: SourceIncrement | None = None
) -> DataFrame:
    """All rows of a jdbc input, or those of an increment; the columns are those of the database.

    Raises:
        ConfigError: A secret is not in the environment, the driver is missing, the database cannot be reached, or
            it refuses the user or the query. No error holds a secret.
    """
    condition = _watermark_condition(spec, increment)
    query = f"SELECT * FROM {_table(spec)}{f' WHERE {condition}' if condition else ''}"
    return _load(spark, name, spec, query, spec.options)


def jdbc_increment(
    spark: SparkSession, increment: SourceIncrement, spec: InputConfig, last: Part | None, run_id: str
) -> SourceIncrement:
    """Complete an empty increment by the rows above the watermark that was ingested last.

    Rows at that watermark are included again if there are more of them now. Without a watermark column the whole
    table is the increment, in each run.

    Args:
        spark: Active session.
        increment: Increment of the reader without parts.
        spec: Configuration of the input.
        last: Watermark that was ingested last; None if there is none.
        run_id: Id of the run.

    Raises:
        ConfigError, DataQualityError: See `highest_watermark`.
    """
    if spec.watermark is None:
        return dataclasses.replace(increment, parts=(Part(f"whole, {run_id}"),))
    highest = highest_watermark(spark, increment.input, spec)
    if highest is None:
        return increment
    part = Part(highest.value, size=highest.rows)
    if last is None:
        return dataclasses.replace(increment, parts=(part,))
    has_more = rows_at(spark, increment.input, spec, last.name) > (last.size or 0)
    parts = (part,) if has_more or part.name != last.name else ()
    return dataclasses.replace(increment, parts=parts, after=last.name, includes_after=has_more)


def highest_watermark(spark: SparkSession, name: str, spec: InputConfig) -> Watermark | None:
    """The watermark that a run may read up to; None for an empty table.

    Raises:
        ConfigError: See `jdbc_rows`; or the column is no number, date or time.
        DataQualityError: Rows without a watermark, which no later run would ingest.
    """
    column, table = spec.watermark, _table(spec)
    count = _single_value(
        spark, name, spec, f"SELECT count(*) AS single_value FROM {table} WHERE {column} IS NULL"
    )
    if int(count or 0):
        raise DataQualityError(
            f"inputs.{name}: {int(count or 0):,} rows have no {column}: no run would ingest them. Choose another "
            f"watermark, or fill it in options.query: coalesce({column}, ...)"
        )
    highest = _single_value(spark, name, spec, f"SELECT max({column}) AS single_value FROM {table}")
    return None if highest is None else Watermark(highest, rows_at(spark, name, spec, highest))


def rows_at(spark: SparkSession, name: str, spec: InputConfig, value: str) -> int:
    """Number of rows with this value of the watermark column."""
    query = f"SELECT count(*) AS single_value FROM {_table(spec)} WHERE {spec.watermark} = '{value}'"
    return int(_single_value(spark, name, spec, query) or 0)


def jdbc_fingerprint(spark: SparkSession, name: str, spec: InputConfig) -> str | None:
    """Highest watermark and number of rows; None without a watermark, where a changed row cannot be noticed.

    Raises:
        ConfigError: See `jdbc_rows`.
    """
    if spec.watermark is None:
        return None
    highest = _single_value(
        spark, name, spec, f"SELECT max({spec.watermark}) AS single_value FROM {_table(spec)}"
    )
    rows = _single_value(spark, name, spec, f"SELECT count(*) AS single_value FROM {_table(spec)}")
    return f"{highest}:{rows}"


def place_of(spec: InputConfig) -> str:
    """URL of the database, for errors; without its parameters, which may hold a password."""
    return re.split(r"[?;]", spec.options["url"])[0]


def _watermark_condition(spec: InputConfig, increment: SourceIncrement | None) -> str:
    """SQL condition that selects the rows of an increment; empty for all rows."""
    if increment is None or spec.watermark is None:
        return ""
    up_to = f"{spec.watermark} <= '{increment.parts[0].name}'"
    if increment.after is None:
        return up_to
    return f"{spec.watermark} {'>=' if increment.includes_after else '>'} '{increment.after}' AND {up_to}"


def _table(spec: InputConfig) -> str:
    """The table or the configured query, for a FROM clause."""
    return spec.options.get("dbtable") or f"({spec.options['query']}) configured_query"


def _single_value(spark: SparkSession, name: str, spec: InputConfig, query: str) -> str | None:
    """The column `single_value` of a query of one row, as a literal of the database."""
    options = {key: value for key, value in spec.options.items() if key.lower() not in _PARTITION_OPTIONS}
    frame = _load(spark, name, spec, query, options)
    kind = frame.schema["single_value"].dataType
    if not isinstance(kind, NumericType | DateType | TimestampType | TimestampNTZType):
        raise ConfigError(
            f"inputs.{name}.watermark: {spec.watermark} is {kind.simpleString()}; expected a number, a date or a "
            "time that only grows"
        )
    text = F.col("single_value").cast("string")
    if isinstance(kind, TimestampType):  # without its offset the database would read an instant as local time
        text = F.concat(text, F.lit("+00:00"))
    with configured_sql(spark):  # the text of an instant is that of UTC
        selected = frame.select(text.alias("_text"))
    value: str | None = one_row(selected)["_text"]
    return value


def _load(
    spark: SparkSession, name: str, spec: InputConfig, query: str, configured: Mapping[str, str]
) -> DataFrame:
    secrets = read_secrets(f"inputs.{name}.secrets", spec.secrets)
    defaults = {"fetchsize": _FETCH_SIZE, "preferTimestampNTZ": "true"}
    for prefix, driver in _DRIVERS.items():
        if spec.options["url"].startswith(prefix):
            defaults["driver"] = driver
    further = {key: value for key, value in configured.items() if key not in ("dbtable", "query")}
    reader = spark.read.format("jdbc").options(**(defaults | further | secrets))
    try:
        return reader.option("dbtable", f"({query}) input_query").load()
    except (Py4JJavaError, PySparkException) as error:
        raise ConfigError(
            f"inputs.{name}: the database at {place_of(spec)}: {_message(error, spec, secrets)}"
        ) from None  # the cause would reveal the secrets


def _message(error: Exception, spec: InputConfig, secrets: Mapping[str, str]) -> str:
    """First line of the error of Spark or the driver without secrets; for a missing driver, what to do."""
    java = error.java_exception.toString() if isinstance(error, Py4JJavaError) else None
    text = first_line(error) if java is None else masked(str(java).strip().splitlines()[0])
    text = text.removeprefix("org.postgresql.util.PSQLException: ")
    for secret in (spec.options["url"].removeprefix(place_of(spec)), *secrets.values()):
        text = text.replace(secret, "***") if secret else text
    if "ClassNotFoundException" in text or "No suitable driver" in text:
        text += (
            ". Name the driver's class in options.driver and put its jar on the session: --packages "
            f"{POSTGRESQL_PACKAGE} under spark-submit, or spark.jars.packages under spark.settings"
        )
    return text
