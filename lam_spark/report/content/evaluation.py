"""Results on the held-out period: rankings and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from lam_spark.evaluation.results import CalibrationBin as CalibrationBin
from lam_spark.evaluation.results import Decile as Decile

RankingKind = Literal["model", "baseline", "random"]
"""Origin of a ranking: the trained model, a simple baseline to compare with, or random order."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Results of one ordering of the held-out examples.

    Attributes:
        name: Name of the model or, for a baseline, a phrase that follows "ordering by", e.g.
            "previous redemptions".
        kind: "model", "baseline" or "random".
        description: One line on how the ordering is computed.
        auc: Area under the ROC curve, 0.5 for random order; None if it cannot be measured.
        auc_low: Lower end of the interval of ``auc``, or None.
        auc_high: Upper end of the interval of ``auc``, or None.
        deciles: The ten deciles, ranked first to last; empty if they cannot be measured.
        difference_low: Lower end of the interval of the model's AUC minus this AUC over paired resamples, or
            None. If both ends are given, they decide whether the model is better; else the two AUC intervals do.
        difference_high: Upper end of the same interval, or None.
        lift_interval: Interval of the lift of the top decile, or None.
        lift_difference: Interval of the model's top-decile lift minus this lift over paired resamples, or None.
    """

    name: str
    kind: RankingKind
    description: str
    auc: float | None
    auc_low: float | None = None
    auc_high: float | None = None
    deciles: tuple[Decile, ...] = ()
    difference_low: float | None = None
    difference_high: float | None = None
    lift_interval: tuple[float, float] | None = None
    lift_difference: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Results on a period that the model has not seen, one example per contact in the period.

    Attributes:
        period_start: First day of the period.
        period_end: Last day of the period.
        examples: Examples in the period.
        positives: Examples that reached the target.
        rankings: The model first, then the baselines, then random order.
    """

    period_start: date
    period_end: date
    examples: int
    positives: int
    rankings: tuple[Ranking, ...]

    @property
    def model(self) -> Ranking | None:
        """The model's ranking, or None if there is none."""
        return next((r for r in self.rankings if r.kind == "model"), None)

    @property
    def baseline(self) -> Ranking | None:
        """The baseline with the highest AUC, or None if there is none."""
        baselines = [r for r in self.rankings if r.kind == "baseline"]
        return max(baselines, key=lambda r: -1.0 if r.auc is None else r.auc, default=None)

    @property
    def base_rate(self) -> float | None:
        """Share of the examples that reached the target, or None without examples."""
        return self.positives / self.examples if self.examples else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How predicted probabilities compare with observed rates in the held-out period.

    Attributes:
        bins: The bins, lowest predicted probability first.
        brier: Mean squared error of the predicted probabilities (0 is perfect), or None.
        brier_of_base_rate: The same error if the base rate is predicted for every example, or None.
        expected_calibration_error: Mean absolute difference between predicted and observed rates over the bins,
            weighted by examples; or None.
    """

    bins: tuple[CalibrationBin, ...]
    brier: float | None
    brier_of_base_rate: float | None
    expected_calibration_error: float | None


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One target on the held-out period.

    Attributes:
        name: Name of the target.
        description: The target in plain words.
        examples: Examples in the period.
        metric: Name of the metric; empty if the target is not measured.
        model: The model's value, or None.
        baseline: The baseline's value, or None where there is none.
        baseline_name: The baseline in plain words.
        is_behind: Whether the baseline has the better value.
        not_measured: Why nothing was measured; empty if the target is measured.
    """

    name: str
    description: str
    examples: int
    metric: str
    model: float | None
    baseline: float | None
    baseline_name: str
    is_behind: bool
    not_measured: str = ""
