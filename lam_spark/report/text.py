"""Numbers as text, and the sentences of the report that are computed from numbers.

A sentence says what its numbers say: that the model lost where it lost, and that chance may explain a lead
where the intervals overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from lam_spark.report.content import (
    Calibration,
    ContactList,
    Decile,
    FunnelStep,
    HeldOut,
    Nouns,
    Ranking,
    Unit,
)

MISSING = "n/a"
MINUS = "\u2212"
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

VerdictKind = Literal["better", "unclear", "worse", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model leads the strongest rule: a kind, a short title and a sentence of evidence."""

    kind: VerdictKind
    title: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Balance:
    """Whether a funnel step accounts for the step before it.

    Attributes:
        ok: True if the losses add up.
        text: The sum, written out.
    """

    ok: bool
    text: str


def is_number(value: float | None) -> bool:
    """Whether ``value`` is a finite number."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """A count with thousands separators; one decimal only if it is not whole."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value - round(value)) < 0.05:
        return f"{round(value):,}"
    return f"{value:,.1f}"


def counted(value: float | None, one: str, many: str) -> str:
    """A count with its noun, in the singular for 1."""
    text = count(value)
    return f"{text} {one if text == '1' else many}"


def unit(name: Unit, customers: str) -> str:
    """A funnel step's unit in the words of the data set."""
    return customers if name == "customers" else name


def percent(value: float | None) -> str:
    """A fraction as a percentage: one decimal, two below 1 %, none at 0 % and 100 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    shown = value * 100
    if shown in (0.0, 100.0):
        return f"{shown:.0f}%"
    if 0 < shown < 0.01:
        return "<0.01%"
    if 99.95 <= shown < 100:
        return ">99.9%"
    return f"{shown:.2f}%" if abs(shown) < 1 else f"{shown:.1f}%"


def ratio(value: float | None) -> str:
    """A ratio such as a lift, with one decimal (two below 1)."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if value < 0.995:
        return f"{value:.2f}"
    return f"{value:,.1f}"


def three(value: float | None) -> str:
    """A fraction such as an AUC with three decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them, e.g. "4 min 12 s"."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gib(value: float | None) -> str:
    """A memory size in GiB."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.1f} GiB"


def day(value: date) -> str:
    """A date as "14 March 2017", in any locale."""
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def moment(value: datetime) -> str:
    """A time with its zone as "14 March 2017, 09:30 UTC"."""
    utc = value.astimezone(UTC)
    return f"{day(utc.date())}, {utc:%H:%M} UTC"


def _auc_range(ranking: Ranking) -> tuple[float, float] | None:
    low, high = ranking.auc_low, ranking.auc_high
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return None
    return low, high


def auc_text(ranking: Ranking) -> str:
    """A ranking's AUC with its interval, if it has one."""
    ends = _auc_range(ranking)
    if ends is None or not is_number(ranking.auc):
        return three(ranking.auc)
    return f"{three(ranking.auc)}, 95% range {three(ends[0])} to {three(ends[1])}"


def first_tenth(ranking: Ranking | None) -> Decile | None:
    """The tenth that a ranking put first, if it has one with a measured lift."""
    if ranking is None:
        return None
    for decile in ranking.deciles:
        if decile.decile == 1 and is_number(decile.lift) and decile.examples > 0:
            return decile
    return None


def verdict(held_out: HeldOut | None, nouns: Nouns) -> Verdict:
    """Whether the model leads the strongest rule, by AUC over all held-out examples.

    Args:
        held_out: What happened in the held-out period.
        nouns: The words of the data set.

    Returns:
        "better" or "worse" only where the interval of the paired difference excludes zero or, without one,
        where the two AUC intervals do not overlap; "worse" also where the model is no better than chance;
        "unclear" otherwise; "unmeasured" without an AUC.
    """
    if held_out is None:
        return Verdict(
            "unmeasured", "Not measured", "No period was held out, so nothing here has been tested."
        )
    if held_out.examples == 0:
        return Verdict(
            "unmeasured",
            "Not measured",
            f"The held-out period has no {nouns.examples}: nothing to measure on.",
        )
    if held_out.positives == 0:
        text = (
            f"Of the {counted(held_out.examples, nouns.example, nouns.examples)} in the held-out period "
            f"not one {nouns.outcome_verb}, so no ordering can be told from another."
        )
        return Verdict("unmeasured", "Not measured", text)
    model, rule = held_out.model, held_out.rule
    if model is None or model.auc is None or not is_number(model.auc):
        return Verdict(
            "unmeasured", "Not measured", "The model's ordering of the held-out period is missing."
        )
    opening = (
        f"Take one {nouns.example} that {nouns.outcome_verb} and one that did not: the model ranks the first one "
        f"higher in {percent(model.auc)} of such pairs (AUC {auc_text(model)})"
    )
    ends = _auc_range(model)
    if model.auc <= 0.5 or (ends is not None and ends[0] <= 0.5):
        lost = rule is not None and rule.auc is not None and rule.auc > model.auc
        behind = (
            f"; ordering by {rule.name} does better (AUC {auc_text(rule)})"
            if lost and rule is not None
            else ""
        )
        text = f"{opening}. A coin gives 50%: the model's order is not better than chance{behind}."
        return Verdict("worse", "The model does not beat a coin", text)
    if rule is None or rule.auc is None or not is_number(rule.auc):
        if ends is None:
            return Verdict("unclear", "Compared with chance only", f"{opening}; a coin gives 50%.")
        return Verdict(
            "unclear",
            "Better than chance",
            f"{opening}; a coin gives 50%. There is no simple rule to compare with.",
        )
    text = f"{opening}, ordering by {rule.name} in {percent(rule.auc)} (AUC {auc_text(rule)})."
    return _compare(model, rule, text)


def _compare(model: Ranking, rule: Ranking, text: str) -> Verdict:
    assert model.auc is not None
    assert rule.auc is not None
    low, high = rule.lead_low, rule.lead_high
    if low is not None and high is not None and is_number(low) and is_number(high):
        span = f"{signed(low)} to {signed(high)}"
        if low > 0:
            sure = f"Measured on the same people, the lead is {span} (95% range), so it is not chance alone."
            return Verdict("better", "The model beats the simple rule", f"{text} {sure}")
        if high < 0:
            sure = f"Measured on the same people, the difference is {span} (95% range): the model lost."
            return Verdict("worse", "The model lost to the simple rule", f"{text} {sure}")
        sure = (
            f"Measured on the same people, the difference is {span} (95% range): chance alone may explain it."
        )
        return Verdict("unclear", _unclear_title(model.auc, rule.auc), f"{text} {sure}")
    mine, other = _auc_range(model), _auc_range(rule)
    if mine is None or other is None:
        title = _unclear_title(model.auc, rule.auc)
        return Verdict("unclear", title, f"{text} Without both intervals, chance cannot be ruled out.")
    apart = "The two ranges do not overlap, so the lead is not chance alone."
    if mine[0] > other[1]:
        return Verdict("better", "The model beats the simple rule", f"{text} {apart}")
    if mine[1] < other[0]:
        return Verdict(
            "worse",
            "The model lost to the simple rule",
            f"{text} The two ranges do not overlap: the model lost, and the rule is the better choice.",
        )
    title = _unclear_title(model.auc, rule.auc)
    return Verdict(
        "unclear", title, f"{text} The two ranges overlap: chance alone may explain the difference."
    )


def _unclear_title(model: float, rule: float) -> str:
    if three(model) == three(rule):
        return "The model and the simple rule are level"
    if model < rule:
        return "The model is behind the simple rule, perhaps by chance"
    return "The model is ahead of the simple rule, perhaps by chance"


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign."""
    return f"{MINUS if value < 0 else '+'}{abs(value):.{decimals}f}"


def lift_sentence(held_out: HeldOut | None, nouns: Nouns) -> str:
    """What the tenth ranked first did, against the rule's first tenth and a tenth picked at random."""
    if held_out is None or held_out.positives == 0:
        return "Lift cannot be measured: there is no held-out success to count."
    model, rule = held_out.model, held_out.rule
    mine, other = first_tenth(model), first_tenth(rule)
    if model is None or mine is None:
        return "The model's first tenth was not measured."
    text = (
        f"The tenth of {nouns.examples} that the model ranked first {nouns.outcome_verb} {_times(mine.lift)}"
    )
    if mine.lift < 0.995:
        text += ", which is worse than picking at random"
    if other is None or rule is None:
        return f"{text}{_range_text(model)}."
    text += f"; ordering by {rule.name} gives {ratio(other.lift)}."
    return f"{text} {_first_tenths(mine, other, model, rule)}"


def _times(lift: float) -> str:
    if lift == 0:
        return "not once"
    if ratio(lift) == "1.0":
        return "as often as a tenth picked at random"
    return f"{ratio(lift)} times as often as a tenth picked at random"


def _range_text(ranking: Ranking) -> str:
    ends = ranking.lift_range
    return "" if ends is None else f" (95% range {ratio(ends[0])} to {ratio(ends[1])})"


def _first_tenths(mine: Decile, other: Decile, model: Ranking, rule: Ranking) -> str:
    if ratio(mine.lift) == ratio(other.lift):
        return "In this tenth the two are level."
    who = "" if mine.lift > other.lift else "Here the model lost to the rule. "
    a, b, lead = model.lift_range, rule.lift_range, rule.lift_lead
    if a is None or b is None or lead is None or not all(map(is_number, (*a, *b, *lead))):
        return f"{who}No range could be computed."
    text = (
        f"{who}The 95% ranges are {ratio(a[0])} to {ratio(a[1])} and {ratio(b[0])} to {ratio(b[1])}; that of the "
        f"difference, {signed(lead[0], 2)} to {signed(lead[1], 2)}, "
    )
    if lead[0] > 0 or lead[1] < 0:
        return f"{text}leaves out zero: it is not chance alone."
    return f"{text}holds zero: in this tenth alone it may be chance."


def gains_sentence(held_out: HeldOut | None, nouns: Nouns, tenths: int = 3) -> str:
    """How many of all successes are reached by contacting only the first ``tenths`` tenths."""
    if held_out is None or held_out.positives == 0:
        return "Gains cannot be measured: there is no held-out success to reach."
    mine, other = _gain(held_out.model, tenths), _gain(held_out.rule, tenths)
    if mine is None:
        return "The model's gains were not measured."
    words = {1: "tenth", 2: "two tenths", 3: "three tenths", 4: "four tenths", 5: "half"}
    text = (
        f"The first {words.get(tenths, f'{tenths} tenths')} of the model's order hold {percent(mine)} of all "
        f"{nouns.examples} that {nouns.outcome_verb}"
    )
    rule = held_out.rule
    if other is None or rule is None:
        return f"{text}; a random order holds {percent(tenths / 10)}."
    less = ""
    if percent(mine) == percent(other):
        less = ": no difference between the two"
    elif mine < other:
        less = ": here the rule reaches more than the model"
    random = percent(tenths / 10)
    return f"{text}; ordering by {rule.name} holds {percent(other)}, a random order {random}{less}."


def _gain(ranking: Ranking | None, tenths: int) -> float | None:
    if ranking is None:
        return None
    for decile in ranking.deciles:
        if decile.decile == tenths and is_number(decile.cumulative_gain):
            return decile.cumulative_gain
    return None


def calibration_sentence(calibration: Calibration | None, nouns: Nouns) -> str:
    """Whether a predicted chance may be read as a chance."""
    bins = () if calibration is None else calibration.bins
    bins = tuple(b for b in bins if b.examples > 0 and is_number(b.mean_predicted) and is_number(b.observed))
    if calibration is None or not bins:
        return "Whether the chances came true was not measured."
    total = sum(b.examples for b in bins)
    predicted = sum(b.mean_predicted * b.examples for b in bins) / total
    observed = sum(b.observed * b.examples for b in bins) / total
    inside = sum(b.observed_low <= b.mean_predicted <= b.observed_high for b in bins)
    text = (
        f"On average the model gave {nouns.examples} a chance of {percent(predicted)}, and "
        f"{percent(observed)} {nouns.outcome_verb}. "
    )
    if len(bins) == 1:
        known = "inside" if inside else "outside"
        text += (
            f"There is a single group, and its chance lies {known} the 95% range of what happened: "
            "that is all it shows."
        )
    else:
        advice = "" if inside >= 0.8 * len(bins) else ": read the chances as an order, not as chances"
        text += (
            f"In {inside} of {len(bins)} groups the predicted chance lies inside the 95% range of what "
            f"happened{advice}."
        )
    return f"{text}{_brier_text(calibration)}"


def _brier_text(calibration: Calibration) -> str:
    mine, base = calibration.brier, calibration.brier_of_base_rate
    if mine is None or base is None or not (is_number(mine) and is_number(base)) or base <= 0:
        return ""
    change = 1 - mine / base
    if change > 0.0005:
        return f" Its squared error is {percent(change)} below that of giving everyone the same chance."
    return " Its squared error is no lower than that of giving everyone the same chance."


def list_sentence(contacts: ContactList, nouns: Nouns) -> str:
    """How full the list is, and how many successes its scores promise."""
    if contacts.customers == 0:
        places = counted(contacts.capacity, "place is", "places are")
        return f"No {nouns.customer} is on the list; {places} free."
    if contacts.customers == contacts.capacity:
        text = f"All {counted(contacts.capacity, 'place is', 'places are')} taken"
    elif contacts.customers < contacts.capacity:
        text = f"{count(contacts.customers)} of {counted(contacts.capacity, 'place', 'places')} are taken"
    else:
        text = f"The list holds {count(contacts.customers)}, more than its {count(contacts.capacity)} places"
    expected = expected_successes(contacts)
    if expected is None:
        return f"{text}."
    return (
        f"{text}. If the scores hold, about {count(round(expected))} of the "
        f"{counted(contacts.customers, nouns.customer, nouns.customers)} will reach the target."
    )


def expected_successes(contacts: ContactList) -> float | None:
    """How many customers on the list reach the target if the mean scores are true.

    Args:
        contacts: The list.

    Returns:
        Customers, fractional; None if the proposals do not cover the list.
    """
    if sum(p.customers for p in contacts.by_proposal) != contacts.customers:
        return None
    total = sum(p.customers * p.mean_score for p in contacts.by_proposal if p.customers)
    return total if is_number(total) else None


def starts_scale(steps: Sequence[FunnelStep], index: int) -> bool:
    """Whether a step of the funnel is a recount: the first, or one in another unit without losses."""
    if index == 0:
        return True
    return steps[index].unit != steps[index - 1].unit and not steps[index].losses


def balance(steps: Sequence[FunnelStep], index: int) -> Balance | None:
    """Whether the losses of a step explain the difference to the step before it; None for a recount."""
    if starts_scale(steps, index):
        return None
    before, step = steps[index - 1].count, steps[index]
    left = before - sum(loss.count for loss in step.losses)
    terms = "".join(f" {MINUS} {count(loss.count)}" for loss in step.losses)
    if left == step.count:
        return Balance(True, f"{count(before)}{terms} = {count(step.count)}")
    gap = left - step.count
    word = "unexplained" if gap > 0 else "too many"
    return Balance(
        False, f"{count(before)}{terms} = {count(left)}, not {count(step.count)}: {count(abs(gap))} {word}"
    )
