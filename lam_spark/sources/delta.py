"""Delta tables as inputs: new rows come from the change feed where the table has one."""

from __future__ import annotations

import dataclasses

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError
from lam_spark.sources.files import not_found
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.storage.dataframes import one_row


def delta_rows(spark: SparkSession, spec: InputConfig, increment: SourceIncrement | None = None) -> DataFrame:
    """The whole newest version, or the rows of an increment.

    Without a change feed the new version is read whole: rows that were ingested before become duplicates.
    """
    reader = spark.read.format("delta").options(**spec.options)
    if increment is None:
        return reader.load(spec.path)
    version = increment.parts[0].name
    if increment.after is None or not increment.has_change_feed:
        return reader.option("versionAsOf", version).load(spec.path)
    feed = reader.option("readChangeFeed", "true").option("startingVersion", int(increment.after) + 1)
    changes = feed.option("endingVersion", version).load(spec.path)
    return changes.where(F.col("_change_type").isin("insert", "update_postimage")).drop(
        "_change_type", "_commit_version", "_commit_timestamp"
    )


def delta_increment(
    spark: SparkSession, increment: SourceIncrement, spec: InputConfig, last: Part | None
) -> SourceIncrement:
    """Complete an empty increment by the newest version of the table.

    Args:
        spark: Active session.
        increment: Increment of the reader without parts.
        spec: Configuration of the input.
        last: Version that was ingested last; None if there is none.

    Raises:
        ConfigError: The table does not exist, or it was replaced by one with fewer versions.
    """
    try:
        table = DeltaTable.forPath(spark, spec.path)
        version = str(one_row(table.history(1).select("version"))["version"])
        properties = one_row(table.detail())["properties"]
    except AnalysisException as error:
        raise not_found(increment.input, spec, error) from error
    after = last.name if last else None
    if after is not None and int(after) > int(version):
        raise ConfigError(
            f"inputs.{increment.input}: {spec.path} is at version {version}, but {increment.reader!r} has ingested "
            f"version {after}: the table was replaced. Run once with --set ingest.rebuild=true"
        )
    return dataclasses.replace(
        increment,
        parts=() if after == version else (Part(version),),
        after=after,
        has_change_feed=properties.get("delta.enableChangeDataFeed") == "true"
        and (after is None or _has_change_feed_between(spark, spec, int(after) + 1, int(version))),
    )


def delta_fingerprint(spark: SparkSession, name: str, spec: InputConfig) -> str:
    """Id and newest version of a Delta table.

    Raises:
        ConfigError: The table does not exist.
    """
    try:
        table = DeltaTable.forPath(spark, spec.path)
        version = one_row(table.history(1).select("version"))["version"]
        return f"{one_row(table.detail())['id']}:{version}"
    except AnalysisException as error:
        raise not_found(name, spec, error) from error


def _has_change_feed_between(spark: SparkSession, spec: InputConfig, first: int, last: int) -> bool:
    """Whether the change feed was enabled in all these versions; true for an empty range."""
    if first > last:
        return True
    feed = spark.read.format("delta").options(**spec.options).option("readChangeFeed", "true")
    try:
        feed.option("startingVersion", first).option("endingVersion", last).load(spec.path).isEmpty()
    except Exception as error:  # Delta raises different classes when the feed is planned and when it is read
        if "DELTA_MISSING_CHANGE_DATA" in str(error):
            return False
        raise
    return True
