"""Typed results of the stage `evaluate`; the report reads them from the audit."""

from __future__ import annotations

from dataclasses import dataclass

from lam_spark.runtime.results import StageResult

Interval = tuple[float, float]


@dataclass(frozen=True)
class Decile:
    """One of ten equal parts of a ranking; counts are fractional where tied scores cross a border.

    Attributes:
        decile: 1 holds the highest scores.
        rate: Share of positives.
        lift: `rate` divided by the rate of all examples.
        cumulative_gain: Share of all positives in this decile and those before it.
    """

    decile: int
    examples: float
    positives: float
    rate: float
    lift: float
    cumulative_gain: float


@dataclass(frozen=True)
class CalibrationBin:
    """Examples with similar predicted probabilities; `observed` is their rate with its 95 % interval."""

    mean_predicted: float
    observed: float
    observed_low: float
    observed_high: float
    examples: float


@dataclass(frozen=True)
class RankingMetrics:
    """Quality of one ranking of the test examples; intervals are 95 % over customers."""

    auc: float
    auc_interval: Interval
    lift_interval: Interval
    deciles: tuple[Decile, ...]


@dataclass(frozen=True)
class CalibrationMetrics:
    """Quality of predicted probabilities: Brier score of the model and of the base rate, calibration error."""

    bins: tuple[CalibrationBin, ...]
    brier: float
    brier_of_base_rate: float
    expected_calibration_error: float


@dataclass(frozen=True)
class SecondaryTargetMetrics:
    """Quality of the predictions of a target that is not scored.

    Attributes:
        kind: Kind of the target.
        examples: Test examples.
        metrics: Metric name -> value, of the model and of the baseline.
        calibration: Calibration bins of a binary target.
    """

    kind: str
    examples: int
    metrics: dict[str, float]
    calibration: tuple[CalibrationBin, ...] = ()


@dataclass(frozen=True)
class EvaluateResult(StageResult):
    """Quality of the registered model on the test period.

    Attributes:
        examples, positives: Test examples of the scored target.
        truncated: Examples left out because the history before them is truncated too much.
        period: First and last local day of the queries (ISO 8601).
        auc_difference, lift_difference: 95 % intervals of model minus baseline.
        secondary_targets: Target -> metrics.
    """

    examples: int
    positives: int
    truncated: int
    model_digest: str
    period: tuple[str, str]
    model: RankingMetrics
    baseline: RankingMetrics
    auc_difference: Interval
    lift_difference: Interval
    calibration: CalibrationMetrics
    secondary_targets: dict[str, SecondaryTargetMetrics]

    @property
    def message(self) -> str:
        """One line for people."""
        model, baseline = self.model, self.baseline
        return (
            f"{self.examples:,} held-out examples, {self.positives:,} positive: AUC {model.auc:.3f} (baseline "
            f"{baseline.auc:.3f}), lift of the top decile {model.deciles[0].lift:.2f} (baseline "
            f"{baseline.deciles[0].lift:.2f})"
        )
