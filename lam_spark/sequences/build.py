"""Events to what `rows.finished` takes: each customer's entries, with the far past summed up.

Keys of 32 characters would be most of what is hashed, shuffled and compared. So customers are told by a number,
a hash that is checked to have no two of them; the keys come back when there is one row a customer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.runtime.context import Run
from lam_spark.sequences.customers import MOST_BROADCAST
from lam_spark.sequences.entries import entries_of, entry
from lam_spark.sequences.rows import finished, nothing_truncated
from lam_spark.sequences.truncation import heavy_starts, truncated_summaries
from lam_spark.sequences.vocabulary import same_text

# What a task sorts and writes: some 50 MB of entries, whatever the size of the table.
_EVENTS_OF_TASK = 250_000
# A summary of the far past is some kilobytes: so many of them are sent to every executor.
_MOST_SUMMARIES = 20_000


@dataclass(frozen=True)
class Assembler:
    """Makes rows of `sequences` from events.

    Attributes:
        run: its configuration says what a row holds; run the queries within `BUILD_SETTINGS`.
        vocabulary: encodes the events.
    """

    run: Run
    vocabulary: DataFrame

    def rows(self, events: DataFrame, customers: DataFrame, count: int, longest: int) -> DataFrame:
        """The rows of those of `customers` who have an event; they do not depend on the order of events.

        Args:
            events: those that may be seen, of anybody, in any order.
            customers: a column `customer_key`, unique: whose rows are made.
            count: about how many events these customers have; so many tasks share the work.
            longest: none of them has more events than this.
        """
        return finished(self.gathered(events, customers, count, longest), self.run.config)

    def gathered(self, events: DataFrame, customers: DataFrame, count: int, longest: int) -> DataFrame:
        """`customer_key`, `entries` (no order) and the columns of `truncated_types`; grain: a customer.

        `entries` are all events of a customer, of a heavy one only the latest (at least `max_events`).
        Arguments as of `rows`. One shuffle, by customer; a task holds its entries in memory.
        """
        limit = self.run.config.sequences.max_events
        heavy = self.run.keep(heavy_starts(events, limit))
        heavies = heavy.count() if longest > 2 * limit else 0
        number, numbered, few = self._numbered(customers)

        def of(customers: DataFrame) -> DataFrame:
            """The events of numbered customers, without their keys."""
            known = customers.withColumnRenamed("customer_key", "_known_key")
            same = (number == F.col("customer")) & same_text(F.col("customer_key"), F.col("_known_key"))
            return events.join(known.hint("broadcast") if few else known, same).drop(
                "customer_key", "_known_key"
            )

        known = numbered.join(heavy, "customer_key", "left") if heavies else numbered
        latest = of(known).where(~_is_older()) if heavies else of(known)
        grouped = self._grouped(latest, max(2, math.ceil(count / _EVENTS_OF_TASK)))
        older = nothing_truncated()
        if heavies:
            theirs = of(numbered.join(heavy, "customer_key")).where(_is_older())
            summaries = truncated_summaries(theirs, self.vocabulary, self.run.config)
            summaries = summaries.hint("broadcast") if heavies <= _MOST_SUMMARIES else summaries
            grouped = grouped.join(summaries, "customer", "left")
            older = {name: F.coalesce(F.col(name), nothing) for name, nothing in older.items()}
        keys = numbered.hint("broadcast" if few else "shuffle_hash")
        return grouped.withColumns(older).join(keys, "customer").drop("customer")

    def _grouped(self, events: DataFrame, tasks: int) -> DataFrame:
        """`customer` and `entries`."""
        entries = entries_of(events, self.vocabulary, self.run.config, "customer")
        return (
            # A struct before the shuffle is copied as one piece after it.
            entries.select("customer", entry(self.run.config).alias("entry"))
            .repartition(tasks, "customer")
            .groupBy("customer")
            .agg(F.collect_list("entry").alias("entries"))
        )

    def _numbered(self, customers: DataFrame) -> tuple[Column, DataFrame, bool]:
        """The number of a `customer_key`; the customers with theirs (`customer`), and whether they are few."""
        for salt in itertools.count():
            number = F.xxhash64("customer_key", F.lit(salt))
            numbered = self.run.keep(customers.select("customer_key", number.alias("customer")))
            told = numbered.agg(F.count("*"), F.count_distinct("customer")).first()
            assert told is not None  # an aggregate without keys gives one row
            if told[0] == told[1]:
                return number, numbered, told[0] <= MOST_BROADCAST
        raise AssertionError  # the loop has no other end


def _is_older() -> Column:
    """Whether an event lies before its customer's start, where there is one (`heavy_starts`)."""
    time, start = F.unix_micros("event_time"), F.col("start_time")
    before = (time < start) | ((time == start) & (F.col("event_order") < F.col("start_order")))
    return F.coalesce(before, F.lit(False))
