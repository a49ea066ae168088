"""The contact list as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProposalCount:
    """One proposal on the contact list.

    Attributes:
        proposal: Key or short name of the proposal.
        description: What the proposal offers, in plain words.
        customers: Customers on the list who get this proposal.
        mean_score: Their mean predicted probability.
    """

    proposal: str
    description: str
    customers: int
    mean_score: float


@dataclass(frozen=True, slots=True)
class Contact:
    """One line of the contact list: one customer and the one proposal for them.

    Attributes:
        rank: Position on the list; 1 is contacted first.
        customer_key: Key of the customer; the report prints its first 12 characters.
        proposal: Key or short name of the proposal.
        description: What the proposal offers.
        score: Predicted probability.
    """

    rank: int
    customer_key: str
    proposal: str
    description: str
    score: float


@dataclass(frozen=True, slots=True)
class HistogramBin:
    """Number of customers on the list with a score in ``[low, high)``."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class ContactList:
    """The contact list that the run delivers.

    Attributes:
        path: Path of the CSV file, as the reader would type it.
        customers: Customers on the list, one row each.
        capacity: Maximum number of customers on the list.
        by_proposal: Customers by proposal, in display order; they should add up to ``customers``.
        head: First lines of the list (about 15).
        score_histogram: Scores of the customers on the list.
    """

    path: str
    customers: int
    capacity: int
    by_proposal: tuple[ProposalCount, ...] = ()
    head: tuple[Contact, ...] = ()
    score_histogram: tuple[HistogramBin, ...] = ()
