"""Numbers as text and the generated sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lam_spark.report import text as words
from lam_spark.report.content import Calibration, ReportContext
from tests.report.sample import BASELINE, MODEL, bins, deciles, with_rankings


@pytest.mark.parametrize(
    ("model", "baseline", "kind", "part"),
    [
        ((0.80, 0.77, 0.83), (0.78, 0.75, 0.81), "unclear", "ahead of the baseline, possibly by chance"),
        ((0.76, 0.73, 0.79), (0.78, 0.75, 0.81), "unclear", "behind the baseline, possibly by chance"),
        ((0.78, 0.75, 0.81), (0.78, 0.75, 0.81), "unclear", "are equal"),
        ((0.80, None, None), (0.60, None, None), "unclear", "chance cannot be ruled out"),
        ((0.52, 0.48, 0.56), (0.75, 0.72, 0.78), "worse", "not better than chance"),
        ((0.45, None, None), None, "worse", "not better than chance"),
        ((0.80, 0.77, 0.83), None, "unclear", "no baseline to compare with"),
        ((0.90, 0.87, 0.93), (0.78, 0.75, 0.81), "better", "do not overlap"),
    ],
)
def test_the_model_is_compared_with_the_baseline(
    context: ReportContext,
    model: tuple[float, float | None, float | None],
    baseline: tuple[float, float | None, float | None] | None,
    kind: str,
    part: str,
) -> None:
    rankings = [replace(MODEL, auc=model[0], auc_low=model[1], auc_high=model[2])]
    if baseline is not None:
        rankings.append(replace(BASELINE, auc=baseline[0], auc_low=baseline[1], auc_high=baseline[2]))
    comparison = words.compare_with_baseline(with_rankings(context, *rankings), context.nouns)
    assert comparison.kind == kind
    assert part in comparison.title + comparison.sentence


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(0.01, 0.05, "better"), (-0.01, 0.05, "unclear"), (-0.05, -0.01, "worse")]
)
def test_the_interval_of_the_paired_difference_decides(
    context: ReportContext, low: float, high: float, kind: str
) -> None:
    baseline = replace(
        BASELINE, auc=0.82, auc_low=0.80, auc_high=0.84, difference_low=low, difference_high=high
    )
    comparison = words.compare_with_baseline(with_rankings(context, MODEL, baseline), context.nouns)
    assert comparison.kind == kind
    assert f"{words.signed(low)} to {words.signed(high)}" in comparison.sentence


def test_the_model_is_compared_with_the_strongest_baseline(context: ReportContext) -> None:
    weak = replace(BASELINE, name="recency", auc=0.6)
    assert with_rankings(context, MODEL, weak, BASELINE).baseline == BASELINE


def test_a_top_decile_below_average_is_reported_as_worse_than_random(context: ReportContext) -> None:
    upside_down = replace(
        MODEL, deciles=deciles((1, 3, 4, 6, 10, 14, 22, 36, 61, 109)), lift_interval=(0.01, 0.21)
    )
    baseline = replace(BASELINE, lift_difference=(-3.7, -2.5))
    text = words.lift_sentence(with_rankings(context, upside_down, baseline), context.nouns)
    assert "0.04 times as often" in text
    assert "worse than random order" in text
    assert (
        "In the top decile, the baseline is better. The 95% confidence intervals are 0.01 to 0.21 and 2.6 to 3.9; that "
        f"of the difference is {words.MINUS}3.70 to {words.MINUS}2.50, which excludes zero: the difference is not "
        "chance alone."
    ) in text


@pytest.mark.parametrize(
    ("lift", "difference"), [(None, (0.1, 0.2)), ((3.0, 4.0), None), ((3.0, float("nan")), (0.1, 0.2))]
)
def test_intervals_of_the_lifts_are_shown_only_together(
    context: ReportContext, lift: tuple[float, float] | None, difference: tuple[float, float] | None
) -> None:
    held_out = with_rankings(
        context, MODEL, replace(BASELINE, lift_interval=lift, lift_difference=difference)
    )
    assert words.lift_sentence(held_out, context.nouns).endswith(
        "gives 3.2. No confidence interval could be computed."
    )


def test_without_a_baseline_the_lift_is_shown_with_its_interval(context: ReportContext) -> None:
    assert words.lift_sentence(with_rankings(context, MODEL), context.nouns).endswith(
        "4.1 times as often as the average contact (95% confidence interval 3.5 to 4.7)."
    )


def test_poor_calibration_is_reported(context: ReportContext) -> None:
    off = tuple(replace(b, mean_predicted=min(b.mean_predicted * 3 + 0.05, 0.99)) for b in bins())
    text = words.calibration_sentence(Calibration(off, 0.2, 0.135, 0.2), context.nouns)
    assert "In 0 of 10 groups" in text
    assert "use the scores to rank, not as probabilities" in text
    assert "is not lower than" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.834, "83.4%"), (0.0042, "0.42%"), (0.00001, "<0.01%"),
     (0.99999, ">99.9%"), (None, "n/a"), (float("nan"), "n/a"), (float("inf"), "n/a")],
)  # fmt: skip
def test_percent_chooses_the_decimals(value: float | None, text: str) -> None:
    assert words.percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (512.9, "8 min 33 s"),
     (3599.9, "1 h 00 min"), (3780, "1 h 03 min")],
)  # fmt: skip
def test_duration_chooses_the_units(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text
