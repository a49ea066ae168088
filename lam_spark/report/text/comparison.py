"""Whether the model is better than the strongest baseline, in a title and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lam_spark.report.content import HeldOut, Nouns, Ranking
from lam_spark.report.text.numbers import counted, is_number, percent, signed, three_decimals

ComparisonKind = Literal["better", "unclear", "worse", "unmeasured"]

_BETTER = "The model is better than the baseline"
_WORSE = "The model is worse than the baseline"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model compared with the strongest baseline.

    Attributes:
        kind: "better", "unclear", "worse" or "unmeasured".
        title: A short title.
        sentence: The evidence.
    """

    kind: ComparisonKind
    title: str
    sentence: str


def compare_with_baseline(held_out: HeldOut | None, nouns: Nouns, not_measured: str = "") -> Comparison:
    """Compare the model with the strongest baseline, by AUC over all held-out examples.

    Args:
        held_out: Results on the held-out period.
        nouns: The data set's own words.
        not_measured: Why there are no results.

    Returns:
        "better" or "worse" only if the interval of the paired difference excludes zero or, without that interval,
        if the two AUC intervals do not overlap. Also "worse" if the model is not better than chance.
        "unmeasured" without an AUC, "unclear" otherwise.
    """
    if held_out is None and not_measured:
        return _unmeasured(f"{not_measured[0].upper()}{not_measured[1:]}.")
    if held_out is None:
        return _unmeasured("No period was held out, so the model has not been tested.")
    if held_out.examples == 0:
        return _unmeasured(f"The held-out period has no {nouns.examples}, so nothing can be measured.")
    if held_out.positives == 0:
        return _unmeasured(
            f"Not one of the {counted(held_out.examples, nouns.example, nouns.examples)} in the held-out period "
            f"{nouns.outcome_verb}, so rankings cannot be compared."
        )
    model, baseline = held_out.model, held_out.baseline
    if model is None or not is_number(model.auc):
        return _unmeasured("The model's ranking of the held-out period is missing.")
    opening = (
        f"For pairs of one {nouns.example} that {nouns.outcome_verb} and one that did not, the model ranks the first "
        f"one higher in {percent(model.auc)} of cases (AUC {auc_text(model)})"
    )
    interval = _auc_interval(model)
    if model.auc <= 0.5 or (interval is not None and interval[0] <= 0.5):
        return _no_better_than_chance(model.auc, baseline, opening)
    if baseline is None or not is_number(baseline.auc):
        text = f"{opening}; random order gives 50%."
        if interval is None:
            return Comparison("unclear", "Compared with chance only", text)
        return Comparison("unclear", "Better than chance", f"{text} There is no baseline to compare with.")
    text = (
        f"{opening}, the baseline (ordering by {baseline.name}) in {percent(baseline.auc)} "
        f"(AUC {auc_text(baseline)})."
    )
    if is_number(baseline.difference_low) and is_number(baseline.difference_high):
        difference = baseline.difference_low, baseline.difference_high
        return _by_difference(model.auc, baseline.auc, difference, text)
    return _by_overlap(model, baseline, text)


def auc_text(ranking: Ranking) -> str:
    """Format a ranking's AUC, with its interval if it has one."""
    interval = _auc_interval(ranking)
    if interval is None or not is_number(ranking.auc):
        return three_decimals(ranking.auc)
    low, high = map(three_decimals, interval)
    return f"{three_decimals(ranking.auc)}, 95% confidence interval {low} to {high}"


def _unmeasured(sentence: str) -> Comparison:
    return Comparison("unmeasured", "Not measured", sentence)


def _auc_interval(ranking: Ranking) -> tuple[float, float] | None:
    if is_number(ranking.auc_low) and is_number(ranking.auc_high):
        return ranking.auc_low, ranking.auc_high
    return None


def _no_better_than_chance(auc: float, baseline: Ranking | None, opening: str) -> Comparison:
    better = ""
    if baseline is not None and is_number(baseline.auc) and baseline.auc > auc:
        better = f"; the baseline (ordering by {baseline.name}) is better (AUC {auc_text(baseline)})"
    text = f"{opening}. Random order gives 50%: the model's ranking is not better than chance{better}."
    return Comparison("worse", "The model is not better than chance", text)


def _by_difference(model: float, baseline: float, difference: tuple[float, float], text: str) -> Comparison:
    """Compare by the interval of the paired AUC difference."""
    low, high = difference
    text = (
        f"{text} On the same customers, the difference in AUC (model minus baseline) has a 95% confidence interval of "
        f"{signed(low)} to {signed(high)}"
    )
    if low > 0:
        return Comparison("better", _BETTER, f"{text}, so it is not chance alone.")
    if high < 0:
        return Comparison("worse", _WORSE, f"{text}: the baseline is the better choice.")
    return Comparison(
        "unclear", _unclear_title(model, baseline), f"{text}, which includes zero: it may be chance."
    )


def _by_overlap(model: Ranking, baseline: Ranking, text: str) -> Comparison:
    """Compare by whether the two AUC intervals overlap."""
    title = _unclear_title(model.auc, baseline.auc)
    of_model, of_baseline = _auc_interval(model), _auc_interval(baseline)
    if of_model is None or of_baseline is None:
        return Comparison(
            "unclear", title, f"{text} Without both confidence intervals, chance cannot be ruled out."
        )
    apart = "The two confidence intervals do not overlap"
    if of_model[0] > of_baseline[1]:
        return Comparison("better", _BETTER, f"{text} {apart}, so the difference is not chance alone.")
    if of_model[1] < of_baseline[0]:
        return Comparison("worse", _WORSE, f"{text} {apart}: the baseline is the better choice.")
    return Comparison(
        "unclear", title, f"{text} The two confidence intervals overlap: the difference may be chance."
    )


def _unclear_title(model: float | None, baseline: float | None) -> str:
    if not is_number(model) or not is_number(baseline) or three_decimals(model) == three_decimals(baseline):
        return "The model and the baseline are equal"
    if model < baseline:
        return "The model is behind the baseline, possibly by chance"
    return "The model is ahead of the baseline, possibly by chance"
