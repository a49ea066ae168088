"""Updates `sequences` from what changed since it was built; a rebuild gives the same rows.

A customer who only gained events gets them merged into the stored row, without a look at `events`. One who
lost an event, or came to be eligible, or has an event whose value the vocabulary has only now learnt, is made
again from `events`. One who is no longer eligible is deleted.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.runtime.context import Run, sql_literal
from lam_spark.sequences.build import Assembler
from lam_spark.sequences.customers import allowed_of, before, changed_standings, standings_moved
from lam_spark.sequences.lineage import Built
from lam_spark.sequences.rows import finished, merged
from lam_spark.sequences.settings import BUILD_SETTINGS
from lam_spark.sequences.time_range import bounds_of, check_as_of, instant, micros
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.sequences.vocabulary import (
    count_values,
    encode,
    extend_vocabulary,
    top_ids,
)
from lam_spark.storage.settings import session_settings

# Where more customers than this share have to be made again, all are: it costs no more.
_MOST_REMADE = 0.3
_ADD, _REMAKE, _DELETE = 1, 2, 3
# A row that is made again is written only if these differ.
_SAME = ("customer_key", "seq_hash")


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Attributes:
        built: what the table is made of now.
        values_added: new entries of the vocabulary.
        customers: how many were added to, remade, deleted.
        rows: how many rows were inserted, replaced, deleted.
    """

    built: Built
    values_added: int
    customers: dict[str, int]
    rows: dict[str, int]


class Increment:
    """One update of `sequences`: what it was built from, and what is there now.

    Attributes:
        built: the last run's.
        events: the newest version of the table.
        feed: what happened to events since: the table's columns and `sign`, 1 for one that came and -1 for
            one that went.
        moved: customers whose eligibility changed (`changed_standings`), or None where none did.
        bounds: first and last event now (microseconds UTC).
        earliest_change: of the feed's events (None: it is empty).
    """

    def __init__(self, run: Run, built: Built) -> None:
        self.run, self.built = run, built
        self.events = run.tables.read("events")
        self.feed = run.keep(feed_of(run, built))
        moved = standings_moved(run, built)
        self.moved = run.keep(changed_standings(run, built)) if moved else None
        self.bounds, self.earliest_change = self._bounds()

    def _bounds(self) -> tuple[tuple[int, int], int | None]:
        """First and last event now, and the first in the feed; only a deletion takes a look at all events."""
        at = F.unix_micros("event_time")
        told = self.feed.agg(F.min("sign"), F.min(at), F.max(at)).first()
        assert told is not None  # an aggregate without keys gives one row
        sign, first, last = told
        if sign is None:
            return (self.built.first_event, self.built.last_event), None
        if sign < 0:
            return bounds_of(self.events), first
        return (min(self.built.first_event, first), max(self.built.last_event, last)), first

    def changed_before(self, then: int, now: int) -> DataFrame:
        """Signed events by which the events before `now` differ from those that were before `then`."""
        came = before(self.feed, then)
        if then == now:
            return came
        low, high = sorted((then, now))
        between = before(self.events, high).where(F.col("event_time") >= F.expr(sql_literal(instant(low))))
        between = between.withColumn("sign", F.lit(1 if now > then else -1))
        return came.unionByName(between.select(*came.columns))

    def among(self, customers: DataFrame) -> DataFrame:
        """Those of `customers` (a column `customer_key`) who are eligible, as `allowed_of` says."""
        asked = customers.select("customer_key").distinct()
        ledger = self.run.tables.read("consent").join(asked, "customer_key", "left_semi")
        return allowed_of(ledger, self.run.started_at, self.run.config)


def feed_of(run: Run, built: Built) -> DataFrame:
    """The change feed of `events` since the last run, with `sign`."""
    columns = run.tables.read("events").columns
    came = F.col("_change_type").isin("insert", "update_postimage")
    feed = run.tables.changes("events", built.events)
    return feed.withColumn("sign", F.when(came, 1).otherwise(-1)).select(*columns, "sign")


def learn_values(step: Increment, cut: int) -> int:
    """Bring `value_counts` and the vocabulary up to date; returns the version of `value_counts`."""
    run, built, config = step.run, step.built, step.run.config
    late = step.earliest_change is not None and step.earliest_change < built.cut
    if cut == built.cut and step.moved is None and not late:
        return built.value_counts
    changed = step.changed_before(built.cut, cut)
    parts = [changed.join(step.among(changed).where("trains"), "customer_key", "left_semi")]
    columns = ["event_time", "sign", *config.categorical]
    if step.moved is not None:
        learners = step.moved.where("trained <> trains").select("customer_key", "trains")
        joined = step.events.withColumn("sign", F.lit(1)).join(learners, "customer_key")
        parts[0] = parts[0].join(learners, "customer_key", "left_anti")
        parts.append(before(joined.where("trains"), cut))
        # Those who left counted with the events of then: those of now without what came since.
        left = before(joined.where("NOT trains"), built.cut)
        parts.append(left.withColumn("sign", F.lit(-1)))
        came = before(step.feed, built.cut)
        parts.append(came.join(learners.where("NOT trains"), "customer_key", "left_semi"))
    weighted = reduce(DataFrame.unionByName, [part.select(*columns) for part in parts])
    differences = step.run.keep(count_values(weighted, config, F.col("sign")).where("count <> 0"))
    if differences.isEmpty():
        return built.value_counts
    known = run.tables.read("value_counts", built.value_counts)
    both = known.unionByName(differences).groupBy("field", "value").agg(F.sum("count").alias("count"))
    run.tables.overwrite(both.where("count > 0"), "value_counts")
    extend_vocabulary(run, run.tables.read("value_counts"))
    return run.tables.version("value_counts")


def values_since(built: Built, tops: dict[str, int]) -> int:
    """How many values the vocabulary gained since the rows were made; a run that then died may have added them."""
    return sum(top - built.top_ids.get(name, FIRST_VALUE - 1) for name, top in tops.items())


def customers_to_do(step: Increment, as_of: int, values_added: int) -> DataFrame:
    """`customer_key, task` (add, remake, delete); grain: a customer whose row may change."""
    changed = step.changed_before(step.built.as_of, as_of)
    task = F.when(F.min("sign") < 0, _REMAKE).otherwise(_ADD).alias("task")
    touched = changed.groupBy("customer_key").agg(task)
    parts = [touched.join(step.among(touched), "customer_key", "left_semi")]
    if step.moved is not None:
        moved = step.moved.where("allowed <> was_allowed")
        parts.append(
            moved.select("customer_key", F.when(F.col("allowed"), _REMAKE).otherwise(_DELETE).alias("task"))
        )
    if values_added:
        parts.append(_with_learnt_values(step, as_of).withColumn("task", F.lit(_REMAKE)))
    return reduce(DataFrame.unionByName, parts).groupBy("customer_key").agg(F.max("task").alias("task"))


def _with_learnt_values(step: Increment, as_of: int) -> DataFrame:
    """Customers with a row and an event whose value the vocabulary did not know at the last run."""
    run, top = step.run, step.built.top_ids
    vocabulary = run.tables.read("vocabulary")
    is_new = reduce(
        lambda left, right: left | right,
        (
            (F.col("field") == name) & (F.col("token_id") > top.get(name, FIRST_VALUE - 1))
            for name in run.config.categorical
        ),
    )
    learnt = vocabulary.where(is_new)
    fields = [row["field"] for row in learnt.select("field").distinct().toLocalIterator()]
    visible = before(step.events, as_of).select("customer_key", *fields)
    known = reduce(lambda left, right: left | right, (F.col(name) >= FIRST_VALUE for name in fields))
    found = encode(visible, learnt, fields).where(known).select("customer_key").distinct()
    return run.tables.read("sequences").select("customer_key").join(found, "customer_key", "left_semi")


def new_rows(
    step: Increment, to_do: DataFrame, as_of: int, counts: dict[int, int], vocabulary: DataFrame
) -> DataFrame:
    """The rows of the table that are not what they were, and new ones; grain: a customer."""
    run, config = step.run, step.run.config
    stored = run.tables.read("sequences")
    assembler = Assembler(run, vocabulary)
    parts = []
    if counts[_ADD]:
        adding = to_do.where(F.col("task") == _ADD).select("customer_key")
        fresh = step.changed_before(step.built.as_of, as_of)
        old = stored.join(adding, "customer_key", "left_semi")
        came = fresh.count()
        new = assembler.gathered(fresh, adding, came, longest=came)
        parts.append(finished(merged(old, new, config), config))
    if counts[_REMAKE]:
        visible = before(step.events, as_of)
        made = assembler.rows(visible, _remaking(to_do), *_lengths(step, to_do, as_of))
        held = stored.select(*_SAME).join(_remaking(to_do), "customer_key", "left_semi")
        parts.append(made.join(held, list(_SAME), "left_anti"))
    return reduce(DataFrame.unionByName, parts) if parts else stored.limit(0)


def _lengths(step: Increment, to_do: DataFrame, as_of: int) -> tuple[int, int]:
    """Of those who are made again: about how many events they have, and how many none has more than.

    By their rows and what came since; who has no row may have any number.
    """
    rows = step.run.tables.read("sequences").select("customer_key", "events_seen")
    came = step.changed_before(step.built.as_of, as_of).where("sign > 0")
    came = came.join(_remaking(to_do), "customer_key", "left_semi").groupBy("customer_key").count()
    each = _remaking(to_do).join(rows, "customer_key", "left").join(came, "customer_key", "left")
    events = F.coalesce("events_seen", F.lit(0)) + F.coalesce("count", F.lit(0))
    told = each.agg(F.count_if(F.col("events_seen").isNull()), F.sum(events), F.max(events)).first()
    assert told is not None  # an aggregate without keys gives one row
    unknown, total, longest = (int(value) for value in told)
    if not unknown:
        return total, longest
    every = step.events.count()
    return total + math.ceil(unknown / max(1, rows.count()) * every), every


def leaving(step: Increment, to_do: DataFrame, as_of: int, counts: dict[int, int]) -> DataFrame | None:
    """`customer_key` of those whose row goes: not eligible any more, or without an event; None: nobody."""
    parts = []
    if counts[_DELETE]:
        parts.append(to_do.where(F.col("task") == _DELETE).select("customer_key"))
    if counts[_REMAKE]:
        visible = before(step.events, as_of).select("customer_key")
        seen = visible.join(_remaking(to_do), "customer_key", "left_semi").distinct()
        parts.append(_remaking(to_do).join(seen, "customer_key", "left_anti"))
    return reduce(DataFrame.unionByName, parts) if parts else None


def _remaking(to_do: DataFrame) -> DataFrame:
    return to_do.where(F.col("task") == _REMAKE).select("customer_key")


def update(run: Run, built: Built, cut: int) -> Outcome | str:
    """Update the tables; or say why it takes a rebuild."""
    with run.letting_go(), session_settings(run.spark, BUILD_SETTINGS):
        step = Increment(run, built)
        check_as_of(run, *step.bounds)
        return _update(step, cut)


def _update(step: Increment, cut: int) -> Outcome | str:
    run, built, as_of = step.run, step.built, micros(step.run.as_of)
    value_counts = learn_values(step, cut)
    vocabulary = run.keep(run.tables.read("vocabulary"))
    tops = top_ids(vocabulary)
    values_added = values_since(built, tops)
    to_do = step.run.keep(customers_to_do(step, as_of, values_added))
    counted = {row["task"]: row["count"] for row in to_do.groupBy("task").count().toLocalIterator()}
    counts = {task: counted.get(task, 0) for task in (_ADD, _REMAKE, _DELETE)}
    anew = counts[_REMAKE] + counts[_DELETE]
    if anew and anew > _MOST_REMADE * run.tables.read("sequences").count():
        return f"{anew:,} customers have to be made again or deleted"
    now = dataclasses.replace(
        built,
        events=run.tables.read_versions["events"],
        consent=run.tables.version("consent"),
        asked_at=micros(run.started_at),
        value_counts=value_counts,
        as_of=as_of,
        cut=cut,
        first_event=step.bounds[0],
        last_event=step.bounds[1],
        top_ids=tops,
    )
    if any(counts.values()):
        fresh = new_rows(step, to_do, as_of, counts, vocabulary)
        gone = leaving(step, to_do, as_of, counts)
        rows = run.tables.apply(fresh, "sequences", "customer_key", now.note(), gone)
    else:
        run.tables.renew_note("sequences", now.note())
        rows = dict.fromkeys(("inserted", "replaced", "deleted"), 0)
    names = {_ADD: "added_to", _REMAKE: "remade", _DELETE: "deleted"}
    return Outcome(now, values_added, {names[task]: count for task, count in counts.items()}, rows)
