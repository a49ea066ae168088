"""Sentences on the contact list and the reconciliation of the funnel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lam_spark.report.content import ContactList, FunnelStep, Nouns, SourceCount
from lam_spark.report.text.numbers import MINUS, count, counted, is_number


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Whether the losses of a funnel step explain the difference to the previous step.

    Attributes:
        ok: True if the counts add up.
        text: The calculation, written out.
    """

    ok: bool
    text: str


def list_sentence(contacts: ContactList, nouns: Nouns, has_offer: bool = True) -> str:
    """Say how full the list is and how many successes its scores predict.

    Args:
        contacts: The list.
        nouns: The data set's own words.
        has_offer: Whether the list proposes something. Otherwise the target, such as churn, is no success.
    """
    if contacts.customers == 0:
        places = counted(contacts.capacity, "place is", "places are")
        return f"No {nouns.customer} is on the list; {places} free."
    if contacts.customers == contacts.capacity:
        text = f"All {counted(contacts.capacity, 'place is', 'places are')} taken"
    elif contacts.customers < contacts.capacity:
        text = f"{count(contacts.customers)} of {counted(contacts.capacity, 'place', 'places')} are taken"
    else:
        text = (
            f"The list has {count(contacts.customers)} rows, more than its {count(contacts.capacity)} places"
        )
    expected = expected_successes(contacts)
    if expected is None:
        return f"{text}."
    if not has_offer:
        return (
            f"{text}. The predicted probabilities of the "
            f"{counted(contacts.customers, nouns.customer, nouns.customers)} add up to {count(round(expected))}."
        )
    return (
        f"{text}. If the predicted probabilities are right, about {count(round(expected))} of the "
        f"{counted(contacts.customers, nouns.customer, nouns.customers)} will reach the target."
    )


def expected_successes(contacts: ContactList) -> float | None:
    """Sum the predicted probabilities of the list.

    Args:
        contacts: The list.

    Returns:
        Expected number of customers who reach the target, fractional; None if the proposals do not cover the list.
    """
    if sum(p.customers for p in contacts.by_proposal) != contacts.customers:
        return None
    total = sum(p.customers * p.mean_score for p in contacts.by_proposal if p.customers)
    return total if is_number(total) else None


def later_links_sentence(sources: Sequence[SourceCount], nouns: Nouns) -> str:
    """Say how far past histories differ from what the nights of then saw; empty if they do not."""
    moved, lost, changed = (
        sum(getattr(source, name) for source in sources)
        for name in ("reassigned", "unassigned", "known_at_changed")
    )
    parts = []
    if moved + lost:
        parts.append(
            f"Later links gave {counted(moved, 'event', 'events')} to another {nouns.customer} and left "
            f"{count(lost)} without one: all histories lack them, past ones too, while the nights before had them."
        )
    if changed:
        parts.append(f"Later links changed when {counted(changed, 'event was', 'events were')} known.")
    return " ".join(
        [*parts, "To this extent, scores of past nights differ from a new computation."] if parts else []
    )


def starts_scale(steps: Sequence[FunnelStep], index: int) -> bool:
    """Return whether a funnel step is a recount: the first step, or one in another unit without losses."""
    if index == 0:
        return True
    return steps[index].unit != steps[index - 1].unit and not steps[index].losses


def reconcile(steps: Sequence[FunnelStep], index: int) -> Reconciliation | None:
    """Check the losses of a funnel step against the previous step; None for a recount."""
    if starts_scale(steps, index):
        return None
    before, step = steps[index - 1].count, steps[index]
    expected = before - sum(loss.count for loss in step.losses)
    terms = "".join(f" {MINUS} {count(loss.count)}" for loss in step.losses)
    if expected == step.count:
        return Reconciliation(True, f"{count(before)}{terms} = {count(step.count)}")
    gap = expected - step.count
    word = "unexplained" if gap > 0 else "too many"
    return Reconciliation(
        False,
        f"{count(before)}{terms} = {count(expected)}, not {count(step.count)}: {count(abs(gap))} {word}",
    )
