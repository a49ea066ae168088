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
from lam_spark.sources.lookups import Lookups, LookupVersion
from lam_spark.sources.slices import kept_lookups, slice_increments, watermark_metadata
from lam_spark.storage.tables.publish import transaction

_PUBLISHED = (
    "links",
    "events",
    "quarantine",
    "unresolved",
    "reconciliation",
    "ingestion_state",
    "lookups",
    "lookup_versions",
)
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
        lookups: Version that maps new rows, by look-up of the readers that had new rows.
        remapped: Reader -> why a rebuild mapped some of its earlier rows with the newest versions of its look-ups.
    """

    FORMAT = 3

    sources: dict[str, ReconciliationCounts]
    refused: dict[str, dict[str, int]]
    arrival_delays: dict[str, ArrivalDelay]
    lookups: dict[str, LookupVersion]
    remapped: dict[str, str]

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
        """Channels whose events arrive later than declared, look-ups that changed, rows without their own version."""
        late = (
            f"channels.{name}.arrival_delay is {delay.declared}; 95 % of the new events arrived within "
            f"{delay.proposed} (nights measured: {delay.nights})"
            for name, delay in self.arrival_delays.items()
            if delay.is_exceeded
        )
        changed = (
            f"look-up {name}: version {lookup.version}; new rows are mapped with it, earlier ones keep theirs"
            for name, lookup in self.lookups.items()
            if lookup.has_changed
        )
        remapped = (
            f"{reader}: some earlier rows are mapped with the newest look-ups: {reason}"
            for reader, reason in self.remapped.items()
        )
        return (*late, *changed, *remapped)


@stage
def ingest(ctx: RunContext) -> IngestResult:
    """Publish `events` (grain: an event), `links`, `unresolved` (rows whose id has no customer yet), `quarantine`.

    Look-ups whose content changed get a new version in `lookups` and `lookup_versions`; new rows are mapped with it.
    `events` has the columns `known_at` (`events.known_at`) and `event_order BIGINT`, which sorts like `event_id`.

    Raises:
        ConfigError: An input, a select, a rule or the secret is wrong.
        DataQualityError: A first load without rows, a select that multiplies or drops rows, or more refused or
            unresolved rows than `quality` allows; or a version of a look-up that a rebuild needs was deleted.
            Nothing is published.
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
        return IngestResult({}, {}, {}, {}, {})
    staging.mkdir(parents=True)  # before Spark does, with permissions of its own
    rebuild = config.ingest.rebuild
    try:
        names = {name for each in increments if each.parts for name in kept_lookups(config, each.reader)}
        lookups = Lookups(tables, config, sorted(names), staging, ctx.started_at)
        slices = slice_increments(tables, config, increments, lookups)
        staged = stage_increments(lookups, config, slices.by_reader, ctx.started_at, staging, ctx.log)
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
        lookups.with_customers(secret)
        metadata = lookups.metadata() | watermark_metadata(tables, config, increments)
        with transaction(tables, *_PUBLISHED):
            publish(tables, publication, ctx.run_id, ctx.started_at, rebuild)
            lookups.record()
            update_ingestion_state(tables, slices.all, ctx.run_id, ctx.started_at, rebuild, metadata)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    delays = arrival_delays(tables, config.channels)
    return IngestResult(sources, counts.refused, delays, lookups.results(), slices.remapped)


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
