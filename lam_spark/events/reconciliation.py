"""Reconciliation: every raw row of a run is counted under exactly one status, per source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.events.assignment import Assigned
from lam_spark.events.deduplication import EVENT, UNRESOLVED
from lam_spark.storage.dataframes import union_all

# Statuses of new raw rows; their counts add up to `rows_in`.
_STATUSES = ("events", "links", "duplicates", "quarantined", "unresolved")


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
) -> dict[str, ReconciliationCounts]:
    """Count the new raw rows of each source by status, from what was staged.

    Args:
        rows_in: New raw rows by reader.
        refused: Refused rows by reader and reason.
        link_readers: Readers that are link statements.
        assigned: Accepted rows and links.

    Raises:
        DataQualityError: The statuses do not add up to the rows that came in.
    """
    counts: dict[str, dict[str, int]] = {
        reader: {"rows_in": total, "quarantined": sum(refused.get(reader, {}).values())}
        for reader, total in rows_in.items()
    }
    for row in _statuses(assigned).groupBy("_source", "_status").count().toLocalIterator():
        # Late links concern rows of earlier runs, whose source may have no new rows.
        counts.setdefault(row["_source"], {})[row["_status"]] = row["count"]
    for reader in set(link_readers) & set(rows_in):
        source_counts = counts[reader]
        accepted = source_counts["rows_in"] - source_counts["quarantined"]
        source_counts["duplicates"] = accepted - source_counts.get("links", 0)
    sources = {source: ReconciliationCounts(**source_counts) for source, source_counts in counts.items()}
    for source, reconciled in sources.items():
        if reconciled.rows_in != sum(getattr(reconciled, name) for name in _STATUSES):
            raise DataQualityError(
                f"the counts of {source} do not add up: expected rows_in to be the sum of {', '.join(_STATUSES)}, got "
                f"{dataclasses.asdict(reconciled)}; nothing was published. Report this as a defect"
            )
    return sources


def _statuses(assigned: Assigned) -> DataFrame:
    """`_source, _status` of all that was assigned; `_status` is a field of `ReconciliationCounts`."""
    statuses = []
    if assigned.rows is not None:
        status = F.when(F.col("_status") == EVENT, "events").when(
            F.col("_status") == UNRESOLVED, "unresolved"
        )
        statuses.append(assigned.rows.select("source", status.otherwise("duplicates")))
        statuses.append(assigned.rows.where("_conflicting").select("source", F.lit("conflicting")))
    if assigned.links is not None:
        statuses.append(assigned.links.select("source", F.lit("links")))
    for frame, name in (
        (assigned.resolved_later, "resolved_later"),
        (assigned.reassigned, "reassigned"),
    ):
        if frame is not None:
            status = F.when(F.col("customer_key").isNull(), "unassigned").otherwise(name)
            statuses.append(frame.select("source", status))
    return union_all(frame.toDF("_source", "_status") for frame in statuses)


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
