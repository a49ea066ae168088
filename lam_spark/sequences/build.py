"""Rows of `sequences` from events: each customer's entries, with the truncated history summarised.

Keys of 32 characters would dominate hashing, shuffling and comparing. Customers are therefore identified by a 64-bit
hash that is checked to be unique; the keys are joined back when there is one row per customer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.sequences.entries import ENTRY_ORDER, SequenceSpec, entry_struct, event_entries
from lam_spark.sequences.rows import finish_rows, nothing_truncated
from lam_spark.sequences.truncation import long_history_starts, summarise_truncated
from lam_spark.sequences.vocabulary import same_text
from lam_spark.storage.dataframes import FrameCache, one_row

# Spark settings for the queries of a build (`storage.session_settings`).
BUILD_SETTINGS = {
    # Spark would fall back to sorting after 128 customers. The events of a task fit into memory (`Assembler`).
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": str(2**31 - 1),
    # Almost all values are distinct: a dictionary would be built in vain.
    "parquet.enable.dictionary#known_at.list.element": "false",
    "parquet.enable.dictionary#event_time.list.element": "false",
    "parquet.enable.dictionary#event_order.list.element": "false",
}

# Events per task that sorts and writes: about 50 MB of entries.
_EVENTS_PER_TASK = 250_000
# Summaries of truncated histories take some kilobytes each; more than this are not broadcast.
_MAX_BROADCAST_SUMMARIES = 20_000
# More customers than this are not broadcast: events are shuffled to them instead.
_MAX_BROADCAST_CUSTOMERS = 2_000_000


def broadcast_if_few(customers: DataFrame) -> DataFrame:
    """Cached customers as one side of a join with events: few are broadcast, so that events are not shuffled."""
    return customers.hint("broadcast") if customers.count() <= _MAX_BROADCAST_CUSTOMERS else customers


@dataclass(frozen=True)
class Assembler:
    """Makes rows of `sequences` from events. Run the queries with `BUILD_SETTINGS`.

    Attributes:
        cache: Cache of the stage.
        spec: What determines a row.
        vocabulary: Table that encodes the events.
    """

    cache: FrameCache
    spec: SequenceSpec
    vocabulary: DataFrame

    def rows(self, events: DataFrame, customers: DataFrame, event_count: int, longest: int) -> DataFrame:
        """Rows of those of `customers` who have an event, independent of the order of the events.

        Args:
            events: Events of any customers that are known before `as_of`, in any order.
            customers: Column `customer_key`, unique.
            event_count: Approximate number of events of these customers; determines the number of tasks.
            longest: Upper bound of the events of one of them.
        """
        return finish_rows(self.gather(events, customers, event_count, longest), self.spec)

    def gather(self, events: DataFrame, customers: DataFrame, event_count: int, longest: int) -> DataFrame:
        """Entries by customer: `customer_key`, `_entries` (unordered) and the columns of `rows.TRUNCATED_TYPES`.

        Grain: a customer with an event. `_entries` holds all events, or for a very long history only the latest
        ones, at least `max_events`. Arguments as in `rows`. One shuffle by customer; a task holds its entries in
        memory.
        """
        max_events = self.spec.max_events
        starts = self.cache(long_history_starts(events, max_events))
        start_count = starts.count() if longest > 2 * max_events else 0
        number, numbered, are_few = self._number_customers(customers)

        def events_of(customers: DataFrame) -> DataFrame:
            """Events of numbered customers, without the keys."""
            renamed = customers.withColumnRenamed("customer_key", "_known_key")
            same_key = same_text(F.col("customer_key"), F.col("_known_key"))
            same = (number == F.col("_customer")) & same_key
            side = renamed.hint("broadcast") if are_few else renamed
            return events.join(side, same).drop("customer_key", "_known_key")

        with_starts = numbered.join(starts, "customer_key", "left") if start_count else numbered
        latest = events_of(with_starts).where(~_is_truncated()) if start_count else events_of(with_starts)
        grouped = self._group(latest, max(2, math.ceil(event_count / _EVENTS_PER_TASK)))
        truncated = nothing_truncated()
        if start_count:
            early = events_of(numbered.join(starts, "customer_key")).where(_is_truncated())
            summaries = summarise_truncated(early, self.vocabulary, self.spec)
            if start_count <= _MAX_BROADCAST_SUMMARIES:
                summaries = summaries.hint("broadcast")
            grouped = grouped.join(summaries, "_customer", "left")
            truncated = {name: F.coalesce(F.col(name), nothing) for name, nothing in truncated.items()}
        keys = numbered.hint("broadcast" if are_few else "shuffle_hash")
        return grouped.withColumns(truncated).join(keys, "_customer").drop("_customer")

    def _group(self, events: DataFrame, tasks: int) -> DataFrame:
        """`_customer` and `_entries`; grain: a customer."""
        entries = event_entries(events, self.vocabulary, self.spec, "_customer")
        return (
            # A struct built before the shuffle is copied as one piece after it.
            entries.select("_customer", entry_struct(self.spec).alias("_entry"))
            .repartition(tasks, "_customer")
            .groupBy("_customer")
            .agg(F.collect_list("_entry").alias("_entries"))
        )

    def _number_customers(self, customers: DataFrame) -> tuple[Column, DataFrame, bool]:
        """Assign a unique number to each customer.

        Returns:
            The number as an expression over `customer_key`; the customers with the column `_customer`; and
            whether they are few enough to broadcast.
        """
        for salt in itertools.count():
            number = F.xxhash64("customer_key", F.lit(salt))
            numbered = self.cache(customers.select("customer_key", number.alias("_customer")))
            count, distinct = one_row(numbered.agg(F.count("*"), F.count_distinct("_customer")))
            if count == distinct:
                return number, numbered, count <= _MAX_BROADCAST_CUSTOMERS
        raise AssertionError  # the loop has no other end


def _is_truncated() -> Column:
    """Whether an event is before its customer's start (`long_history_starts`), where there is one."""
    order = F.struct(*(F.col(name).alias(name) for name in ENTRY_ORDER))
    # A null start compares as null.
    return F.coalesce(order < F.col("_start"), F.lit(False))
