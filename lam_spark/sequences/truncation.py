"""Customers with far more events than a row holds: their old events are summed up where they lie.

Without this a task would hold every event of a customer at once. A sample finds them, the result does not
depend on it: whoever it overlooks has at most a few times `max_events`, and `rows.finished` cuts exactly.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sequences.rows import _COUNTS, _SUM, canonical, exact
from lam_spark.sequences.vocabulary import encode

# Of a customer's latest `max_events` this many are in the sample (if max_events is larger than it). The
# chance that twice `max_events` are taken for fewer than `max_events` is then below 1e-12.
_SAMPLED = 512


def heavy_starts(events: DataFrame, max_events: int) -> DataFrame:
    """`customer_key, start_time` (microseconds), `start_order`; grain: a customer with too many events.

    About `2 * max_events` events are at or after (start_time, start_order), never fewer than `max_events`.
    Cost: one scan of three columns; a sample of them is sorted.
    """
    rate = min(1.0, _SAMPLED / max_events)
    latest = Window.partitionBy("customer_key").orderBy(F.desc("event_time"), F.desc("start_order"))
    sampled = events.select("customer_key", "event_time", F.col("event_order").alias("start_order"))
    if rate < 1:
        sampled = sampled.sample(rate, seed=1)
    return (
        sampled.withColumn("place", F.row_number().over(latest))
        .where(F.col("place") == int(2 * max_events * rate))
        .select("customer_key", F.unix_micros("event_time").alias("start_time"), "start_order")
    )


def truncated_summaries(older: DataFrame, vocabulary: DataFrame, config: Config) -> DataFrame:
    """`customer` and the columns of `truncated_types`; grain: a customer of the events `older`.

    Sums are partly made before the shuffle, so that a customer of millions of events costs it nothing.
    """
    counted = config.model.count_by
    encoded = encode(older, vocabulary, [counted])
    by_value = encoded.groupBy("customer", counted).agg(
        F.count("*").alias("events"),
        F.min("event_time").alias("first"),
        *(F.sum(exact(F.col(name).cast("float"))).alias(f"sum_{name}") for name in config.numeric),
    )
    pairs = F.map_from_entries(F.collect_list(F.struct(counted, "events")))
    sums = [
        part
        for name in sorted(config.numeric)
        for part in (F.lit(name), F.coalesce(F.sum(f"sum_{name}"), F.lit(0)).cast(_SUM))
    ]
    return by_value.groupBy("customer").agg(
        F.min("first").alias("first_event_time"),
        F.sum("events").alias("truncated_events"),
        canonical(pairs).cast(_COUNTS).alias("truncated_counts"),
        (F.create_map(*sums) if sums else F.lit(None)).cast(f"map<string,{_SUM}>").alias("truncated_sums"),
    )
