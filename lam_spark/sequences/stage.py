"""Stage `sequences`: the vocabulary, and one row of ordered events per eligible customer.

Cost: a nightly run processes what changed (`incremental`). Where the changes cannot be determined, it processes all
events: token ids replace texts before the one shuffle (by customer), and time is linear in events. A task holds at
most a few times `max_events` events of a customer.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.config.definition import sequences_definition
from lam_spark.consent.eligibility import eligible_by_purpose
from lam_spark.consent.guards import consent_check
from lam_spark.errors import DataQualityError
from lam_spark.events.known_at import known_before
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.sequences.build import BUILD_SETTINGS, Assembler, broadcast_if_few
from lam_spark.sequences.definitions import require_fields
from lam_spark.sequences.entries import SequenceSpec
from lam_spark.sequences.incremental import UpdateResult, update
from lam_spark.sequences.lineage import RebuildNeeded, SequencesLineage, last_lineage
from lam_spark.sequences.time_range import require_as_of_within, time_range
from lam_spark.sequences.vocabulary import count_values, extend_vocabulary, top_ids
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import instant, micros


@dataclass(frozen=True)
class SequencesResult(StageResult):
    """Size of the table `sequences`, and what the run changed.

    Attributes:
        mode: Whether all rows were rebuilt or only changed customers updated.
        rebuild_reason: Why all rows were rebuilt; None after an update.
        sequences: Rows of the table.
        events_in_sequences: Events in the arrays.
        events_truncated: Events that the rows only summarise.
        longest_sequence: Events of the longest row.
        vocabulary_added: New entries of the vocabulary.
        first_event: First event of the table `events` (ISO 8601).
        last_event: Last event of the table `events` (ISO 8601).
    """

    mode: Literal["rebuild", "update"]
    rebuild_reason: str | None
    sequences: int
    events_in_sequences: int
    events_truncated: int
    longest_sequence: int
    vocabulary_added: int
    customers_added_to: int
    customers_rebuilt: int
    customers_deleted: int
    rows_inserted: int
    rows_replaced: int
    rows_deleted: int
    first_event: str
    last_event: str

    @property
    def customers_changed(self) -> int:
        """Customers whose rows may have changed."""
        return self.customers_added_to + self.customers_rebuilt + self.customers_deleted

    @property
    def message(self) -> str:
        """One line for people."""
        written = self.rows_inserted + self.rows_replaced
        return (
            f"{self.sequences:,} sequences of {self.events_in_sequences:,} events, the longest "
            f"{self.longest_sequence:,}; {self.mode} of {self.customers_changed:,} customers, {written:,} rows "
            f"written; {self.vocabulary_added:,} new vocabulary entries"
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """All integer fields and `customers_changed`."""
        return {**super().counts, "customers_changed": self.customers_changed}


@stage
def build_sequences(ctx: RunContext) -> SequencesResult:
    """Publish `vocabulary`, `value_counts` and `sequences`.

    `sequences`, grain: a customer who is eligible for training or for contact. Columns: `customer_key`, `seq_len`
    (events), `events_seen`, `first_known_at`, `last_known_at`; arrays of the latest `max_events` events known before
    `as_of`, ordered by (known_at, event_time, event_id): `known_at` and `event_time` BIGINT (microseconds UTC),
    `event_order` BIGINT (sorts like event_id), `hour_of_week` INT (0 = Sunday 00:00 local time) and one per modelled
    field; a summary of earlier events: `truncated_events`, `truncated_counts` (events by token id of
    `model.count_by`), `truncated_sums` (by numeric field); `seq_hash` of all this.

    Raises:
        ConfigError: `as_of` is not after the first event, or too long after the last one.
        ConsentError: No customer is eligible.
        DataQualityError: No eligible customer has an event that is known before `as_of`, or the events lack a declared
            field.
    """
    tables, cache, config, at = ctx.tables, ctx.cache, ctx.config, ctx.started_at
    require_fields(tables, config)
    # Later values would leak the future: for the dates of this `as_of`, whatever dates older examples have.
    cutoff = min(micros(ctx.as_of), config.micros(config.periods.test_start))
    last = last_lineage(tables, config, at)
    if isinstance(last, RebuildNeeded):
        result: UpdateResult | RebuildNeeded = last
    else:
        result = update(tables, cache, config, last, cutoff, at)
    reason = None
    if isinstance(result, RebuildNeeded):
        reason = result.reason
        result = _rebuild(tables, cache, config, cutoff, at)
    return _stage_result(tables, result, reason)


def _rebuild(tables: Tables, cache: FrameCache, config: Config, cutoff: int, at: dt.datetime) -> UpdateResult:
    """Build all tables of the stage from all events."""
    as_of = config.instant(config.as_of)
    events = tables.read("events")
    first, last = time_range(events)
    require_as_of_within(as_of, first, last, config.quality, config.time_zone)
    with session_settings(tables.spark, BUILD_SETTINGS):
        eligible = eligible_by_purpose(tables, cache, config.consent, at)
        side = broadcast_if_few(eligible)
        trained = known_before(events, cutoff).join(side.where("trains"), "customer_key", "left_semi")
        tables.overwrite(count_values(trained, config.categorical), "value_counts")
        values_added = extend_vocabulary(tables, config.fields, tables.read("value_counts"))
        visible = known_before(events, micros(as_of))
        if visible.join(side, "customer_key", "left_semi").isEmpty():
            raise DataQualityError(
                f"no eligible customer has an event that is known before {config.as_of}: nothing to learn from"
            )
        vocabulary = cache(tables.read("vocabulary"))
        lineage = SequencesLineage(
            definition=sequences_definition(config),
            events_version=tables.read_versions["events"],
            consent_check=consent_check(tables, config.consent.training_purpose, at),
            value_counts_version=tables.read_versions["value_counts"],
            as_of=micros(as_of),
            vocabulary_cutoff=cutoff,
            first_event=first,
            last_event=last,
            top_ids=top_ids(vocabulary),
        )
        count = events.count()
        assembler = Assembler(cache, SequenceSpec.of(config), vocabulary)
        rows = assembler.rows(visible, eligible, count, longest=count)
        written = tables.overwrite(rows, "sequences", metadata=lineage.to_metadata())
    return UpdateResult(lineage, values_added, customers_rebuilt=written, rows_inserted=written)


def _stage_result(tables: Tables, result: UpdateResult, rebuild_reason: str | None) -> SequencesResult:
    totals = (F.count("*"), F.sum("events_seen"), F.sum("seq_len"), F.max("seq_len"))
    row = one_row(tables.read("sequences").agg(*totals))
    rows, total_events, in_rows, longest = (int(value or 0) for value in row)
    return SequencesResult(
        mode="update" if rebuild_reason is None else "rebuild",
        rebuild_reason=rebuild_reason,
        sequences=rows,
        events_in_sequences=in_rows,
        events_truncated=total_events - in_rows,
        longest_sequence=longest,
        vocabulary_added=result.values_added,
        customers_added_to=result.customers_added_to,
        customers_rebuilt=result.customers_rebuilt,
        customers_deleted=result.customers_deleted,
        rows_inserted=result.rows_inserted,
        rows_replaced=result.rows_replaced,
        rows_deleted=result.rows_deleted,
        first_event=instant(result.lineage.first_event).isoformat(),
        last_event=instant(result.lineage.last_event).isoformat(),
    )
