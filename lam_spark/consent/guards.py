"""Checks that derived data may still be used: withdrawn consent, and events that were deleted or reassigned."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible, eligible_customers
from lam_spark.errors import ConsentError
from lam_spark.events.known_at import known_before
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import FILES_VACUUMED, Tables
from lam_spark.storage.time import micros


@dataclass(frozen=True)
class ConsentCheck:
    """How the ledger was read for a derived table; stored with its commit as plain JSON values.

    Attributes:
        purpose: Purpose that the customers had agreed to.
        version: Version of the table `consent`.
        at: Instant at which statements had to be effective (ISO 8601).
    """

    purpose: str
    version: int
    at: str

    @property
    def instant(self) -> dt.datetime:
        """`at` as an instant."""
        return dt.datetime.fromisoformat(self.at)


def consent_check(tables: Tables, purpose: str, at: dt.datetime) -> ConsentCheck:
    """The check that `eligible_customers` has just made, for the commit metadata of derived tables."""
    return ConsentCheck(purpose, tables.read_versions["consent"], at.isoformat())


def count_withdrawn(
    tables: Tables, cache: FrameCache, check: ConsentCheck, purpose: str, at: dt.datetime
) -> int | None:
    """Count customers who had agreed at an earlier check and are not eligible for `purpose` at the instant `at`.

    Statements that were added or took effect since count. Cost: two shuffles of the ledger.

    Returns:
        The count; None if the earlier ledger version is no longer in the log or its files were vacuumed.

    Raises:
        ConsentError: No customer is eligible now.
    """
    if tables.log("consent").history(check.version) is None:
        return None
    ledger = tables.read("consent", check.version)
    now = eligible_customers(
        tables, cache, purpose, at
    )  # read last, so that the newest version is remembered
    agreed = eligible(ledger, [check.purpose], check.instant).select("customer_key")
    return _none_if_vacuumed(lambda: agreed.join(now, "customer_key", "left_anti").count())


def count_reassigned(
    tables: Tables, cache: FrameCache, since: int, until: dt.datetime, purpose: str, at: dt.datetime
) -> int | None:
    """Count events of an earlier version of `events` that may not be processed any more.

    Counted are events known before `until` whose customer was eligible for `purpose` and that were deleted since, or
    that a late link has assigned to a customer who is not eligible. Cost: nothing if no event changed; else the change
    feed and a join of the changed events.

    Returns:
        The count; None if it cannot be determined: the table was replaced, its log has a gap, or its change
        feed was vacuumed.

    Raises:
        ConsentError: No customer is eligible now.
    """
    if not tables.has_change_feed_since("events", since):
        return None
    if not tables.log("events").history(since):
        return 0
    feed = known_before(tables.changes("events", since), micros(until))
    before = feed.where("_change_type <> 'update_postimage'")
    state = F.struct("_commit_version", "_change_type", "customer_key")
    first = before.groupBy("event_id").agg(F.min(state).alias("_first"))
    existed = first.where("_first._change_type <> 'insert'")
    earlier = existed.select("event_id", F.col("_first.customer_key").alias("customer_key"))
    allowed = eligible_customers(tables, cache, purpose, at)
    changed = cache(earlier.join(allowed, "customer_key", "left_semi").select("event_id"))
    count = _none_if_vacuumed(changed.count)
    if not count:
        return count
    events = tables.read("events").join(changed, "event_id", "left_semi")
    return count - events.join(allowed, "customer_key", "left_semi").count()


def require_assigned(
    tables: Tables,
    cache: FrameCache,
    since: int | None,
    until: dt.datetime,
    purpose: str,
    at: dt.datetime,
    *,
    data_name: str,
    remedy: str,
) -> None:
    """Check that the events of derived data still exist and still belong to eligible customers.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        since: Version of `events` that the data was built from; None if unknown.
        until: The data holds events known before this instant.
        purpose: Purpose that the customers must have agreed to.
        at: Instant at which consent statements must be effective.
        data_name: Name of the derived data, for the message.
        remedy: What to do, for the message.

    Raises:
        ConsentError: Events were deleted or reassigned to customers who are not eligible, or it cannot be
            determined.
    """
    count = None if since is None else count_reassigned(tables, cache, since, until, purpose, at)
    if count is None:
        raise ConsentError(
            f"cannot determine whose the events in {data_name} are now: the table events was replaced since, "
            f"VACUUM has removed its change feed, or {data_name} does not record its version; {remedy}"
        )
    if count:
        raise ConsentError(
            f"{count:,} events that may be in {data_name} were deleted since, or a link has assigned them to customers "
            f"who are not eligible for {purpose!r}: {remedy}"
        )


def require_not_withdrawn(
    tables: Tables,
    cache: FrameCache,
    check: ConsentCheck | None,
    purpose: str,
    at: dt.datetime,
    *,
    data_name: str,
    remedy: str,
) -> None:
    """Check that no customer in derived data has withdrawn since the ledger was read for it.

    Raises:
        ConsentError: Customers have withdrawn, or it cannot be determined.
    """
    count = None if check is None else count_withdrawn(tables, cache, check, purpose, at)
    if count is None:
        raise ConsentError(
            f"cannot determine who has withdrawn since {data_name} was built: it does not record which version of the "
            f"consent ledger was read, or that version is gone (VACUUM); {remedy}"
        )
    if count:
        raise ConsentError(
            f"{count:,} customers whose events may be in {data_name} no longer agree to {purpose!r}: {remedy}"
        )


def _none_if_vacuumed(count: Callable[[], int]) -> int | None:
    """The count; None where the files that it needs were vacuumed."""
    try:
        return count()
    except (Py4JJavaError, PySparkException) as error:
        if FILES_VACUUMED in str(error):
            return None
        raise
