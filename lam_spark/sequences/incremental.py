"""Updates `sequences` from what changed since the last build; a rebuild would give the same rows.

A customer who only gained events gets them merged into the stored row, without reading the history from `events`. A
customer who lost an event, became eligible, or has an event whose value was added to the vocabulary is rebuilt from
`events`. A customer who is no longer eligible is deleted.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, ConsentConfig, FieldConfig
from lam_spark.consent.changes import changed_eligibility, eligible_among, may_have_changed
from lam_spark.consent.guards import consent_check
from lam_spark.events.known_at import known_before
from lam_spark.sequences.build import BUILD_SETTINGS, Assembler
from lam_spark.sequences.entries import SequenceSpec
from lam_spark.sequences.lineage import RebuildNeeded, SequencesLineage
from lam_spark.sequences.rows import finish_rows, merge_entries
from lam_spark.sequences.time_range import require_as_of_within, time_range
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.sequences.vocabulary import count_values, encode, extend_vocabulary, top_ids
from lam_spark.storage.dataframes import FrameCache, one_row, union_all
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.publish import upsert
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import instant, micros, sql_literal

# If a larger share of the customers has to be rebuilt, rebuilding all costs no more.
_MAX_REBUILT_SHARE = 0.3
_ADD, _REBUILD, _DELETE = 1, 2, 3
# A rebuilt row is written only if one of these differs.
_ROW_IDENTITY = ("customer_key", "seq_hash")


@dataclass(frozen=True)
class UpdateResult:
    """What an update or a rebuild did.

    Attributes:
        lineage: Inputs of the table.
        values_added: New entries of the vocabulary.
        customers_added_to: Customers with events merged into their stored rows.
        customers_rebuilt: Customers whose rows were built from all their events.
        customers_deleted: Customers who are no longer eligible.
        rows_inserted: Rows of new customers.
        rows_replaced: Rows that changed.
        rows_deleted: Rows that were removed.
    """

    lineage: SequencesLineage
    values_added: int
    customers_added_to: int = 0
    customers_rebuilt: int = 0
    customers_deleted: int = 0
    rows_inserted: int = 0
    rows_replaced: int = 0
    rows_deleted: int = 0


class Increment:
    """What changed since the last build.

    Attributes:
        tables: Tables of the workspace.
        lineage: Inputs of the stored rows.
        events: Newest version of `events`.
        changes: Changes of `events` since: the table's columns and `_sign`, 1 for an added event and -1 for a
            removed one.
        eligibility: Customers whose eligibility changed (`consent.changes.changed_eligibility`); None if no
            statement was added or took effect.
        first_event, last_event: Time range of `events`, microseconds UTC.
        earliest_change: First `known_at` of the changes, microseconds UTC; None if there are none.
    """

    def __init__(
        self,
        tables: Tables,
        cache: FrameCache,
        consent: ConsentConfig,
        lineage: SequencesLineage,
        at: dt.datetime,
    ) -> None:
        self.tables, self.lineage = tables, lineage
        self._consent, self._at = consent, at
        self.events = tables.read("events")
        self.changes = cache(_signed_changes(tables, self.events.columns, lineage.events_version))
        check = lineage.consent_check
        self.eligibility: DataFrame | None = None
        if may_have_changed(tables, check, at):
            self.eligibility = cache(changed_eligibility(tables, cache, consent, check, at))
        self._read_time_range()

    def _read_time_range(self) -> None:
        """Set the time range and the earliest change; reads all events only after a deletion."""
        time = F.unix_micros("event_time")
        known = F.unix_micros("known_at")
        sign, first, last, earliest = one_row(
            self.changes.agg(F.min("_sign"), F.min(time), F.max(time), F.min(known))
        )
        self.earliest_change: int | None = earliest
        self.first_event, self.last_event = self.lineage.first_event, self.lineage.last_event
        if sign is not None and sign < 0:
            self.first_event, self.last_event = time_range(self.events)
        elif sign is not None:
            self.first_event, self.last_event = min(self.first_event, first), max(self.last_event, last)

    def changes_between(self, then: int, now: int) -> DataFrame:
        """Signed events that turn the earlier events known before `then` into the present ones known before `now`."""
        changes = known_before(self.changes, then)
        if then == now:
            return changes
        low, high = sorted((then, now))
        since = F.col("known_at") >= F.expr(sql_literal(instant(low)))
        between = known_before(self.events, high).where(since)
        signed = between.withColumn("_sign", F.lit(1 if now > then else -1))
        return union_all([changes, signed.select(*changes.columns)])

    def eligible_among(self, customers: DataFrame) -> DataFrame:
        """The rows of `customers` (column `customer_key`) that are eligible for training or for contact now."""
        return eligible_among(self.tables, self._consent, self._at, customers)


def _signed_changes(tables: Tables, columns: Sequence[str], since: int) -> DataFrame:
    is_added = F.col("_change_type").isin("insert", "update_postimage")
    feed = tables.changes("events", since)
    return feed.withColumn("_sign", F.when(is_added, 1).otherwise(-1)).select(*columns, "_sign")


def update(
    tables: Tables,
    cache: FrameCache,
    config: Config,
    lineage: SequencesLineage,
    cutoff: int,
    at: dt.datetime,
) -> UpdateResult | RebuildNeeded:
    """Update `vocabulary`, `value_counts` and `sequences`.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage; released at the end.
        config: Its `as_of` and all that rows depend on.
        lineage: Inputs of the stored rows.
        cutoff: The vocabulary holds values of events known before it, microseconds UTC.
        at: Instant at which consent statements must be effective.

    Raises:
        ConfigError: `as_of` is outside the events.
        ConsentError: No customer is eligible.
    """
    with cache.scope(), session_settings(tables.spark, BUILD_SETTINGS):
        increment = Increment(tables, cache, config.consent, lineage, at)
        first, last = increment.first_event, increment.last_event
        as_of = config.instant(config.as_of)
        require_as_of_within(as_of, first, last, config.quality, config.time_zone)
        value_counts_version = _update_vocabulary(increment, cache, config.fields, cutoff)
        vocabulary = cache(tables.read("vocabulary"))
        tops = top_ids(vocabulary)
        values_added = _count_values_added(lineage, tops)
        tasks = cache(_customer_tasks(increment, micros(as_of), values_added, config.categorical))
        counts = {row["_task"]: row["count"] for row in tasks.groupBy("_task").count().toLocalIterator()}
        replaced = counts.get(_REBUILD, 0) + counts.get(_DELETE, 0)
        if replaced and replaced > _MAX_REBUILT_SHARE * tables.read("sequences").count():
            return RebuildNeeded(f"{replaced:,} customers have to be rebuilt or deleted")
        updated = dataclasses.replace(
            lineage,
            events_version=tables.read_versions["events"],
            consent_check=consent_check(tables, config.consent.training_purpose, at),
            value_counts_version=value_counts_version,
            as_of=micros(as_of),
            vocabulary_cutoff=cutoff,
            first_event=first,
            last_event=last,
            top_ids=tops,
        )
        assembler = Assembler(cache, SequenceSpec.of(config), vocabulary)
        rows = _write(increment, assembler, tasks, updated, counts)
        return UpdateResult(
            lineage=updated,
            values_added=values_added,
            customers_added_to=counts.get(_ADD, 0),
            customers_rebuilt=counts.get(_REBUILD, 0),
            customers_deleted=counts.get(_DELETE, 0),
            **{f"rows_{name}": count for name, count in rows.items()},
        )


def _update_vocabulary(
    increment: Increment, cache: FrameCache, fields: Mapping[str, FieldConfig], cutoff: int
) -> int:
    """Update `value_counts` and the vocabulary; returns the version of `value_counts`."""
    tables, lineage = increment.tables, increment.lineage
    earliest = increment.earliest_change
    is_affected = earliest is not None and earliest < lineage.vocabulary_cutoff
    if cutoff == lineage.vocabulary_cutoff and increment.eligibility is None and not is_affected:
        return lineage.value_counts_version
    categorical = [name for name, field in fields.items() if field.kind == "categorical"]
    weighted = _weighted_events(increment, categorical, cutoff)
    differences = cache(count_values(weighted, categorical, F.col("_sign")).where("count <> 0"))
    if differences.isEmpty():
        return lineage.value_counts_version
    last_counts = tables.read("value_counts", lineage.value_counts_version)
    totals = (
        union_all([last_counts, differences]).groupBy("field", "value").agg(F.sum("count").alias("count"))
    )
    tables.overwrite(totals.where("count > 0"), "value_counts")
    extend_vocabulary(tables, fields, tables.read("value_counts"))
    return tables.version("value_counts")


def _weighted_events(increment: Increment, categorical: Sequence[str], cutoff: int) -> DataFrame:
    """Events by which the counted events differ from those of the last build; `_sign` is 1 or -1."""
    last_cutoff = increment.lineage.vocabulary_cutoff
    changed = increment.changes_between(last_cutoff, cutoff)
    trained = increment.eligible_among(changed).where("trains")
    parts = [changed.join(trained, "customer_key", "left_semi")]
    if increment.eligibility is not None:
        switched = increment.eligibility.where("trained <> trains").select("customer_key", "trains")
        present = increment.events.withColumn("_sign", F.lit(1)).join(switched, "customer_key")
        parts[0] = parts[0].join(switched, "customer_key", "left_anti")
        parts.append(known_before(present.where("trains"), cutoff))
        # Customers who opted out were counted with their earlier events: the present ones without the changes.
        opted_out = known_before(present.where("NOT trains"), last_cutoff)
        parts.append(opted_out.withColumn("_sign", F.lit(-1)))
        changes = known_before(increment.changes, last_cutoff)
        parts.append(changes.join(switched.where("NOT trains"), "customer_key", "left_semi"))
    columns = ["_sign", *categorical]
    return union_all(part.select(*columns) for part in parts)


def _count_values_added(lineage: SequencesLineage, tops: Mapping[str, int]) -> int:
    """Values added to the vocabulary since the rows were built, including those of a run that failed later."""
    return sum(top - lineage.top_ids.get(name, FIRST_VALUE - 1) for name, top in tops.items())


def _customer_tasks(
    increment: Increment, as_of: int, values_added: int, categorical: Sequence[str]
) -> DataFrame:
    """Customers whose row may change: `customer_key`, `_task` (add, rebuild or delete); grain: a customer."""
    changed = increment.changes_between(increment.lineage.as_of, as_of)
    task = F.when(F.min("_sign") < 0, _REBUILD).otherwise(_ADD).alias("_task")
    touched = changed.groupBy("customer_key").agg(task)
    parts = [touched.join(increment.eligible_among(touched), "customer_key", "left_semi")]
    if increment.eligibility is not None:
        switched = increment.eligibility.where("is_eligible <> was_eligible")
        task = F.when(F.col("is_eligible"), _REBUILD).otherwise(_DELETE).alias("_task")
        parts.append(switched.select("customer_key", task))
    if values_added:
        parts.append(_with_added_values(increment, as_of, categorical).withColumn("_task", F.lit(_REBUILD)))
    return union_all(parts).groupBy("customer_key").agg(F.max("_task").alias("_task"))


def _with_added_values(increment: Increment, as_of: int, categorical: Sequence[str]) -> DataFrame:
    """Customers with a row and an event whose value was added to the vocabulary since the last build."""
    tables, tops = increment.tables, increment.lineage.top_ids
    is_added = reduce(
        or_,
        (
            (F.col("field") == name) & (F.col("token_id") > tops.get(name, FIRST_VALUE - 1))
            for name in categorical
        ),
    )
    added = tables.read("vocabulary").where(is_added)
    names = [row["field"] for row in added.select("field").distinct().toLocalIterator()]
    visible = known_before(increment.events, as_of).select("customer_key", *names)
    has_added = reduce(or_, (F.col(name) >= FIRST_VALUE for name in names))
    customers = encode(visible, added, names).where(has_added).select("customer_key").distinct()
    return tables.read("sequences").select("customer_key").join(customers, "customer_key", "left_semi")


def _write(
    increment: Increment,
    assembler: Assembler,
    tasks: DataFrame,
    lineage: SequencesLineage,
    counts: Mapping[int, int],
) -> dict[str, int]:
    """Write the changed rows and the lineage; returns the numbers of rows `inserted`, `replaced`, `deleted`."""
    tables, metadata = increment.tables, lineage.to_metadata()
    if not any(counts.values()):
        tables.touch_metadata("sequences", metadata)
        return dict.fromkeys(("inserted", "replaced", "deleted"), 0)
    fresh = _changed_rows(increment, assembler, tasks, lineage.as_of, counts)
    deleted_keys = _deleted_keys(increment, tasks, lineage.as_of, counts)
    return upsert(tables, fresh, "sequences", "customer_key", metadata, deleted_keys)


def _changed_rows(
    increment: Increment, assembler: Assembler, tasks: DataFrame, as_of: int, counts: Mapping[int, int]
) -> DataFrame:
    """New rows, and rows that differ from the stored ones; grain: a customer."""
    stored = increment.tables.read("sequences")
    parts = []
    if counts.get(_ADD):
        customers = _customers_of(tasks, _ADD)
        changed = increment.changes_between(increment.lineage.as_of, as_of)
        count = changed.count()
        fresh = assembler.gather(changed, customers, count, longest=count)
        old = stored.join(customers, "customer_key", "left_semi")
        parts.append(finish_rows(merge_entries(old, fresh, assembler.spec), assembler.spec))
    if counts.get(_REBUILD):
        customers = _customers_of(tasks, _REBUILD)
        visible = known_before(increment.events, as_of)
        rebuilt = assembler.rows(visible, customers, *_history_lengths(increment, customers, as_of))
        present = stored.select(*_ROW_IDENTITY).join(customers, "customer_key", "left_semi")
        parts.append(rebuilt.join(present, list(_ROW_IDENTITY), "left_anti"))
    return union_all(parts) if parts else stored.limit(0)


def _history_lengths(increment: Increment, customers: DataFrame, as_of: int) -> tuple[int, int]:
    """Approximate number of events of `customers`, and an upper bound of the events of one of them.

    From their rows and the events added since; a customer without a row may have any number.
    """
    rows = increment.tables.read("sequences").select("customer_key", "events_seen")
    added = increment.changes_between(increment.lineage.as_of, as_of).where("_sign > 0")
    added = added.join(customers, "customer_key", "left_semi")
    counts = added.groupBy("customer_key").agg(F.count("*").alias("_added"))
    lengths = customers.join(rows, "customer_key", "left").join(counts, "customer_key", "left")
    length = F.coalesce("events_seen", F.lit(0)) + F.coalesce("_added", F.lit(0))
    row = one_row(lengths.agg(F.count_if(F.col("events_seen").isNull()), F.sum(length), F.max(length)))
    without_row, total, longest = (int(value) for value in row)
    if not without_row:
        return total, longest
    event_count = increment.events.count()
    return total + math.ceil(without_row / max(1, rows.count()) * event_count), event_count


def _deleted_keys(
    increment: Increment, tasks: DataFrame, as_of: int, counts: Mapping[int, int]
) -> DataFrame | None:
    """`customer_key` of the rows to delete: not eligible any more, or without an event; None if there are none."""
    parts = []
    if counts.get(_DELETE):
        parts.append(_customers_of(tasks, _DELETE))
    if counts.get(_REBUILD):
        customers = _customers_of(tasks, _REBUILD)
        visible = known_before(increment.events, as_of).select("customer_key")
        with_events = visible.join(customers, "customer_key", "left_semi").distinct()
        parts.append(customers.join(with_events, "customer_key", "left_anti"))
    return union_all(parts) if parts else None


def _customers_of(tasks: DataFrame, task: int) -> DataFrame:
    return tasks.where(F.col("_task") == task).select("customer_key")
