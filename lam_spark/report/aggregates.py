"""What the report reads from tables: aggregates and the head of the contact list."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ChannelConfig
from lam_spark.events.arrival import arrival_delays
from lam_spark.report.content import (
    Arrival,
    Contact,
    ContactList,
    HistogramBin,
    Lookup,
    ProposalCount,
    SourceCount,
)
from lam_spark.sources.lookups import latest_lookups
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal

_HEAD_ROWS = 15
_HISTOGRAM_BINS = 20
_COUNTS = (
    "rows_in",
    "events",
    "duplicates",
    "quarantined",
    "unresolved",
    "resolved_later",
    "reassigned",
    "unassigned",
    "known_at_changed",
)


def count_rows_by_channel(tables: Tables, channels: Sequence[str]) -> tuple[SourceCount, ...]:
    """Status of all rows that each channel ever delivered, as of the newest ingestion."""
    reconciliation = tables.read("reconciliation").where(F.col("source").isin(*channels))
    sums = reconciliation.groupBy("source").agg(*(F.sum(name).alias(name) for name in _COUNTS))
    by_source = {row["source"]: row for row in sums.toLocalIterator()}
    counts = []
    for source in channels:
        if source in by_source:
            row = by_source[source]
            assigned_later = row["resolved_later"] - row["unassigned"]
            counts.append(
                SourceCount(
                    source=source,
                    rows_in=row["rows_in"],
                    events=row["events"] + assigned_later,
                    duplicates=row["duplicates"],
                    quarantined=row["quarantined"],
                    unresolved=row["unresolved"] - assigned_later,
                    reassigned=row["reassigned"],
                    unassigned=row["unassigned"],
                    known_at_changed=row["known_at_changed"],
                )
            )
    return tuple(counts)


def measured_arrivals(tables: Tables, channels: Mapping[str, ChannelConfig]) -> tuple[Arrival, ...]:
    """Declared and proposed delays of the channels that were measured on a night."""
    delays = arrival_delays(tables, channels)
    return tuple(
        Arrival(name, delay.declared, delay.proposed, delay.nights) for name, delay in delays.items()
    )


def recorded_lookups(tables: Tables, names: Iterable[str]) -> tuple[Lookup, ...]:
    """The newest version of these look-ups; those without a version are left out."""
    return tuple(
        Lookup(
            name,
            of.version,
            dt.datetime.fromisoformat(of.since),
            dt.datetime.fromisoformat(of.first_recorded),
        )
        for name, of in latest_lookups(tables, names).items()
    )


def count_rejected_rows(tables: Tables, channels: Sequence[str]) -> dict[str, int]:
    """Rejected rows of these channels over all runs, by reason."""
    rejected = tables.read("quarantine").where(F.col("source").isin(*channels))
    counted = rejected.groupBy("reason").count().orderBy("reason")
    return {row["reason"]: row["count"] for row in counted.toLocalIterator()}


def read_contact_list(tables: Tables, as_of: dt.datetime, path: str, capacity: int) -> ContactList:
    """The list of an `as_of`: its head, its customers by proposal, and a histogram of its scores."""
    listed = tables.read("contact_list").where(F.col("as_of") == F.expr(sql_literal(as_of)))
    by_proposal = (
        listed.groupBy("proposal_id", "description")
        .agg(F.count("*").alias("customers"), F.avg("proposal_necessity").alias("mean"))
        .orderBy(F.desc("customers"), "proposal_id")
    )
    proposals = tuple(
        ProposalCount(row["proposal_id"], row["description"], row["customers"], row["mean"])
        for row in by_proposal.toLocalIterator()
    )
    return ContactList(
        path=path,
        customers=sum(proposal.customers for proposal in proposals),
        capacity=capacity,
        by_proposal=proposals,
        head=tuple(
            Contact(
                row["rank"],
                row["customer_key"],
                row["proposal_id"],
                row["description"],
                row["proposal_necessity"],
            )
            for row in listed.orderBy("rank").limit(_HEAD_ROWS).toLocalIterator()
        ),
        score_histogram=_score_histogram(listed),
    )


def _score_histogram(listed: DataFrame) -> tuple[HistogramBin, ...]:
    """Bins of equal width between the lowest and the highest score; empty for an empty list."""
    low, high = one_row(listed.agg(F.min("proposal_necessity"), F.max("proposal_necessity")))
    if low is None:
        return ()
    width = (high - low) / _HISTOGRAM_BINS or 1.0
    index = F.least(F.floor((F.col("proposal_necessity") - low) / width), F.lit(_HISTOGRAM_BINS - 1))
    counts = {
        row["_bin"]: row["count"] for row in listed.groupBy(index.alias("_bin")).count().toLocalIterator()
    }
    return tuple(
        HistogramBin(low + i * width, low + (i + 1) * width, counts.get(i, 0)) for i in range(_HISTOGRAM_BINS)
    )
