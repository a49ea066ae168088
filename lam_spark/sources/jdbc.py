"""Tables of a database, through Spark's JDBC reader.

A `timestamp` without time zone is read as the wall clock that the database holds, not as the local time of
whatever machine reads it; a channel's `clock` says whose wall it is. Rows are fetched in portions, so a task's
memory does not grow with the table.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors.exceptions.base import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, NumericType, TimestampNTZType, TimestampType

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.session import POSTGRESQL_PACKAGE

# Java's DriverManager sees no driver that came with --packages or spark.jars: its class has to be named.
_DRIVERS = {"jdbc:postgresql:": "org.postgresql.Driver"}
# How Spark splits the reading; a query that gives one row has no such column.
_SPLITTING = frozenset(["partitioncolumn", "lowerbound", "upperbound", "numpartitions"])
_FETCHED_ROWS = "5000"


@dataclass(frozen=True)
class Watermark:
    """The highest value of an input's watermark, as the database reads it back, and the rows that stand at it."""

    value: str
    rows: int


def jdbc_rows(spark: SparkSession, name: str, spec: InputConfig, where: str = "") -> DataFrame:
    """Rows of a jdbc input, those of a condition in the database's SQL; the columns are the database's.

    Raises:
        ConfigError: a secret is not in the environment, the driver is not there, the database cannot be reached
            or refuses the user or the query. No error holds a secret.
    """
    query = f"SELECT * FROM {_table(spec)}{f' WHERE {where}' if where else ''}"
    return _load(spark, name, spec, query, spec.options)


def highest_watermark(spark: SparkSession, name: str, spec: InputConfig) -> Watermark | None:
    """The highest watermark that a run may read up to; None of an empty table.

    Raises:
        ConfigError: as `jdbc_rows`; or the column is no number, date or time.
        DataQualityError: rows without a watermark, which no later run would ever take.
    """
    column, table = spec.watermark, _table(spec)
    lacking = _one(spark, name, spec, f"SELECT count(*) AS found FROM {table} WHERE {column} IS NULL")
    if int(lacking or 0):
        raise DataQualityError(
            f"inputs.{name}: {int(lacking or 0):,} rows have no {column}: no run would take them. Choose another "
            f"watermark, or let options.query give them one: coalesce({column}, ...)"
        )
    highest = _one(spark, name, spec, f"SELECT max({column}) AS found FROM {table}")
    return None if highest is None else Watermark(highest, rows_at(spark, name, spec, highest))


def rows_at(spark: SparkSession, name: str, spec: InputConfig, value: str) -> int:
    """How many rows stand at a value of the watermark."""
    query = f"SELECT count(*) AS found FROM {_table(spec)} WHERE {spec.watermark} = '{value}'"
    return int(_one(spark, name, spec, query) or 0)


def place_of(spec: InputConfig) -> str:
    """The database, for errors: what follows in a URL may be a password."""
    return re.split(r"[?;]", spec.options["url"])[0]


def _table(spec: InputConfig) -> str:
    """What stands behind FROM."""
    return spec.options.get("dbtable") or f"({spec.options['query']}) configured_query"


def _one(spark: SparkSession, name: str, spec: InputConfig, query: str) -> str | None:
    """The single value `found` of a query, as the database reads it back."""
    options = {key: value for key, value in spec.options.items() if key.lower() not in _SPLITTING}
    frame = _load(spark, name, spec, query, options)
    kind = frame.schema["found"].dataType
    if not isinstance(kind, NumericType | DateType | TimestampType | TimestampNTZType):
        raise ConfigError(
            f"inputs.{name}.watermark: {spec.watermark} is {kind.simpleString()}; expected a number, a date or a "
            "time that only grows"
        )
    text = F.col("found").cast("string")
    if isinstance(kind, TimestampType):  # an instant: without its offset the database would take it as local
        text = F.concat(text, F.lit("+00:00"))
    row = frame.select(text.alias("found")).first()
    return row["found"] if row else None


def _load(spark: SparkSession, name: str, spec: InputConfig, query: str, given: dict[str, str]) -> DataFrame:
    secrets = {}
    for option, variable in spec.secrets.items():
        if variable not in os.environ:
            raise ConfigError(
                f"inputs.{name}.secrets.{option}: expected the environment variable {variable}, it is not set"
            )
        secrets[option] = os.environ[variable]
    ours = {"fetchsize": _FETCHED_ROWS, "preferTimestampNTZ": "true"}
    for database, driver in _DRIVERS.items():
        if spec.options["url"].startswith(database):
            ours["driver"] = driver
    options = ours | {key: value for key, value in given.items() if key not in ("dbtable", "query")} | secrets
    try:
        return spark.read.format("jdbc").options(**options).option("dbtable", f"({query}) asked").load()
    except (Py4JJavaError, PySparkException) as error:
        raise ConfigError(
            f"inputs.{name}: the database at {place_of(spec)}: {_said(error, spec, secrets)}"
        ) from None  # the cause would bring the secrets along


def _said(error: Exception, spec: InputConfig, secrets: dict[str, str]) -> str:
    """The first line of what Spark or the driver says, and what to do about a driver that is not there."""
    text = error.java_exception.toString() if isinstance(error, Py4JJavaError) else error
    said = str(text).strip().splitlines()[0].removeprefix("org.postgresql.util.PSQLException: ")
    for secret in (spec.options["url"].removeprefix(place_of(spec)), *secrets.values()):
        said = said.replace(secret, "***") if secret else said
    if "ClassNotFoundException" in said or "No suitable driver" in said:
        said += (
            ". Name the driver's class in options.driver and put its jar on the session: --packages "
            f"{POSTGRESQL_PACKAGE} under spark-submit, or spark.jars.packages under spark.settings"
        )
    return said
