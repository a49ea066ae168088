"""Accepted rows become events of customers: pseudonyms, exact deduplication, owners of ids at points in time.

An event is known by (source, id, event_time, event_key). A further row that says the same is a duplicate; one
that says something else of the same event is a duplicate too and counted as conflicting: the first delivered
stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.events.mapping import RAW, REASON
from lam_spark.events.staging import MICROS, Span, written_down
from lam_spark.identity.links import LINK, changed_timelines, owner_at, timelines
from lam_spark.identity.pseudonyms import CUSTOMER, Secret, register_ids, with_pseudonyms
from lam_spark.runtime.context import Run

# What becomes of an accepted row.
EVENT, UNRESOLVED, DUPLICATE = "event", "unresolved", "duplicate"
# Columns of `unresolved`; the declared fields follow.
WAITING = ["event_id", "id_key", "event_time", "source"]


@dataclass(frozen=True)
class Resolved:
    """What the new rows and the new links come to; frames over staging folders.

    Attributes:
        links: new links (grain: a link; `id_key, customer_key, linked_at, source`), None without any.
        rows: accepted rows with their `outcome` and whether they are `conflicting`.
        picked_up: rows of `unresolved` that now have a customer, None where no id changed hands.
        moved: events whose customer is another one now, or nobody (`customer_key` null, `event_id`).
    """

    links: DataFrame | None
    rows: DataFrame | None
    picked_up: DataFrame | None
    moved: DataFrame | None


def resolve_staged(
    run: Run, staged: dict[str, DataFrame], span: Span, secret: Secret, staging: Path
) -> Resolved:
    """Resolve the accepted rows of these readers, as `stage_deliveries` has left them; `span` is their events'.

    Writes `identity` (append-only; a pseudonym says nothing by itself); all else stays in staging.
    """
    config = run.config
    accepted = {n: rows.where(F.col(REASON).isNull()).drop(REASON, RAW) for n, rows in staged.items()}
    _register(run, accepted, secret)
    links = [rows for name, rows in accepted.items() if name in config.identity.links]
    channels = {name: rows for name, rows in accepted.items() if name in config.channels}
    fresh = _fresh_links(run, links, staging) if links else None
    known = _published(run, "links")
    everything = known if fresh is None else fresh.select(*LINK).unionByName(known) if known else fresh
    rows = _resolve_rows(run, channels, everything, span, staging) if channels else None
    picked_up, moved = _revisit(run, fresh, known, staging)
    return Resolved(fresh, rows, picked_up, moved)


def _register(run: Run, accepted: dict[str, DataFrame], secret: Secret) -> None:
    ids = []
    for name, rows in accepted.items():
        if name in run.config.channels:
            ids.append(rows.select(F.lit(run.config.channels[name].id), F.col("customer_id")))
        else:
            ids += [rows.select("id_kind", "id"), rows.select(F.lit(CUSTOMER), F.col("customer_id"))]
    register_ids(run, reduce(DataFrame.union, ids).toDF("id_kind", "raw_id"), secret)


def _published(run: Run, name: str) -> DataFrame | None:
    """A table as it stands, or None where it is not there or is about to be replaced."""
    if run.config.ingest.rebuild or not run.tables.exists(name):
        return None
    return run.tables.read(name)


def _fresh_links(run: Run, staged: list[DataFrame], staging: Path) -> DataFrame | None:
    """Links that are not known yet, each once."""
    stated = reduce(DataFrame.unionByName, staged).withColumnRenamed("id_kind", "kind")
    keyed = with_pseudonyms(run, stated, F.col("kind"), "id", "id_key")
    keyed = with_pseudonyms(run, keyed, F.lit(CUSTOMER), "customer_id", "customer_key")
    once = keyed.groupBy(*LINK).agg(F.min("source").alias("source"))
    known = _published(run, "links")
    if known is not None:
        once = once.join(known, LINK, "left_anti")
    return written_down(once, staging / "fresh_links")


def _resolve_rows(
    run: Run, staged: dict[str, DataFrame], links: DataFrame | None, span: Span, staging: Path
) -> DataFrame:
    """Grain: an accepted row. `event_id, id_key` (null for a customer's own id), `customer_key` (null where
    nobody owns the id), `event_time, source`, the fields, `outcome`, `conflicting`."""
    channels = run.config.channels
    own = {name: rows for name, rows in staged.items() if channels[name].id == CUSTOMER}
    foreign = {name: rows for name, rows in staged.items() if name not in own}
    parts = []
    if own:
        known = _keyed(run, own)
        judged = _mark_duplicates(run, known, span, staging / "own")
        parts.append(
            judged.withColumns({"customer_key": F.col("id_key"), "id_key": F.lit(None).cast("string")})
        )
    if foreign:
        keyed = written_down(_keyed(run, foreign), staging / "foreign")
        judged = _mark_duplicates(run, keyed, span, None)
        owner = F.lit(None).cast("string")
        if links is not None:
            needed = links.join(keyed.select("id_key").distinct(), "id_key", "left_semi")
            judged = judged.join(timelines(needed, run.config.identity), "id_key", "left")
            owner = owner_at(F.col("event_time"), run.config.identity)
        parts.append(judged.withColumn("customer_key", owner).drop("owners"))
    outcome = (
        F.when(F.col("outcome").isNotNull(), F.col("outcome"))
        .when(F.col("customer_key").isNull(), UNRESOLVED)
        .otherwise(EVENT)
    )
    resolved = reduce(DataFrame.unionByName, parts).select(
        "customer_key",
        "event_id",
        "event_time",
        "source",
        "id_key",
        *run.config.fields,
        outcome.alias("outcome"),
        "conflicting",
    )
    return written_down(resolved, staging / "resolved")


def _keyed(run: Run, staged: dict[str, DataFrame]) -> DataFrame:
    """Rows of channels with `id_key` and `event_id`, and without raw ids."""
    kinds = {name: F.lit(run.config.channels[name].id) for name in staged}
    rows = reduce(
        DataFrame.unionByName, (one.withColumn("_kind", kinds[name]) for name, one in staged.items())
    )
    return _with_event_id(with_pseudonyms(run, rows, F.col("_kind"), "customer_id", "id_key").drop("_kind"))


def _with_event_id(rows: DataFrame) -> DataFrame:
    """`event_id` hashes pseudonyms, not raw ids: no raw id can be guessed from it."""
    parts = ("source", "id_key", F.unix_micros("event_time").cast("string"), "event_key")
    identified = F.substring(F.sha2(F.concat_ws("\x1f", *parts), 256), 1, 32)
    return rows.withColumn("event_id", identified).drop("event_key")


def event_order() -> Column:
    """The first 60 bits of `event_id` as a number: it orders as the text does, and is cheaper to read and compare."""
    return F.conv(F.substring("event_id", 1, 15), 16, 10).cast("bigint")


def _content(config: Config) -> Column:
    """A hash of what an event says, to tell whether two rows of one event agree."""
    return F.xxhash64(*config.fields)


def _mark_duplicates(run: Run, keyed: DataFrame, span: Span, folder: Path | None) -> DataFrame:
    """`outcome` duplicate for every row of an event but one, and for all of an event that is there already.

    Cost: one shuffle by `event_id`; of what is there, only the files of the same times are read. The rows are
    kept in `folder` where they are read more than once, if they do not lie in one yet.
    """
    there = {name: table for name in ("events", "unresolved") if (table := _published(run, name)) is not None}
    if there and folder is not None:
        keyed = written_down(keyed, folder)
    content = _content(run.config)
    window = Window.partitionBy("event_id").orderBy("_content")
    marked = keyed.withColumn("_content", content).withColumns(
        {"_number": F.row_number().over(window), "_standing": F.first("_content").over(window)}
    )
    known = [F.lit(None).cast("bigint")]
    for name, table in there.items():
        same = table.where(span.condition()).join(keyed.select("event_id"), "event_id", "left_semi")
        marked = marked.join(same.select("event_id", content.alias(f"_in_{name}")), "event_id", "left")
        known.append(F.col(f"_in_{name}"))
    before = F.coalesce(*known)
    repeated = (F.col("_number") > 1) | before.isNotNull()
    return marked.withColumns(
        {
            "outcome": F.when(repeated, DUPLICATE),
            "conflicting": repeated & (F.col("_content") != F.coalesce(before, "_standing")),
        }
    )


def _revisit(
    run: Run, fresh: DataFrame | None, known: DataFrame | None, staging: Path
) -> tuple[DataFrame | None, DataFrame | None]:
    """What new links change of rows that came before them.

    Cost: a scan of `unresolved`, and of those files of `events` that the changed ids can reach back to.
    """
    unresolved, events = _published(run, "unresolved"), _published(run, "events")
    if fresh is None or (unresolved is None and events is None):
        return None, None
    rules = run.config.identity
    old = fresh.select(*LINK).limit(0) if known is None else known
    changed = written_down(changed_timelines(old, fresh, rules), staging / "changed_ids")
    bounds = changed.agg(
        F.count("*").alias("ids"),
        F.date_format(F.min("since"), MICROS).alias("since"),
        F.count_if(F.col("since").isNull()).alias("always"),
    ).first()
    assert bounds is not None  # an aggregate without keys gives one row
    if not bounds["ids"]:
        return None, None
    picked_up = moved = None
    if unresolved is not None:
        owned = unresolved.join(changed, "id_key").withColumn(
            "customer_key", owner_at(F.col("event_time"), rules)
        )
        owned = owned.where(F.col("customer_key").isNotNull()).drop("owners", "since")
        picked_up = written_down(owned, staging / "picked_up")
    if events is not None:
        reach = events.where(F.col("id_key").isNotNull())
        if not bounds["always"]:
            reach = reach.where(f"event_time >= TIMESTAMP '{bounds['since']}'")
        now = reach.withColumnRenamed("customer_key", "was").join(changed, "id_key")
        now = now.withColumn("customer_key", owner_at(F.col("event_time"), rules))
        other = now.where(~F.col("customer_key").eqNullSafe(F.col("was")))
        kept = other.select(*WAITING, "customer_key", *run.config.fields)
        moved = written_down(kept, staging / "moved")
    return picked_up, moved
