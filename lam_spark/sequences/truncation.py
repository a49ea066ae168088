"""Customers with very long histories: their truncated events are summarised before they are collected.

Otherwise a task would hold every event of such a customer in memory. A sample finds these customers; the result does
not depend on it, because a customer that it misses has at most a few times `max_events` and `rows.finish_rows`
truncates exactly.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.sequences.entries import ENTRY_ORDER, SequenceSpec
from lam_spark.sequences.rows import COUNTS_TYPE, SUM_TYPE, SUMS_TYPE, exact_number, sorted_map
from lam_spark.sequences.vocabulary import encode

# Sampled events among a customer's latest `max_events` (where `max_events` is larger). The chance that a start
# leaves fewer than `max_events` events is then below 1e-12.
_SAMPLED = 512


def long_history_starts(events: DataFrame, max_events: int) -> DataFrame:
    """Where to divide the history of each customer with a very long one; grain: such a customer.

    About `2 * max_events` events are at or after `_start`, never fewer than `max_events`. Cost: one scan of four
    columns and a sort of a sample.

    Returns:
        Columns `customer_key`, `_start` (a struct of `ENTRY_ORDER`).
    """
    rate = min(1.0, _SAMPLED / max_events)
    newest_first = Window.partitionBy("customer_key").orderBy(*map(F.desc, ENTRY_ORDER))
    sampled = events.select("customer_key", *ENTRY_ORDER)
    if rate < 1:
        sampled = sampled.sample(rate, seed=1)
    return (
        sampled.withColumn("_row_number", F.row_number().over(newest_first))
        .where(F.col("_row_number") == int(2 * max_events * rate))
        .select("customer_key", F.struct(*ENTRY_ORDER).alias("_start"))
    )


def summarise_truncated(truncated: DataFrame, vocabulary: DataFrame, spec: SequenceSpec) -> DataFrame:
    """Summaries of truncated events: `_customer` and the columns of `rows.TRUNCATED_TYPES`; grain: a customer.

    Partial sums are computed before the shuffle, so that millions of events of one customer shuffle few rows.
    """
    encoded = encode(truncated, vocabulary, [spec.count_by])
    by_value = encoded.groupBy("_customer", spec.count_by).agg(
        F.count("*").alias("_events"),
        F.min("known_at").alias("_first"),
        *(F.sum(exact_number(F.col(name).cast("float"))).alias(f"_sum_{name}") for name in spec.numeric),
    )
    counts = F.map_from_entries(F.collect_list(F.struct(spec.count_by, "_events")))
    sums = [
        part
        for name in sorted(spec.numeric)
        for part in (F.lit(name), F.coalesce(F.sum(f"_sum_{name}"), F.lit(0)).cast(SUM_TYPE))
    ]
    return by_value.groupBy("_customer").agg(
        F.min("_first").alias("first_known_at"),
        F.sum("_events").alias("truncated_events"),
        sorted_map(counts).cast(COUNTS_TYPE).alias("truncated_counts"),
        (F.create_map(*sums) if sums else F.lit(None)).cast(SUMS_TYPE).alias("truncated_sums"),
    )
