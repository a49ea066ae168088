"""Entries to rows of `sequences`: the latest `max_events` of a customer in order, the older ones summed up.

A row is a function of the set of its customer's events, the vocabulary and the configuration: `finished` is
the only place that makes one, for a whole build and for a merge of new events alike.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sequences.entries import entry, entry_types

# One digit less than Spark's widest sum, so that two of these add without losing a decimal.
_SUM = "decimal(37,9)"
_COUNTS, _SUMS = "map<int,bigint>", f"map<string,{_SUM}>"
# Larger numbers count as this in the sums of older events: they would not fit the exact type.
_LARGEST = 1e17


def truncated_types(config: Config) -> dict[str, str]:
    """Column -> Spark type of what is known of the events that a row no longer holds.

    `truncated_counts` is by token id of `model.count_by`, `truncated_sums` by numeric field; both exact, whatever
    the order of adding.
    """
    return {
        "first_event_time": "timestamp",
        "truncated_events": "bigint",
        "truncated_counts": _COUNTS,
        "truncated_sums": _SUMS,
    }


def nothing_truncated() -> dict[str, Column]:
    """The columns of `truncated_types` where nothing is left out."""
    return {
        "first_event_time": F.lit(None).cast("timestamp"),
        "truncated_events": F.lit(0).cast("bigint"),
        "truncated_counts": F.lit(None).cast(_COUNTS),
        "truncated_sums": F.lit(None).cast(_SUMS),
    }


def entry_array(config: Config) -> str:
    """Spark type of a customer's entries (`entry`)."""
    types = entry_types(config) | {"_lacking": "bigint"}
    return f"array<struct<{','.join(f'{name}:{kind}' for name, kind in types.items())}>>"


def finished(customers: DataFrame, config: Config) -> DataFrame:
    """Rows of the table from `customer_key`, `entries` (any order) and the columns of `truncated_types`.

    `first_event_time` may be null there; the older events must all lie before the entries.
    """
    limit = config.sequences.max_events
    ordered = customers.withColumn("entries", F.sort_array("entries")).withColumn(
        "_surplus", F.greatest(F.size("entries") - limit, F.lit(0))
    )
    cut = ordered.withColumns(
        {
            "_kept": F.when(F.col("_surplus") == 0, F.col("entries")).otherwise(
                F.slice("entries", F.col("_surplus") + 1, limit)
            ),
            "_dropped": F.slice("entries", F.lit(1), F.col("_surplus")),
        }
    )
    first = F.timestamp_micros(F.element_at("entries.event_time", 1))
    return (
        cut.select(
            "customer_key",
            F.size("_kept").alias("seq_len"),
            (F.col("truncated_events") + F.size("entries")).cast("bigint").alias("events_seen"),
            F.least("first_event_time", first).alias("first_event_time"),
            F.timestamp_micros(F.element_at("_kept.event_time", -1)).alias("last_event_time"),
            *(F.col(f"_kept.{name}").alias(name) for name in entry_types(config)),
            (F.col("truncated_events") + F.col("_surplus")).cast("bigint").alias("truncated_events"),
            _added_counts(config.model.count_by).alias("truncated_counts"),
            _added_sums(config.numeric).alias("truncated_sums"),
            "_kept",
        )
        .select("*", _hash().alias("seq_hash"))
        .drop("_kept")
    )


def _hash() -> Column:
    """Of all that a row holds.

    Spark's hash passes over nulls: which numbers an event lacks, its entry's `_lacking` tells.
    """
    maps = [F.array_sort(F.map_entries(name)) for name in ("truncated_counts", "truncated_sums")]
    return F.xxhash64("_kept", "first_event_time", "truncated_events", *maps)


def merged(stored: DataFrame, fresh: DataFrame, config: Config) -> DataFrame:
    """Stored rows of the table and newly gathered customers, as `finished` takes them.

    Grain: a customer of `fresh`, as `gather.gathered` gives them, with or without a row in `stored`. Their
    events must not be in the row already.
    """
    names = list(entry_types(config))
    entries = F.transform(F.arrays_zip(*names), lambda held: entry(config, held)).cast(entry_array(config))
    older = list(truncated_types(config))
    old = stored.select(
        "customer_key",
        entries.alias("stored_entries"),
        *(F.col(name).alias(f"stored_{name}") for name in older),
    )
    nothing = F.array().cast(entry_array(config))
    both = F.concat(F.coalesce("stored_entries", nothing), F.col("entries").cast(entry_array(config)))
    zero = F.lit(0)
    return fresh.join(old, "customer_key", "left").select(
        "customer_key",
        both.alias("entries"),
        F.least("stored_first_event_time", "first_event_time").alias("first_event_time"),
        (F.coalesce("stored_older_events", zero) + F.col("truncated_events")).alias("truncated_events"),
        *(
            _map_sum(F.col(f"stored_{name}"), F.col(name), kind).alias(name)
            for name, kind in (("truncated_counts", _COUNTS), ("truncated_sums", _SUMS))
        ),
    )


def exact(number: Column) -> Column:
    """A float as a decimal that sums exactly; null stays null."""
    bounded = F.greatest(F.least(number.cast("double"), F.lit(_LARGEST)), F.lit(-_LARGEST))
    return F.when(number.isNotNull(), bounded).cast("decimal(27,9)")


def canonical(counted: Column) -> Column:
    """A map with its entries in the order of the keys: equal maps are then equal bytes."""
    return F.map_from_entries(F.array_sort(F.map_entries(counted)))


def _added_counts(name: str) -> Column:
    """`truncated_counts` and the dropped entries' values of the field, by runs of the sorted ids."""
    ids = F.sort_array(F.col(f"_dropped.{name}"))
    distinct = F.array_distinct(ids)

    def run_length(value: Column, place: Column) -> Column:
        after = F.get(distinct, place + 1)
        end = F.coalesce(F.array_position(ids, after), F.size(ids).cast("bigint") + 1)
        return end - F.array_position(ids, value)

    fresh = F.map_from_arrays(distinct, F.transform(distinct, run_length))
    held = F.col("truncated_counts")
    return F.when(F.col("_surplus") == 0, held).otherwise(_map_sum(held, fresh, _COUNTS))


def _map_sum(left: Column, right: Column, kind: str) -> Column:
    """Two maps of numbers (null: empty) added by key; null where both are."""
    zero = F.lit(0)
    both = F.map_zip_with(left, right, lambda _, a, b: F.coalesce(a, zero) + F.coalesce(b, zero))
    either = F.coalesce(left, right).cast(kind)
    return F.when(left.isNull() | right.isNull(), either).otherwise(canonical(both).cast(kind))


def _added_sums(names: tuple[str, ...]) -> Column:
    """`truncated_sums` and the dropped entries' numbers."""
    zero = F.lit(0).cast(_SUM)

    def total(name: str) -> Column:
        dropped = F.aggregate(
            F.col(f"_dropped.{name}"),
            zero,
            lambda held, number: (held + F.coalesce(exact(number), F.lit(0).cast("decimal(27,9)"))).cast(
                _SUM
            ),
        )
        return (F.coalesce(F.element_at("truncated_sums", F.lit(name)), zero) + dropped).cast(_SUM)

    if not names:
        return F.col("truncated_sums")
    sums = F.create_map(*(part for name in sorted(names) for part in (F.lit(name), total(name))))
    return F.when(F.col("_surplus") == 0, F.col("truncated_sums")).otherwise(sums).cast(_SUMS)
