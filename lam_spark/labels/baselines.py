"""Scores of a target's baseline: a SQL aggregate over the customer's events that are known earlier."""

from __future__ import annotations

import datetime as dt

from pyspark.errors import ArithmeticException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import TargetConfig
from lam_spark.events.known_at import known_before
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.time import micros


def baseline_scores(
    target: TargetConfig, queries: DataFrame, events: DataFrame, as_of: dt.datetime, max_events: int
) -> tuple[DataFrame, float | None]:
    """Score each query by the target's `baseline` over the events of `baseline_filter` that are known before it.

    `count(*)` is a running count over each customer's time. Any other aggregate needs pairs of queries and earlier
    events. They are bounded by `max_events` per customer: only the latest `max_events` events before a query are
    used, and queries followed by more events than that are left out, because no row of `sequences` reaches back to
    them. Cost: one sort by customer and time, and at most a few times the square of `max_events` pairs.

    Args:
        target: Defines the baseline.
        queries: From `target_queries` (alias `query`).
        events: Events of customers eligible for training.
        as_of: Only events known before this instant are used.
        max_events: `sequences.max_events`.

    Returns:
        Columns `event_id` and `baseline_score` of the queries with such events, and the score without any event.
    """
    filtered = known_before(events.where(F.expr(target.baseline_filter)), micros(as_of))
    query_rows = queries.select(
        "query.customer_key", "query.known_at", F.col("query.event_id").alias("query_id")
    )
    both = filtered.withColumn("query_id", F.lit(None).cast("string")).unionByName(query_rows, True)
    is_query = F.col("query_id").isNotNull()
    by_customer = Window.partitionBy("customer_key")
    earlier = by_customer.orderBy(F.unix_micros("known_at")).rangeBetween(Window.unboundedPreceding, -1)
    counted = both.withColumn("_events_before", F.count_if(~is_query).over(earlier))
    if target.baseline == "count(*)":
        count = F.col("_events_before").cast("double").alias("baseline_score")
        return counted.where(is_query).select(F.col("query_id").alias("event_id"), count), 0.0
    events_after = F.count_if(~is_query).over(by_customer) - F.col("_events_before")
    counted = counted.withColumn("_events_after", events_after)
    pairs = _pairs(counted, is_query, max_events, events.columns)
    baseline = F.expr(f"CAST({target.baseline} AS DOUBLE)").alias("baseline_score")
    scores = pairs.groupBy("query_id").agg(baseline).withColumnRenamed("query_id", "event_id")
    return scores, _score_without_events(pairs, baseline)


def _pairs(counted: DataFrame, is_query: Column, max_events: int, event_columns: list[str]) -> DataFrame:
    """Queries (`query_id`, `as_of`) with each of their latest `max_events` events (alias `before`)."""
    queries = counted.where(is_query & (F.col("_events_after") <= max_events)).select(
        "customer_key", F.col("known_at").alias("as_of"), "query_id", "_events_before"
    )
    events = counted.where(~is_query & (F.col("_events_after") <= 2 * max_events)).drop("query_id")
    is_earlier = (
        (F.col("query.customer_key") == F.col("before.customer_key"))
        & (F.col("before.known_at") < F.col("query.as_of"))
        & (F.col("query._events_before") - F.col("before._events_before") <= max_events)
    )
    return (
        queries.alias("query")
        .join(events.alias("before"), is_earlier)
        .select("query.query_id", "query.as_of", *(F.col(f"before.{name}") for name in event_columns))
    )


def _score_without_events(pairs: DataFrame, baseline: Column) -> float | None:
    """The baseline over no events: 0 for a count, None for a latest time."""
    try:
        score = one_row(pairs.where(F.lit(False)).agg(baseline))[0]
    except ArithmeticException:  # a share of zero events divides by zero
        return None
    return None if score is None else float(score)
