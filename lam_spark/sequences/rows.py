"""Entries to rows of `sequences`: the latest `max_events` of a customer in order, truncated ones summarised.

A row is a function of the set of its customer's events, the vocabulary and the configuration. Only `finish_rows`
makes rows, both for a rebuild and for a merge of new events.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.sequences.entries import SequenceSpec, entry_array_type, entry_struct, entry_types

# One digit below Spark's maximal precision, so that two sums can be added without losing a decimal.
SUM_TYPE = "decimal(37,9)"
COUNTS_TYPE, SUMS_TYPE = "map<int,bigint>", f"map<string,{SUM_TYPE}>"
_NUMBER_TYPE = "decimal(27,9)"
# Sums of truncated events clip larger numbers to this: they would not fit the exact type.
_LARGEST = 1e17

# Columns that summarise truncated events: counts by token id of `model.count_by`, sums by numeric field. The decimal
# sums are exact and do not depend on the order of addition.
TRUNCATED_TYPES = {
    "first_known_at": "timestamp",
    "truncated_events": "bigint",
    "truncated_counts": COUNTS_TYPE,
    "truncated_sums": SUMS_TYPE,
}


def nothing_truncated() -> dict[str, Column]:
    """The columns of `TRUNCATED_TYPES` where no event is truncated."""
    return {
        name: F.lit(0 if name == "truncated_events" else None).cast(kind)
        for name, kind in TRUNCATED_TYPES.items()
    }


def finish_rows(customers: DataFrame, spec: SequenceSpec) -> DataFrame:
    """Rows of the table from a customer's entries; grain: a customer.

    Args:
        customers: `customer_key`, `_entries` (any order) and the columns of `TRUNCATED_TYPES`;
            `first_known_at` may be null. All truncated events come before the entries.
        spec: What determines a row.
    """
    ordered = customers.withColumn("_entries", F.sort_array("_entries")).withColumn(
        "_surplus", F.greatest(F.size("_entries") - spec.max_events, F.lit(0))
    )
    divided = ordered.withColumns(
        {
            "_kept": F.when(F.col("_surplus") == 0, F.col("_entries")).otherwise(
                F.slice("_entries", F.col("_surplus") + 1, spec.max_events)
            ),
            "_dropped": F.slice("_entries", F.lit(1), F.col("_surplus")),
        }
    )
    first = F.timestamp_micros(F.element_at("_entries.known_at", 1))
    return (
        divided.select(
            "customer_key",
            F.size("_kept").alias("seq_len"),
            (F.col("truncated_events") + F.size("_entries")).cast("bigint").alias("events_seen"),
            F.least("first_known_at", first).alias("first_known_at"),
            F.timestamp_micros(F.element_at("_kept.known_at", -1)).alias("last_known_at"),
            *(F.col(f"_kept.{name}").alias(name) for name in entry_types(spec)),
            (F.col("truncated_events") + F.col("_surplus")).cast("bigint").alias("truncated_events"),
            _total_counts(spec.count_by).alias("truncated_counts"),
            _total_sums(spec.numeric).alias("truncated_sums"),
            "_kept",
        )
        .select("*", _row_hash().alias("seq_hash"))
        .drop("_kept")
    )


def _row_hash() -> Column:
    """Hash of all values of a row.

    Spark's hash skips nulls; `_nulls` of the entries records which numbers are null.
    """
    maps = [F.array_sort(F.map_entries(name)) for name in ("truncated_counts", "truncated_sums")]
    return F.xxhash64("_kept", "first_known_at", "truncated_events", *maps)


def merge_entries(stored: DataFrame, fresh: DataFrame, spec: SequenceSpec) -> DataFrame:
    """Merge new events into stored rows; grain: a customer of `fresh`, with or without a stored row.

    Args:
        stored: Rows of the table.
        fresh: From `Assembler.gather`; none of the events may be in the stored row already.
        spec: What determines a row.

    Returns:
        Customers as `finish_rows` takes them.
    """
    array = entry_array_type(spec)
    zipped = F.arrays_zip(*entry_types(spec))
    stored_entries = F.transform(zipped, lambda values: entry_struct(spec, values)).cast(array)
    renamed = stored.select(
        "customer_key",
        stored_entries.alias("_stored_entries"),
        *(F.col(name).alias(f"_stored_{name}") for name in TRUNCATED_TYPES),
    )
    no_entries = F.array().cast(array)
    entries = F.concat(F.coalesce("_stored_entries", no_entries), F.col("_entries").cast(array))
    stored_events = F.coalesce("_stored_truncated_events", F.lit(0))
    return fresh.join(renamed, "customer_key", "left").select(
        "customer_key",
        entries.alias("_entries"),
        F.least("_stored_first_known_at", "first_known_at").alias("first_known_at"),
        (stored_events + F.col("truncated_events")).alias("truncated_events"),
        *(
            _map_sum(F.col(f"_stored_{name}"), F.col(name), TRUNCATED_TYPES[name]).alias(name)
            for name in ("truncated_counts", "truncated_sums")
        ),
    )


def exact_number(number: Column) -> Column:
    """A float as a decimal that sums exactly; null stays null."""
    bounded = F.greatest(F.least(number.cast("double"), F.lit(_LARGEST)), F.lit(-_LARGEST))
    return F.when(number.isNotNull(), bounded).cast(_NUMBER_TYPE)


def sorted_map(entries: Column) -> Column:
    """A map with its entries in the order of the keys, so that equal maps have equal bytes."""
    return F.map_from_entries(F.array_sort(F.map_entries(entries)))


def _total_counts(count_by: str) -> Column:
    """`truncated_counts` plus the counts of the dropped entries, from runs of the sorted ids."""
    ids = F.sort_array(F.col(f"_dropped.{count_by}"))
    distinct = F.array_distinct(ids)

    def run_length(value: Column, index: Column) -> Column:
        following = F.get(distinct, index + 1)
        end = F.coalesce(F.array_position(ids, following), F.size(ids).cast("bigint") + 1)
        return end - F.array_position(ids, value)

    dropped = F.map_from_arrays(distinct, F.transform(distinct, run_length))
    counts = F.col("truncated_counts")
    return F.when(F.col("_surplus") == 0, counts).otherwise(_map_sum(counts, dropped, COUNTS_TYPE))


def _map_sum(left: Column, right: Column, kind: str) -> Column:
    """Sum of two maps of numbers (null: empty) by key; null where both are null."""
    zero = F.lit(0)
    total = F.map_zip_with(left, right, lambda _, a, b: F.coalesce(a, zero) + F.coalesce(b, zero))
    either = F.coalesce(left, right).cast(kind)
    return F.when(left.isNull() | right.isNull(), either).otherwise(sorted_map(total).cast(kind))


def _total_sums(numeric: tuple[str, ...]) -> Column:
    """`truncated_sums` plus the numbers of the dropped entries."""
    zero = F.lit(0).cast(SUM_TYPE)
    no_number = F.lit(0).cast(_NUMBER_TYPE)

    def total(name: str) -> Column:
        dropped = F.aggregate(
            F.col(f"_dropped.{name}"),
            zero,
            lambda sum_, number: (sum_ + F.coalesce(exact_number(number), no_number)).cast(SUM_TYPE),
        )
        return (F.coalesce(F.element_at("truncated_sums", F.lit(name)), zero) + dropped).cast(SUM_TYPE)

    if not numeric:
        return F.col("truncated_sums")
    sums = F.create_map(*(part for name in sorted(numeric) for part in (F.lit(name), total(name))))
    return F.when(F.col("_surplus") == 0, F.col("truncated_sums")).otherwise(sums).cast(SUMS_TYPE)
