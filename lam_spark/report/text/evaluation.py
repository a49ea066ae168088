"""Sentences on lift, cumulative gains and calibration."""

from __future__ import annotations

from lam_spark.report.content import Calibration, CalibrationBin, Decile, HeldOut, Nouns, Ranking
from lam_spark.report.text.numbers import is_number, percent, ratio, signed


def top_decile(ranking: Ranking | None) -> Decile | None:
    """Return the first decile of a ranking, or None if its lift was not measured."""
    if ranking is None:
        return None
    for decile in ranking.deciles:
        if decile.decile == 1 and is_number(decile.lift) and decile.examples > 0:
            return decile
    return None


def lift_sentence(held_out: HeldOut | None, nouns: Nouns) -> str:
    """Compare the model's top decile with the average example and with the baseline's top decile."""
    if held_out is None or held_out.positives == 0:
        return "Lift cannot be measured: there are no held-out successes."
    model, baseline = held_out.model, held_out.baseline
    of_model, of_baseline = top_decile(model), top_decile(baseline)
    if model is None or of_model is None:
        return "The lift of the model's top decile was not measured."
    text = _top_decile_text(of_model.lift, nouns)
    if of_baseline is None or baseline is None:
        interval = model.lift_interval
        ends = "" if interval is None else f" (95% confidence interval {_interval_text(interval)})"
        return f"{text}{ends}."
    text += f"; ordering by {baseline.name} gives {ratio(of_baseline.lift)}."
    return f"{text} {_lift_difference_text(of_model.lift, of_baseline.lift, model, baseline)}"


def _top_decile_text(lift: float, nouns: Nouns) -> str:
    group = f"{nouns.examples} in the model's top decile (the 10% ranked first)"
    if lift == 0:
        text = f"Not one of the {group} {nouns.outcome_verb}"
    else:
        group = group[0].upper() + group[1:]
        times = "" if ratio(lift) == "1.0" else f"{ratio(lift)} times "
        text = f"{group} {nouns.outcome_verb} {times}as often as the average {nouns.example}"
    return f"{text}, which is worse than random order" if lift < 0.995 else text


def _interval_text(interval: tuple[float, float]) -> str:
    return f"{ratio(interval[0])} to {ratio(interval[1])}"


def _lift_difference_text(of_model: float, of_baseline: float, model: Ranking, baseline: Ranking) -> str:
    if ratio(of_model) == ratio(of_baseline):
        return "In the top decile, the model and the baseline are equal."
    better = "" if of_model > of_baseline else "In the top decile, the baseline is better. "
    intervals = model.lift_interval, baseline.lift_interval, baseline.lift_difference
    first, second, difference = intervals
    if first is None or second is None or difference is None:
        return f"{better}No confidence interval could be computed."
    if not all(map(is_number, (*first, *second, *difference))):
        return f"{better}No confidence interval could be computed."
    text = (
        f"{better}The 95% confidence intervals are {_interval_text(first)} and {_interval_text(second)}; that of the "
        f"difference is {signed(difference[0], 2)} to {signed(difference[1], 2)}, "
    )
    if difference[0] > 0 or difference[1] < 0:
        return f"{text}which excludes zero: the difference is not chance alone."
    return f"{text}which includes zero: in the top decile, the difference may be chance."


def gains_sentence(held_out: HeldOut | None, nouns: Nouns, deciles: int = 3) -> str:
    """Say which share of all positives is reached by contacting only the first ``deciles`` deciles."""
    if held_out is None or held_out.positives == 0:
        return "Gains cannot be measured: there are no held-out successes."
    of_model, of_baseline = _gain(held_out.model, deciles), _gain(held_out.baseline, deciles)
    if of_model is None:
        return "The model's gains were not measured."
    text = (
        f"The top {deciles * 10}% of the model's ranking contains {percent(of_model)} of all {nouns.examples} that "
        f"{nouns.outcome_verb}"
    )
    random = percent(deciles / 10)
    baseline = held_out.baseline
    if of_baseline is None or baseline is None:
        return f"{text}; random order contains {random}."
    remark = ""
    if percent(of_model) == percent(of_baseline):
        remark = ": the model and the baseline are equal here"
    elif of_model < of_baseline:
        remark = ": here the baseline reaches more than the model"
    return (
        f"{text}; ordering by {baseline.name} contains {percent(of_baseline)}, random order {random}{remark}."
    )


def _gain(ranking: Ranking | None, deciles: int) -> float | None:
    if ranking is None:
        return None
    for decile in ranking.deciles:
        if decile.decile == deciles and is_number(decile.cumulative_gain):
            return decile.cumulative_gain
    return None


def calibration_sentence(calibration: Calibration | None, nouns: Nouns) -> str:
    """Say whether the scores can be read as probabilities."""
    bins = () if calibration is None else calibration.bins
    bins = tuple(b for b in bins if b.examples > 0 and is_number(b.mean_predicted) and is_number(b.observed))
    if calibration is None or not bins:
        return "The calibration of the probabilities was not measured."
    total = sum(b.examples for b in bins)
    predicted = sum(b.mean_predicted * b.examples for b in bins) / total
    observed = sum(b.observed * b.examples for b in bins) / total
    return (
        f"The model's mean predicted probability is {percent(predicted)}; {percent(observed)} of the "
        f"{nouns.examples} {nouns.outcome_verb}. {_bins_text(bins)}{_brier_text(calibration)}"
    )


def _bins_text(bins: tuple[CalibrationBin, ...]) -> str:
    inside = sum(b.observed_low <= b.mean_predicted <= b.observed_high for b in bins)
    if len(bins) == 1:
        side = "inside" if inside else "outside"
        return (
            f"There is only one group; its predicted probability is {side} the 95% confidence interval of the "
            "observed share."
        )
    advice = "" if inside >= 0.8 * len(bins) else ": use the scores to rank, not as probabilities"
    return (
        f"In {inside} of {len(bins)} groups, the predicted probability is inside the 95% confidence interval of the "
        f"observed share{advice}."
    )


def _brier_text(calibration: Calibration) -> str:
    of_model, of_base_rate = calibration.brier, calibration.brier_of_base_rate
    if not is_number(of_model) or not is_number(of_base_rate) or of_base_rate <= 0:
        return ""
    reduction = 1 - of_model / of_base_rate
    if reduction > 0.0005:
        return f" The Brier score is {percent(reduction)} lower than with the same probability for everyone."
    return " The Brier score is not lower than with the same probability for everyone."
