"""Reconciliation: every raw row of a run is counted under exactly one status, per source."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.events.assignment import Assigned
from lam_spark.events.deduplication import EVENT, UNRESOLVED
from lam_spark.storage.dataframes import union_all
from lam_spark.storage.time import micros

# Statuses of new raw rows; their counts add up to `rows_in`.
_STATUSES = ("events", "links", "duplicates", "quarantined", "unresolved")
# The arrival delay that a channel declares should cover this share of its events.
ARRIVAL_QUANTILE = 0.95


@dataclass(frozen=True)
class ReconciliationCounts:
    """Counts of one source in one run, or of all sources.

    Attributes:
        rows_in: New raw rows: the sum of the next five.
        events: Rows that became events.
        links: Rows that became links.
        duplicates: Rows of an event or link that is there already.
        quarantined: Refused rows.
        unresolved: Rows whose id belongs to no customer yet.
        conflicting: Duplicates whose fields differ from those of the first row.
        resolved_later: Rows of earlier runs whose id has a customer now.
        reassigned: Events of earlier runs that belong to another customer now.
        unassigned: Events of earlier runs that belong to no customer any more.
        known_at_changed: Events of earlier runs whose customer is the same, and whose `known_at` changed.
    """

    rows_in: int = 0
    events: int = 0
    links: int = 0
    duplicates: int = 0
    quarantined: int = 0
    unresolved: int = 0
    conflicting: int = 0
    resolved_later: int = 0
    reassigned: int = 0
    unassigned: int = 0
    known_at_changed: int = 0

    @classmethod
    def total(cls, counts: Iterable[ReconciliationCounts]) -> ReconciliationCounts:
        """Sum of the counts of several sources."""
        values = [dataclasses.asdict(source_counts) for source_counts in counts]
        return cls(
            **{field.name: sum(row[field.name] for row in values) for field in dataclasses.fields(cls)}
        )


def reconcile(
    rows_in: Mapping[str, int],
    refused: Mapping[str, Mapping[str, int]],
    link_readers: Iterable[str],
    assigned: Assigned,
    started_at: dt.datetime,
) -> tuple[dict[str, ReconciliationCounts], dict[str, int]]:
    """Count the new raw rows of each source by status, from what was staged.

    Args:
        rows_in: New raw rows by reader.
        refused: Refused rows by reader and reason.
        link_readers: Readers that are link statements.
        assigned: Accepted rows and links.
        started_at: Start of the run (UTC).

    Returns:
        Counts by source; and source -> 95th percentile of the seconds from `event_time` to `started_at` over its new
        events, for the sources that have any.

    Raises:
        DataQualityError: The statuses do not add up to the rows that came in.
    """
    counts: dict[str, dict[str, int]] = {
        reader: {"rows_in": total, "quarantined": sum(refused.get(reader, {}).values())}
        for reader, total in rows_in.items()
    }
    arrival_seconds = {}
    groups = _statuses(assigned, started_at).groupBy("_source", "_status")
    delay = F.percentile_approx("_delay", F.lit(ARRIVAL_QUANTILE)).alias("_delay")
    for row in groups.agg(F.count("*").alias("_rows"), delay).toLocalIterator():
        # Late links concern rows of earlier runs, whose source may have no new rows.
        counts.setdefault(row["_source"], {})[row["_status"]] = row["_rows"]
        if row["_delay"] is not None:
            arrival_seconds[row["_source"]] = row["_delay"]
    for reader in set(link_readers) & set(rows_in):
        of_reader = counts[reader]
        of_reader["duplicates"] = of_reader["rows_in"] - of_reader["quarantined"] - of_reader.get("links", 0)
    sources = {source: ReconciliationCounts(**of_source) for source, of_source in counts.items()}
    for source, reconciled in sources.items():
        if reconciled.rows_in != sum(getattr(reconciled, name) for name in _STATUSES):
            raise DataQualityError(
                f"the counts of {source} do not add up: expected rows_in to be the sum of {', '.join(_STATUSES)}, got "
                f"{dataclasses.asdict(reconciled)}; nothing was published. Report this as a defect"
            )
    return sources, arrival_seconds


def _statuses(assigned: Assigned, started_at: dt.datetime) -> DataFrame:
    """`_source, _status, _delay` of all that was assigned.

    `_status` is a field of `ReconciliationCounts`; `_delay` is the seconds from a new event to the start of the run,
    null for all else.
    """
    statuses = []
    no_delay = F.lit(None).cast("bigint")
    if assigned.rows is not None:
        status = F.when(F.col("_status") == EVENT, "events").when(
            F.col("_status") == UNRESOLVED, "unresolved"
        )
        delay = F.lit(micros(started_at) // 1_000_000) - F.unix_seconds("event_time")
        delay = F.when(F.col("_status") == EVENT, delay)
        statuses.append(assigned.rows.select("source", status.otherwise("duplicates"), delay))
        conflicting = assigned.rows.where("_conflicting")
        statuses.append(conflicting.select("source", F.lit("conflicting"), no_delay))
    if assigned.links is not None:
        statuses.append(assigned.links.select("source", F.lit("links"), no_delay))
    if assigned.resolved_later is not None:
        statuses.append(assigned.resolved_later.select("source", F.lit("resolved_later"), no_delay))
    if assigned.reassigned is not None:
        status = (
            F.when(F.col("customer_key").isNull(), "unassigned")
            .when(F.col("customer_key") == F.col("_previous"), "known_at_changed")
            .otherwise("reassigned")
        )
        statuses.append(assigned.reassigned.select("source", status, no_delay))
    return union_all(frame.toDF("_source", "_status", "_delay") for frame in statuses)


def require_share(
    limit: float, what: str, key: str, reader: str, count: int, total: int, reasons: Mapping[str, int]
) -> None:
    """Check that the share of a reader's new rows that went wrong is within its limit.

    Args:
        limit: Largest accepted share, 0 to 1.
        what: What happened to the rows, for the message.
        key: Configuration key of the limit, for the message.
        reader: Channel or link statement.
        count: Rows that went wrong.
        total: New rows of the reader.
        reasons: Rows by reason, for the message; may be empty.

    Raises:
        DataQualityError: The share is too large.
    """
    if count > limit * total:
        texts = "; ".join(f"{reason}: {rows:,}" for reason, rows in reasons.items())
        raise DataQualityError(
            f"{reader}: {count:,} of {total:,} new rows ({count / total:.1%}) were {what}, the limit is {limit:.1%}"
            f"{f' ({texts})' if texts else ''}. Nothing was published; correct the source or raise {key}"
        )
