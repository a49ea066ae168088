"""Stage `ingest`: new raw rows of every channel become events; every raw row is accounted for.

New rows are mapped once into a staging folder, counted, and published only if the quality gates hold: all tables of
this stage change together or none does. A run that dies leaves the last good tables; the next run rolls back what
it had begun, clears its staging folder and ingests the same rows again.

Cost: linear in the new rows (one pass over them, one shuffle by `event_id` for deduplication), plus the files of
`events` in the time span of the new rows. Only counts by source and reason come to the driver.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from lam_spark.config import QualityConfig
from lam_spark.events.arrival import ArrivalDelay, arrival_delays
from lam_spark.events.assignment import assign_customers
from lam_spark.events.publish import Publication, publish
from lam_spark.events.quarantine import quarantine_rows
from lam_spark.events.reconciliation import ReconciliationCounts, reconcile, require_share
from lam_spark.events.staging import StagedRows, count_staged, stage_increments
from lam_spark.identity.pseudonyms import matching_secret
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.sources.ingestion_state import find_increments, update_ingestion_state
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.tables.publish import transaction

_PUBLISHED = ("links", "events", "quarantine", "unresolved", "reconciliation", "ingestion_state")
# Counts that the message names only where they are not zero.
_FURTHER_COUNTS = {
    "links": "links",
    "unresolved": "unresolved",
    "resolved_later": "resolved later",
    "reassigned": "reassigned to another customer",
    "unassigned": "no longer assigned to a customer",
    "known_at_changed": "known at another time",
    "conflicting": "conflicting",
}


@dataclass(frozen=True)
class IngestResult(StageResult):
    """Result of `ingest`.

    Attributes:
        sources: Reconciliation counts by source; empty if nothing was new.
        refused: Refused rows by reader and reason.
        arrival_delays: Declared and proposed delay by channel, from the nights after its first load.
    """

    FORMAT = 2

    sources: dict[str, ReconciliationCounts]
    refused: dict[str, dict[str, int]]
    arrival_delays: dict[str, ArrivalDelay]

    @property
    def total(self) -> ReconciliationCounts:
        """Counts of all sources together."""
        return ReconciliationCounts.total(self.sources.values())

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts of all sources together, by name."""
        return dataclasses.asdict(self.total)

    @property
    def message(self) -> str:
        """One line for people."""
        if not self.sources:
            return "nothing new"
        counts = self.counts
        texts = [f"{counts[name]:,} {name}" for name in ("events", "duplicates", "quarantined")]
        texts += [f"{counts[name]:,} {text}" for name, text in _FURTHER_COUNTS.items() if counts[name]]
        return f"{counts['rows_in']:,} new raw rows: {', '.join(texts)}"

    @property
    def details(self) -> tuple[str, ...]:
        """A line for each channel whose events arrive later than it declares."""
        return tuple(
            f"channels.{name}.arrival_delay is {delay.declared}; 95 % of the new events arrived within "
            f"{delay.proposed} (nights measured: {delay.nights})"
            for name, delay in self.arrival_delays.items()
            if delay.is_exceeded
        )


@stage
def ingest(ctx: RunContext) -> IngestResult:
    """Publish `events` (grain: an event), `links`, `unresolved` (rows whose id has no customer yet), `quarantine`.

    `events` has the columns `known_at` (`events.known_at`) and `event_order BIGINT`, which sorts like `event_id`.

    Raises:
        ConfigError: An input, a select, a rule or the secret is wrong.
        DataQualityError: A first load without rows, a select that multiplies or drops rows, or more refused or
            unresolved rows than `quality` allows; nothing is published.
    """
    config, tables = ctx.config, ctx.tables
    secret = matching_secret(tables, config.identity)  # before the work, not after it
    staging = config.workspace / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    readers = [*config.identity.links, *config.channels]
    increments = [
        increment
        for increment in find_increments(tables, config, readers, ctx.run_id)
        if increment.parts or increment.is_first
    ]
    if not increments:
        return IngestResult({}, {}, {})
    staging.mkdir(parents=True)  # before Spark does, with permissions of its own
    rebuild = config.ingest.rebuild
    try:
        inputs = Inputs(ctx.spark, config.inputs, config.views)
        staged = stage_increments(inputs, config, increments, ctx.started_at, staging, ctx.log)
        counts = count_staged(config, staged)
        _require_few_refused(config.quality, staged, counts.refused)
        frames = {reader: rows.frame for reader, rows in staged.items()}
        assigned = assign_customers(tables, config, frames, counts.span, secret, staging)
        rows_in = {reader: rows.count for reader, rows in staged.items()}
        sources, arrival_seconds = reconcile(
            rows_in, counts.refused, config.identity.links, assigned, ctx.started_at
        )
        # A first load and a rebuild read years at once: they say nothing about delays.
        nightly = {i.reader for i in increments if not (i.is_first or rebuild)}
        arrival_seconds = {name: seconds for name, seconds in arrival_seconds.items() if name in nightly}
        _require_few_unresolved(config.quality, sources)
        quarantine = quarantine_rows(frames.values(), ctx.run_id)
        publication = Publication(sources, arrival_seconds, assigned, quarantine, tuple(config.fields))
        with transaction(tables, *_PUBLISHED):
            publish(tables, publication, ctx.run_id, ctx.started_at, rebuild)
            update_ingestion_state(tables, increments, ctx.run_id, ctx.started_at, rebuild)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return IngestResult(sources, counts.refused, arrival_delays(tables, config.channels))


def _require_few_refused(
    quality: QualityConfig, staged: Mapping[str, StagedRows], refused: Mapping[str, Mapping[str, int]]
) -> None:
    key = "quality.max_quarantine_share"
    for reader, rows in staged.items():
        reasons = refused[reader]
        count = sum(reasons.values())
        require_share(quality.max_quarantine_share, "refused", key, reader, count, rows.count, reasons)


def _require_few_unresolved(quality: QualityConfig, sources: Mapping[str, ReconciliationCounts]) -> None:
    limit, key = quality.max_unresolved_share, "quality.max_unresolved_share"
    for source, counts in sources.items():
        require_share(limit, "unresolved", key, source, counts.unresolved, counts.rows_in, {})
