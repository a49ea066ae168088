"""Events to what `rows.finished` takes: each customer's entries, with the far past summed up."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sequences.entries import entries_of
from lam_spark.sequences.heavy import heavy_starts, is_older, older_summaries
from lam_spark.sequences.rows import collected, finished, no_older, older_types


def assemble(events: DataFrame, vocabulary: DataFrame, config: Config) -> DataFrame:
    """One row a customer from events in any order; the result does not depend on their order."""
    return finished(gathered(events, vocabulary, config), config)


def gathered(events: DataFrame, vocabulary: DataFrame, config: Config) -> DataFrame:
    """`customer_key`, `entries` (no order) and the columns of `older_types`; grain: a customer.

    `entries` are all events of a customer, of a heavy one only the latest (at least `max_events`).
    """
    heavy = heavy_starts(events, config.sequences.max_events).persist(StorageLevel.MEMORY_AND_DISK)
    if heavy.isEmpty():
        heavy.unpersist()
        return collected(entries_of(events, vocabulary, config), config).withColumns(no_older())
    marked = events.join(heavy, "customer_key", "left").withColumn(
        "is_older", F.coalesce(is_older(F.unix_micros("event_time")), F.lit(False))
    )
    latest = collected(entries_of(marked.where("NOT is_older"), vocabulary, config), config)
    summaries = older_summaries(marked.where("is_older"), vocabulary, config)
    defaults = no_older()
    return latest.join(summaries, "customer_key", "left").select(
        "customer_key",
        "entries",
        *(F.coalesce(F.col(name), defaults[name]).alias(name) for name in older_types(config)),
    )
