"""What an evaluation says about each target: warnings, tags of the model version, and what it does not measure."""

from __future__ import annotations

import dataclasses

from lam_spark.evaluation.results import (
    CalibrationMetrics,
    Decile,
    EvaluateResult,
    MeasuredRankings,
    RankingMetrics,
    SecondaryTargetMetrics,
)
from lam_spark.labels.splits import smaller_class, too_few

FEW = "too few to judge: 9 (9 positive of 80 queries; quality.min_positives is 30)"


def ranking(auc: float, lift: float) -> RankingMetrics:
    return RankingMetrics(auc, (auc - 0.1, auc + 0.1), (lift, lift), (Decile(1, 8.0, 4.0, 0.5, lift, 0.4),))


CALIBRATION = CalibrationMetrics((), 0.1, 0.2, 0.01)
BEHIND = MeasuredRankings(ranking(0.55, 1.2), ranking(0.6, 2.0), (-0.11, 0.01), (-1.0, 0.1), CALIBRATION)
RESULT = EvaluateResult(
    target="reply",
    examples=80,
    positives=40,
    truncated=2,
    model_digest="digest",
    period=("2023-10-01", "2023-11-30"),
    rankings=BEHIND,
    not_measured="",
    secondary_targets={
        "spend": SecondaryTargetMetrics(
            "value", 80, {"mean_absolute_error": 4.0, "baseline_mean_absolute_error": 3.5}
        ),
        "churn": SecondaryTargetMetrics("binary", 80, {"auc": 0.7, "baseline_auc": 0.6}),
        "items": SecondaryTargetMetrics("next", 80, {"macro_auc": 0.7}),
        "rare": SecondaryTargetMetrics("binary", 80, {}, not_measured=FEW),
    },
)


def test_a_model_behind_its_baseline_is_a_warning_for_each_target() -> None:
    assert RESULT.warnings == (
        f"rare, test period: {FEW}",
        "reply: the model is behind its baseline on the test period: auc 0.550, baseline 0.600 (95 % interval of the "
        "difference: -0.110 to +0.010)",
        "spend: the model is behind its baseline on the test period: mean absolute error 4.000, baseline 3.500",
    )
    ahead = dataclasses.replace(BEHIND, model=ranking(0.7, 3.0))
    assert dataclasses.replace(RESULT, rankings=ahead, secondary_targets={}).warnings == ()


def test_the_numbers_of_every_target_are_tags() -> None:
    assert RESULT.tags == {
        "held_out.reply.examples": "80",
        "held_out.reply.positives": "40",
        "held_out.reply.auc": "0.55",
        "held_out.reply.lift": "1.2",
        "held_out.reply.baseline_auc": "0.6",
        "held_out.reply.baseline_lift": "2",
        "held_out.spend.mean_absolute_error": "4",
        "held_out.spend.baseline_mean_absolute_error": "3.5",
        "held_out.spend.examples": "80",
        "held_out.churn.auc": "0.7",
        "held_out.churn.baseline_auc": "0.6",
        "held_out.churn.examples": "80",
        "held_out.items.macro_auc": "0.7",
        "held_out.items.examples": "80",
        "held_out.rare.examples": "80",
        "held_out.rare.not_measured": FEW,
    }


def test_a_target_that_is_not_measured_has_no_numbers() -> None:
    result = dataclasses.replace(RESULT, rankings=None, not_measured=FEW, secondary_targets={})
    assert result.message == f"80 held-out examples, 40 positive: {FEW}"
    assert result.warnings == (f"reply, test period: {FEW}",)
    assert result.comparisons == {}
    assert result.tags["held_out.reply.not_measured"] == FEW
    assert EvaluateResult.from_json(result.to_json()) == result
    assert EvaluateResult.from_json(RESULT.to_json()) == RESULT


def test_the_smaller_class_of_a_binary_target_counts() -> None:
    assert (
        smaller_class("binary", 100, 70),
        smaller_class("value", 100, 70),
        smaller_class("next", 9, 0),
    ) == (
        30,
        100,
        0,
    )
    assert too_few("binary", 100, 70, 30) == too_few("value", 30, 1, 30) == ""
    assert too_few("binary", 80, 9, 30) == FEW
    assert too_few("value", 29, 20, 30) == "too few to judge: 29 (29 queries; quality.min_positives is 30)"
    assert too_few("next", 400, 0, 30) == (
        "too few to judge: 0 (0 positive of 400 queries; quality.min_positives is 30)"
    )
