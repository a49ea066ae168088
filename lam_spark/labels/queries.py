"""Queries of a target: the points in time at which the model predicts, with the end of their horizon."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Periods, TargetConfig
from lam_spark.storage.wall_clock import local_day, plus_local_days, start_of_local_day


def target_queries(
    target: TargetConfig, events: DataFrame, periods: Periods, as_of: dt.date, time_zone: str
) -> DataFrame:
    """Queries of a target; grain: a query; the columns of `events` and `label_end`.

    `event_time` and `known_at` of a query are the instant at which it is asked: for an event, the one at which it is
    known. Of a channel without delay and a customer's own id, that is the time of the event.

    Args:
        target: Events of its `population` are queries, or every customer with recent activity has one
            every `every_days` days.
        events: Events of customers eligible for training.
        periods: Regular queries begin with each period.
        as_of: Regular queries are before it.
        time_zone: IANA zone of the data set.
    """
    queries = _population(target, events, periods, as_of, time_zone)
    horizon, is_whole = horizon_days(target)
    # Whole local days: a horizon across a clock change ends at local midnight, not an hour off.
    days = F.when(is_whole, horizon.cast("int"))
    label_end = plus_local_days(F.col("query.event_time"), days, time_zone)
    return queries.alias("query").withColumn("label_end", label_end)


def horizon_days(target: TargetConfig) -> tuple[Column, Column]:
    """A query's horizon in days (null: no horizon), and whether it is a whole number from 1."""
    horizon = F.expr(f"CAST({target.horizon_days} AS DOUBLE)")
    return horizon, (horizon >= 1) & (horizon == F.floor(horizon))


def _population(
    target: TargetConfig, events: DataFrame, periods: Periods, as_of: dt.date, time_zone: str
) -> DataFrame:
    if target.population is not None:
        # The condition sees the event as it is in the table.
        return events.where(F.expr(target.population)).withColumn("event_time", F.col("known_at"))
    return _regular_queries(target, events, periods, as_of, time_zone)


def _regular_queries(
    target: TargetConfig, events: DataFrame, periods: Periods, as_of: dt.date, time_zone: str
) -> DataFrame:
    """Queries without fields at local midnight every `every_days` days, of customers with recent activity.

    An event makes a customer active from the day after it is known. Days are counted from the start of each period, so
    that each has queries. Cost: distinct days of activity, not events, times the days that they reach.
    """
    assert target.every_days is not None  # the caller checks
    days = [F.lit(day) for day in periods.regular_days(target.every_days, as_of)]
    active = (
        events.where(F.expr(target.active))
        .select("customer_key", local_day(F.col("known_at"), time_zone).alias("_active_day"))
        .distinct()
    )

    def is_recent(day: Column) -> Column:
        active_day = F.col("_active_day")
        return (day > active_day) & (F.date_diff(day, active_day) <= target.active_days)

    recent = F.filter(F.array(*days).cast("array<date>"), is_recent)
    queries = active.select("customer_key", F.explode(recent).alias("_day")).distinct()
    values = {
        "customer_key": F.col("customer_key"),
        # Equal for all targets with a query on this day: the model sees one query (`columns.collect_queries`).
        "event_id": F.md5(F.concat_ws("|", "customer_key", F.col("_day").cast("string"))),
        "event_time": start_of_local_day(F.col("_day"), time_zone),
        "known_at": start_of_local_day(F.col("_day"), time_zone),
    }
    return queries.select(
        *(
            values.get(column.name, F.lit(None)).cast(column.dataType).alias(column.name)
            for column in events.schema.fields
        )
    )
