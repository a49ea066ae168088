"""Stage `ingest`: what is new of every channel becomes events; every raw row is accounted for.

New rows are mapped once into a staging folder, counted, and published only if the gates hold: all tables of this
stage change together or none does. A run that dies leaves the last good tables; the next one undoes what it had
begun, sweeps its staging and takes the same rows again.

Cost: linear in what is new (one pass over it, one shuffle by `event_id` for exact deduplication), plus the files of
`events` that lie in the new rows' span of time. Nothing but counts by source and reason comes to the driver.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events.mapping import RAW, REASON
from lam_spark.events.resolution import (
    DUPLICATE,
    EVENT,
    UNRESOLVED,
    WAITING,
    Resolved,
    resolve_staged,
)
from lam_spark.events.staging import count_refused, stage_delivery
from lam_spark.run import Run, StageResult
from lam_spark.sources.identity import fitting_secret
from lam_spark.sources.intake import find_new, note_taken, taken_so_far
from lam_spark.sources.links import LINK
from lam_spark.sources.readers import Delivery, Inputs

_PUBLISHED = ("links", "events", "quarantine", "unresolved", "balances", "intake")
# What becomes of the new raw rows of a reader; they add up to `rows_in`.
_OUTCOMES = ("events", "links", "duplicates", "quarantined", "unresolved")
# Beside them: duplicates that say something else than the event that stands, and rows of earlier runs.
_BESIDE = ("conflicting", "picked_up", "moved", "orphaned")
_BALANCES = ", ".join(
    [
        "run_id STRING",
        "source STRING",
        *(f"{name} BIGINT" for name in ("rows_in", *_OUTCOMES, *_BESIDE)),
        "recorded_at TIMESTAMP",
    ]
)

Counts = dict[str, int]


def run(run: Run) -> StageResult:
    """Publish `events` (grain: an event), `links`, `unresolved` (rows whose id is nobody's yet) and `quarantine`.

    Raises:
        ConfigError: an input, a select, a rule or the secret is wrong.
        DataQualityError: a first delivery without rows, a select that multiplies or drops rows, or more refused
            or unresolved rows than `quality` allows; nothing is published.
    """
    fitting_secret(run)  # before the work, not after it
    if run.tables.exists("events") and not run.tables.exists("intake"):
        raise ConfigError(
            f"the tables in {run.config.root} were made by a version that read everything each time: they do not say "
            "what was taken. Use another root"
        )
    config, staging = run.config, run.config.workspace / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    readers = [*config.identity.links, *config.channels]
    taken = taken_so_far(run)
    found = [find_new(run, reader, taken.get(reader)) for reader in readers]
    news = [new for new in found if new.parts or new.is_first]
    try:
        balances, resolved, quarantine = _prepare(run, news, staging)
        with run.tables.together(*_PUBLISHED):
            _publish(run, news, balances, resolved, quarantine)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _result(run, balances)


def _prepare(
    run: Run, news: list[Delivery], staging: Path
) -> tuple[dict[str, Counts], Resolved, DataFrame | None]:
    """Stage and resolve what is new, and hold it against the gates; publishes nothing but pseudonyms."""
    if not news:
        return {}, Resolved(None, None, None, None), None
    inputs = Inputs(run.spark, run.config)
    rows_in = {new.reader: stage_delivery(run, inputs, new, staging / new.reader) for new in news}
    quarantine, refused = None, {}
    for reader in rows_in:
        staged = run.spark.read.parquet(str(staging / reader)).select("source", REASON, RAW)
        quarantine = staged if quarantine is None else quarantine.union(staged)
    assert quarantine is not None  # there is a reader with something new
    refused = count_refused(quarantine)
    for reader, total in rows_in.items():
        reasons = refused.get(reader, {})
        _hold(
            run.config.quality.max_quarantine_share, "refused", reader, sum(reasons.values()), total, reasons
        )
    resolved = resolve_staged(run, staging, list(rows_in))
    balances = _balances(run, rows_in, refused, resolved)
    for source, counts in balances.items():
        limit = run.config.quality.max_unresolved_share
        _hold(limit, "unresolved", source, counts["unresolved"], counts["rows_in"], {})
    refused_rows = quarantine.where(F.col(REASON).isNotNull()).withColumn("run_id", F.lit(run.run_id))
    return balances, resolved, refused_rows


def _hold(limit: float, what: str, reader: str, bad: int, total: int, reasons: Counts) -> None:
    """Stop the run where too large a share of a reader's new rows went wrong."""
    if bad > limit * total:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        gate = {"refused": "max_quarantine_share", "unresolved": "max_unresolved_share"}[what]
        raise DataQualityError(
            f"{reader}: {bad:,} of {total:,} new rows ({bad / total:.1%}) were {what}, the limit is {limit:.1%}"
            f"{f' ({why})' if why else ''}. Nothing was published; mend the source or raise quality.{gate}"
        )


def _balances(run: Run, rows_in: Counts, refused: dict[str, Counts], resolved: Resolved) -> dict[str, Counts]:
    """What became of every new row, by source, from what was staged.

    Raises:
        DataQualityError: the outcomes do not add up to the rows that came in.
    """
    made: dict[str, Counts] = {}

    def add(source: str, name: str, count: int) -> None:
        counts = made.setdefault(source, dict.fromkeys(("rows_in", *_OUTCOMES, *_BESIDE), 0))
        counts[name] += count

    for reader, total in rows_in.items():
        add(reader, "rows_in", total)
        add(reader, "quarantined", sum(refused.get(reader, {}).values()))
    names = {EVENT: "events", UNRESOLVED: "unresolved", DUPLICATE: "duplicates"}
    if resolved.rows is not None:
        conflicting = F.count_if("conflicting").alias("conflicting")
        grouped = resolved.rows.groupBy("source", "outcome").agg(F.count("*").alias("rows"), conflicting)
        for row in grouped.toLocalIterator():
            add(row["source"], names[row["outcome"]], row["rows"])
            add(row["source"], "conflicting", row["conflicting"])
    if resolved.links is not None:
        for row in resolved.links.groupBy("source").count().toLocalIterator():
            add(row["source"], "links", row["count"])
    for reader in rows_in:
        if reader in run.config.identity.links:
            counts = made[reader]
            add(reader, "duplicates", counts["rows_in"] - counts["quarantined"] - counts["links"])
    for frame, name in ((resolved.picked_up, "picked_up"), (resolved.moved, "moved")):
        if frame is None:
            continue
        orphaned = F.count_if(F.col("customer_key").isNull()).alias("orphaned")
        for row in frame.groupBy("source").agg(F.count("*").alias("rows"), orphaned).toLocalIterator():
            add(row["source"], name, row["rows"] - row["orphaned"])
            add(row["source"], "orphaned", row["orphaned"])
    for source, counts in made.items():
        if counts["rows_in"] != sum(counts[name] for name in _OUTCOMES):
            raise DataQualityError(f"the counts of {source} do not balance: {counts}")
    return made


def _publish(
    run: Run, news: list[Delivery], balances: dict[str, Counts], resolved: Resolved, refused: DataFrame | None
) -> None:
    """Write all tables of this stage, inside `Tables.together`."""
    total = {name: sum(counts[name] for counts in balances.values()) for name in (*_OUTCOMES, *_BESIDE)}
    fields = list(run.config.fields)
    waiting = [*WAITING, *fields]
    if resolved.links is not None:
        _put(run, resolved.links.select(*LINK), "links", total["links"])
    if resolved.picked_up is not None and total["picked_up"]:
        run.tables.amend(resolved.picked_up.select("event_id"), "unresolved", "event_id", delete="true")
    if resolved.moved is not None and total["moved"] + total["orphaned"]:
        run.tables.amend(
            resolved.moved.select("event_id", "customer_key"),
            "events",
            "event_id",
            update=["customer_key"],
            delete="fresh.customer_key IS NULL",
        )
        orphans = resolved.moved.where(F.col("customer_key").isNull()).select(*waiting)
        _put(run, orphans, "unresolved", total["orphaned"])
    columns = ["customer_key", "event_id", "event_time", "source", "id_key", *fields]
    made = None if resolved.picked_up is None else resolved.picked_up.select(*columns)
    if resolved.rows is not None:
        left = resolved.rows.where(F.col("outcome") == UNRESOLVED).select(*waiting)
        _put(run, left, "unresolved", total["unresolved"])
        new = resolved.rows.where(F.col("outcome") == EVENT).select(*columns)
        made = new if made is None else new.unionByName(made)
    if made is not None:
        events = made.withColumn("ingested_at", F.lit(run.started_at).cast("timestamp"))
        _put(run, events, "events", total["events"] + total["picked_up"])
    if refused is not None:
        _put(run, refused, "quarantine", total["quarantined"])
    if balances:
        rows = [
            (
                run.run_id,
                source,
                *(counts[n] for n in ("rows_in", *_OUTCOMES, *_BESIDE)),
                run.started_at,
            )
            for source, counts in sorted(balances.items())
        ]
        _put(run, run.spark.createDataFrame(rows, _BALANCES), "balances", len(rows))
    note_taken(run, news)


def _put(run: Run, frame: DataFrame, name: str, expected: int) -> None:
    """Append, or replace on a rebuild, and hold what Delta wrote against what was counted."""
    if run.config.ingest.rebuild or not run.tables.exists(name):
        written = run.tables.overwrite(frame, name)
    elif expected:
        written = run.tables.append(frame, name)
    else:
        return
    if written != expected:
        raise DataQualityError(
            f"table {name!r}: {written:,} rows were written where {expected:,} were counted; all tables are put "
            "back as they were"
        )


def _result(run: Run, balances: dict[str, Counts]) -> StageResult:
    names = ("rows_in", *_OUTCOMES, *_BESIDE)
    counts = {name: sum(one[name] for one in balances.values()) for name in names}
    totals: dict[str, Any] = {
        row["source"]: {name: row[name] for name in names}
        for row in run.tables.read("balances")
        .groupBy("source")
        .agg(*(F.sum(name).alias(name) for name in names))
        .toLocalIterator()
    }
    refused: dict[str, Counts] = {}
    grouped = run.tables.read("quarantine").groupBy("source", REASON).count()
    for row in grouped.orderBy("source", REASON).toLocalIterator():
        refused.setdefault(row["source"], {})[row[REASON]] = row["count"]
    said = [f"{counts['events']:,} events", f"{counts['duplicates']:,} duplicates"]
    said.append(f"{counts['quarantined']:,} quarantined")
    for name, text in (
        ("links", "links"),
        ("unresolved", "unresolved"),
        ("picked_up", "picked up"),
        ("moved", "moved to another customer"),
        ("orphaned", "without a customer again"),
        ("conflicting", "conflicting"),
    ):
        if counts[name]:
            said.append(f"{counts[name]:,} {text}")
    return StageResult(
        says=f"{counts['rows_in']:,} new raw rows: {', '.join(said)}" if balances else "nothing new",
        counts=counts,
        facts={"sources": balances, "totals": totals, "refused": refused},
    )
