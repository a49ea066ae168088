"""Publishing of an ingest run: new rows go to the tables, rows of earlier runs are updated, counts are checked."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.events.assignment import UNRESOLVED_COLUMNS, Assigned
from lam_spark.events.deduplication import EVENT, UNRESOLVED, event_order
from lam_spark.events.reconciliation import ReconciliationCounts
from lam_spark.identity.links import LINK_COLUMNS
from lam_spark.storage.dataframes import local_frame, union_all
from lam_spark.storage.tables.registry import TABLES
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal

_EVENT_COLUMNS = ["customer_key", "event_id", "event_time", "known_at", "source", "id_key"]


@dataclass(frozen=True)
class Publication:
    """What a run publishes.

    Attributes:
        sources: Reconciliation counts by source.
        arrival_seconds: Source -> measured arrival delay of its new events (`arrival.measured_delays`).
        assigned: New events and links, and the earlier rows that they change.
        quarantine: Refused rows.
        fields: Declared fields.
    """

    sources: Mapping[str, ReconciliationCounts]
    arrival_seconds: Mapping[str, int]
    assigned: Assigned
    quarantine: DataFrame
    fields: tuple[str, ...]


def publish(
    tables: Tables, publication: Publication, run_id: str, started_at: dt.datetime, rebuild: bool
) -> None:
    """Write all tables of ingest but `ingestion_state`; called inside a transaction.

    Raises:
        DataQualityError: Delta wrote another number of rows than was counted.
    """
    writer = _Writer(tables, rebuild)
    assigned, fields = publication.assigned, publication.fields
    total = ReconciliationCounts.total(publication.sources.values())
    if assigned.links is not None:
        writer.write(assigned.links.select(*LINK_COLUMNS), "links", total.links)
    elif rebuild and tables.exists("links"):
        # Without a link statement, old links are deleted: they must not apply again after a new one is configured.
        writer.write(tables.read("links").limit(0), "links", 0)
    _update_earlier_rows(tables, assigned, total)
    unresolved = _new_unresolved(assigned, [*UNRESOLVED_COLUMNS, *fields])
    if unresolved is not None:
        writer.write(unresolved, "unresolved", total.unresolved + total.unassigned)
    events = _new_events(assigned, [*_EVENT_COLUMNS, *fields])
    if events is not None:
        ingested_at = F.expr(sql_literal(started_at))
        events = events.withColumns({"event_order": event_order(), "ingested_at": ingested_at})
        writer.write(events, "events", total.events + total.resolved_later)
    writer.write(publication.quarantine, "quarantine", total.quarantined)
    rows = [
        (run_id, source, *dataclasses.astuple(counts), publication.arrival_seconds.get(source), started_at)
        for source, counts in sorted(publication.sources.items())
    ]
    columns = TABLES["reconciliation"].columns
    schema = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    writer.write(local_frame(tables.spark, rows, schema), "reconciliation", len(rows))


def _update_earlier_rows(tables: Tables, assigned: Assigned, total: ReconciliationCounts) -> None:
    """Apply late links to rows of earlier runs: in `unresolved` and `events`."""
    if assigned.resolved_later is not None and total.resolved_later:
        keys = assigned.resolved_later.select("event_id")
        tables.update(keys, "unresolved", "event_id", delete_where="true")
    if assigned.reassigned is not None and total.reassigned + total.unassigned + total.known_at_changed:
        tables.update(
            assigned.reassigned.select("event_id", "customer_key", "known_at"),
            "events",
            "event_id",
            columns=["customer_key", "known_at"],
            delete_where="fresh.customer_key IS NULL",
        )


def _new_unresolved(assigned: Assigned, columns: list[str]) -> DataFrame | None:
    """Rows for `unresolved`: new rows without a customer, and events that lost their customer. None if no frames."""
    frames = []
    if assigned.reassigned is not None:
        frames.append(assigned.reassigned.where(F.col("customer_key").isNull()).select(*columns))
    if assigned.rows is not None:
        frames.append(assigned.rows.where(F.col("_status") == UNRESOLVED).select(*columns))
    return union_all(frames) if frames else None


def _new_events(assigned: Assigned, columns: list[str]) -> DataFrame | None:
    """Rows for `events`: new events, and earlier rows that were resolved later; None if no frame has any."""
    frames = []
    if assigned.rows is not None:
        frames.append(assigned.rows.where(F.col("_status") == EVENT).select(*columns))
    if assigned.resolved_later is not None:
        frames.append(assigned.resolved_later.select(*columns))
    return union_all(frames) if frames else None


@dataclass(frozen=True)
class _Writer:
    """Appends to tables, or replaces them on a rebuild, and checks the number of rows written."""

    tables: Tables
    rebuild: bool

    def write(self, frame: DataFrame, name: str, expected: int) -> None:
        """Write a table; nothing is committed where no row is expected and the table exists."""
        if self.rebuild or not self.tables.exists(name):
            written = self.tables.overwrite(frame, name)
        elif expected:
            written = self.tables.append(frame, name)
        else:
            return
        if written != expected:
            raise DataQualityError(
                f"table {name!r}: expected to write {expected:,} rows, as counted before, wrote {written:,}; all "
                "tables are rolled back. Check that no input changes during a run, then run the stage again"
            )
