"""Stage `ingest`: what is new of every channel becomes events; every raw row is accounted for.

New rows are mapped once into a staging folder, counted, and published only if the gates hold: all tables of this
stage change together or none does. A run that dies leaves the last good tables; the next one undoes what it had
begun, sweeps its staging and takes the same rows again.

Cost: linear in what is new (one pass over it, one shuffle by `event_id` for exact deduplication), plus the files of
`events` that lie in the new rows' span of time. Nothing but counts by source and reason comes to the driver.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events.mapping import RAW, REASON
from lam_spark.events.resolution import (
    EVENT,
    UNRESOLVED,
    WAITING,
    Resolved,
    event_order,
    resolve_staged,
)
from lam_spark.events.staging import judge, stage_deliveries
from lam_spark.identity.links import LINK
from lam_spark.identity.pseudonyms import Secret, fitting_secret
from lam_spark.runtime.context import Run, StageResult, stage
from lam_spark.sources.ingestion_state import find_new, note_taken
from lam_spark.sources.inputs import Delivery, Inputs
from lam_spark.storage.dataframes import local_frame

_PUBLISHED = ("links", "events", "quarantine", "unresolved", "reconciliation", "ingestion_state")
# What becomes of the new raw rows of a reader; they add up to `rows_in`.
_OUTCOMES = ("events", "links", "duplicates", "quarantined", "unresolved")
# Beside them: duplicates that say something else than the event that stands, and rows of earlier runs.
_BESIDE = ("conflicting", "picked_up", "moved", "orphaned")
_RECONCILIATION = ", ".join(
    [
        "run_id STRING",
        "source STRING",
        *(f"{name} BIGINT" for name in ("rows_in", *_OUTCOMES, *_BESIDE)),
        "recorded_at TIMESTAMP",
    ]
)

Counts = dict[str, int]


@stage
def run(run: Run) -> StageResult:
    """Publish `events` (grain: an event), `links`, `unresolved` (rows whose id is nobody's yet) and `quarantine`.

    `events` has `event_order BIGINT` beside `event_id`: the two order alike.

    Raises:
        ConfigError: an input, a select, a rule or the secret is wrong.
        DataQualityError: a first delivery without rows, a select that multiplies or drops rows, or more refused
            or unresolved rows than `quality` allows; nothing is published.
    """
    secret = fitting_secret(run)  # before the work, not after it
    if run.tables.exists("events") and not run.tables.exists("ingestion_state"):
        raise ConfigError(
            f"the tables in {run.config.root} were made by a version that read everything each time: they do not say "
            "what was taken. Use another root"
        )
    if not run.config.ingest.rebuild and not _is_current(run):
        raise ConfigError(
            f"the table 'events' in {run.config.root} was made by an earlier version, without event_order: run this "
            "stage once with --set ingest.rebuild=true"
        )
    config, staging = run.config, run.config.workspace / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    found = find_new(run, [*config.identity.links, *config.channels])
    news = [new for new in found if new.parts or new.is_first]
    try:
        prepared = _prepare(run, news, secret, staging) if news else _NOTHING
        with run.tables.together(*_PUBLISHED):
            _publish(run, news, prepared)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _result(prepared)


@dataclass(frozen=True)
class _Prepared:
    """What a run is about to publish.

    Attributes:
        reconciliation: what became of every new row, by source.
        refused: how many rows were refused, by reader and reason.
        resolved: new events, links and what they change.
        quarantine: the refused rows, None without anything new.
    """

    reconciliation: dict[str, Counts]
    refused: dict[str, Counts]
    resolved: Resolved
    quarantine: DataFrame | None


_NOTHING = _Prepared({}, {}, Resolved(None, None, None, None), None)


def _prepare(run: Run, news: list[Delivery], secret: Secret, staging: Path) -> _Prepared:
    """Stage and resolve what is new, and hold it against the gates; publishes nothing but pseudonyms."""
    staged = stage_deliveries(run, Inputs(run.spark, run.config), news, staging)
    verdict = judge(run, staged)
    for reader, one in staged.items():
        reasons = verdict.refused[reader]
        _hold(
            run.config.quality.max_quarantine_share,
            "refused",
            reader,
            sum(reasons.values()),
            one.rows,
            reasons,
        )
    frames = {reader: one.frame for reader, one in staged.items()}
    resolved = resolve_staged(run, frames, verdict.span, secret, staging)
    rows_in = {reader: one.rows for reader, one in staged.items()}
    reconciliation = _reconciliation(run, rows_in, verdict.refused, resolved)
    for source, counts in reconciliation.items():
        limit = run.config.quality.max_unresolved_share
        _hold(limit, "unresolved", source, counts["unresolved"], counts["rows_in"], {})
    quarantine = reduce(DataFrame.union, (frame.select("source", REASON, RAW) for frame in frames.values()))
    refused = quarantine.where(F.col(REASON).isNotNull()).withColumn("run_id", F.lit(run.run_id))
    return _Prepared(reconciliation, verdict.refused, resolved, refused)


def _hold(limit: float, what: str, reader: str, bad: int, total: int, reasons: Counts) -> None:
    """Stop the run where too large a share of a reader's new rows went wrong."""
    if bad > limit * total:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        gate = {"refused": "max_quarantine_share", "unresolved": "max_unresolved_share"}[what]
        raise DataQualityError(
            f"{reader}: {bad:,} of {total:,} new rows ({bad / total:.1%}) were {what}, the limit is {limit:.1%}"
            f"{f' ({why})' if why else ''}. Nothing was published; mend the source or raise quality.{gate}"
        )


def _reconciliation(
    run: Run, rows_in: Counts, refused: dict[str, Counts], resolved: Resolved
) -> dict[str, Counts]:
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
    for row in _outcomes(resolved).groupBy("source", "fate").count().toLocalIterator():
        add(row["source"], row["fate"], row["count"])
    for reader in rows_in:
        if reader in run.config.identity.links:
            counts = made[reader]
            add(reader, "duplicates", counts["rows_in"] - counts["quarantined"] - counts["links"])
    for source, counts in made.items():
        if counts["rows_in"] != sum(counts[name] for name in _OUTCOMES):
            raise DataQualityError(f"the counts of {source} do not balance: {counts}")
    return made


def _outcomes(resolved: Resolved) -> DataFrame:
    """`source, fate` (a name in `_OUTCOMES` or `_BESIDE`): all that is resolved, for one count of it."""
    fates = []
    if resolved.rows is not None:
        outcome = F.col("outcome")
        fate = F.when(outcome == EVENT, "events").when(outcome == UNRESOLVED, "unresolved")
        fates.append(resolved.rows.select("source", fate.otherwise("duplicates").alias("fate")))
        conflicting = resolved.rows.where("conflicting")
        fates.append(conflicting.select("source", F.lit("conflicting").alias("fate")))
    if resolved.links is not None:
        fates.append(resolved.links.select("source", F.lit("links").alias("fate")))
    for frame, name in ((resolved.picked_up, "picked_up"), (resolved.moved, "moved")):
        if frame is not None:
            fate = F.when(F.col("customer_key").isNull(), "orphaned").otherwise(name)
            fates.append(frame.select("source", fate.alias("fate")))
    return reduce(DataFrame.union, fates)


def _publish(run: Run, news: list[Delivery], prepared: _Prepared) -> None:
    """Write all tables of this stage, inside `Tables.together`."""
    reconciliation, resolved = prepared.reconciliation, prepared.resolved
    total = {name: sum(counts[name] for counts in reconciliation.values()) for name in (*_OUTCOMES, *_BESIDE)}
    fields = list(run.config.fields)
    waiting = [*WAITING, *fields]
    if resolved.links is not None:
        _put(run, resolved.links.select(*LINK), "links", total["links"])
    elif news and run.config.ingest.rebuild and run.tables.exists("links"):
        # Nobody states links any more: the old ones must not come back with the first new statement.
        _put(run, run.tables.read("links").limit(0), "links", 0)
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
    columns = ["customer_key", "event_id", "event_time", "source", "id_key", *fields]
    left = []
    if resolved.moved is not None:
        left.append(resolved.moved.where(F.col("customer_key").isNull()).select(*waiting))
    made = None if resolved.picked_up is None else resolved.picked_up.select(*columns)
    if resolved.rows is not None:
        left.append(resolved.rows.where(F.col("outcome") == UNRESOLVED).select(*waiting))
        new = resolved.rows.where(F.col("outcome") == EVENT).select(*columns)
        made = new if made is None else new.unionByName(made)
    if left:
        _put(
            run,
            reduce(DataFrame.unionByName, left),
            "unresolved",
            total["unresolved"] + total["orphaned"],
        )
    if made is not None:
        stamp = F.lit(run.started_at).cast("timestamp")
        events = made.withColumns({"event_order": event_order(), "ingested_at": stamp})
        _put(run, events, "events", total["events"] + total["picked_up"])
    if prepared.quarantine is not None:
        _put(run, prepared.quarantine, "quarantine", total["quarantined"])
    if reconciliation:
        rows = [
            (
                run.run_id,
                source,
                *(counts[n] for n in ("rows_in", *_OUTCOMES, *_BESIDE)),
                run.started_at,
            )
            for source, counts in sorted(reconciliation.items())
        ]
        _put(run, local_frame(run.spark, rows, _RECONCILIATION), "reconciliation", len(rows))
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


def _is_current(run: Run) -> bool:
    return not run.tables.exists("events") or "event_order" in run.tables.read("events").columns


def _result(prepared: _Prepared) -> StageResult:
    reconciliation = prepared.reconciliation
    names = ("rows_in", *_OUTCOMES, *_BESIDE)
    counts = {name: sum(one[name] for one in reconciliation.values()) for name in names}
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
        says=f"{counts['rows_in']:,} new raw rows: {', '.join(said)}" if reconciliation else "nothing new",
        counts=counts,
        facts={"sources": reconciliation, "refused": prepared.refused},
    )
