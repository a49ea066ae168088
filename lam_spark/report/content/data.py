"""Counts of rows, events and customers from the raw data to the delivered list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Unit = Literal["rows", "events", "customers", "proposals"]
"""The unit that a step of the funnel counts."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One reason why a funnel step is smaller than the step before it.

    Attributes:
        reason: The reason in plain words, e.g. "no consent for marketing".
        count: Number removed for this reason, in the unit of the previous step.
    """

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """One step between the raw rows and the delivered customers.

    A step continues the previous one if it has losses or the same unit. The report then checks that
    ``previous.count == count + sum(losses)`` and shows a mismatch in red. A step in another unit without losses
    is a recount (for example customers after events): it is not checked, and its bar starts a new scale.
    Losses of the first step are listed but not checked.

    Attributes:
        label: Short name of the step, e.g. "customers with consent".
        count: Number left after this step, in ``unit``.
        unit: Unit of ``count``.
        losses: Number removed between the previous step and this one, by reason.
        note: One sentence about the step, or empty.
    """

    label: str
    count: int
    unit: Unit
    losses: tuple[Loss, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class SourceCount:
    """Raw rows of one source by row status; every row has exactly one of the four statuses.

    Attributes:
        source: Name of the source.
        rows_in: Raw rows read.
        events: Rows that became an event.
        duplicates: Rows dropped because the same event already exists.
        quarantined: Rows moved to quarantine because they violate a data quality check.
        unresolved: Rows set aside because their id (a cookie, a phone number) is unassigned.
        reassigned: Events that a later link gave to another customer, over all nights.
        unassigned: Events that a later link took from their customer, over all nights.
        known_at_changed: Events that a later link made known at another instant, over all nights.
    """

    source: str
    rows_in: int
    events: int
    duplicates: int
    quarantined: int
    unresolved: int = 0
    reassigned: int = 0
    unassigned: int = 0
    known_at_changed: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """How long the events of a channel take to arrive.

    Attributes:
        source: Name of the channel.
        declared: Delay that the configuration declares, e.g. "6h".
        proposed: Delay within which 95 % of the new events arrived, e.g. "31h".
        nights: Nights that were measured; the first load is not.
    """

    source: str
    declared: str
    proposed: str
    nights: int


@dataclass(frozen=True, slots=True)
class StaleChannel:
    """A channel that is silent for longer than is usual for it.

    Attributes:
        source: Name of the channel.
        silence: The silence in words, e.g. "no event since 2024-11-17, which is 41 days ...".
        targets: Targets whose labels wait for it.
    """

    source: str
    silence: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """The newest content of an input that selects look values up in.

    Attributes:
        name: Name of the input.
        version: Number of the content; 1 mapped the history of the first load.
        since: When this content was read first (UTC).
        first_recorded: When version 1 was read (UTC).
    """

    name: str
    version: int
    since: datetime
    first_recorded: datetime


@dataclass(frozen=True, slots=True)
class ConsentCount:
    """Customers by consent status for one purpose; every customer has exactly one status.

    Attributes:
        purpose: The purpose, e.g. "marketing by post".
        opted_in: Customers who agreed.
        opted_out: Customers who refused or withdrew.
        never_asked: Customers without a consent record.
        unclear: Customers whose consent records contradict each other.
    """

    purpose: str
    opted_in: int
    opted_out: int
    never_asked: int
    unclear: int


@dataclass(frozen=True, slots=True)
class QueryCount:
    """All queries of one target: the examples of each split, and the queries that give no example.

    Attributes:
        target: Name of the target.
        queries: All queries; the used and unused ones add up to them.
        used: (split, examples) in order of time.
        unused: Queries that give no example, by reason.
    """

    target: str
    queries: int
    used: tuple[tuple[str, int], ...]
    unused: tuple[Loss, ...]
