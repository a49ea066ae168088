"""Typed results of the stage `evaluate`; the report reads them from the audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lam_spark.runtime.results import StageResult

Interval = tuple[float, float]
# Of the tags of a model version that hold its held-out numbers.
TAG_PREFIX = "held_out."


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
        metrics: Metric name -> value, of the model and of the baseline; empty if the target is not measured.
        calibration: Calibration bins of a binary target.
        not_measured: Why nothing was measured; empty if the target is measured.
    """

    kind: str
    examples: int
    metrics: dict[str, float]
    calibration: tuple[CalibrationBin, ...] = ()
    not_measured: str = ""

    @property
    def comparison(self) -> Comparison | None:
        """The model's main metric and the baseline's; None if the target is not measured."""
        names = {
            "binary": ("auc", False),
            "value": ("mean_absolute_error", True),
            "next": ("macro_auc", False),
        }
        name, is_error = names[self.kind]
        if name not in self.metrics:
            return None
        baseline = self.metrics.get(f"baseline_{name}")
        return Comparison(name.replace("_", " "), self.metrics[name], baseline, is_error)


@dataclass(frozen=True)
class Comparison:
    """One metric of the model and of the baseline.

    Attributes:
        name: Name of the metric in words.
        model: The model's value.
        baseline: The baseline's value; None where the baseline has none.
        is_error: Whether smaller is better.
    """

    name: str
    model: float
    baseline: float | None
    is_error: bool

    @property
    def is_behind(self) -> bool:
        """Whether the baseline has the better value."""
        if self.baseline is None:
            return False
        return self.model > self.baseline if self.is_error else self.model < self.baseline


@dataclass(frozen=True)
class MeasuredRankings:
    """The model and the baseline on the test examples of the scored target.

    Attributes:
        auc_difference, lift_difference: 95 % intervals of model minus baseline.
    """

    model: RankingMetrics
    baseline: RankingMetrics
    auc_difference: Interval
    lift_difference: Interval
    calibration: CalibrationMetrics


@dataclass(frozen=True)
class EvaluateResult(StageResult):
    """Quality of the registered model on the test period.

    Attributes:
        target: The scored target.
        examples, positives: Test examples of the scored target.
        truncated: Examples left out because the history before them is truncated too much.
        period: First and last local day of the queries (ISO 8601); None without examples.
        rankings: What was measured; None if the target is not measured.
        not_measured: Why nothing was measured; empty if the target is measured.
        secondary_targets: Target -> metrics.
    """

    FORMAT: ClassVar[int] = 2

    target: str
    examples: int
    positives: int
    truncated: int
    model_digest: str
    period: tuple[str, str] | None
    rankings: MeasuredRankings | None
    not_measured: str
    secondary_targets: dict[str, SecondaryTargetMetrics]

    @property
    def message(self) -> str:
        """One line for people."""
        counts = f"{self.examples:,} held-out examples, {self.positives:,} positive"
        if self.rankings is None:
            return f"{counts}: {self.not_measured}"
        model, baseline = self.rankings.model, self.rankings.baseline
        return (
            f"{counts}: AUC {model.auc:.3f} (baseline {baseline.auc:.3f}), lift of the top decile "
            f"{model.deciles[0].lift:.2f} (baseline {baseline.deciles[0].lift:.2f})"
        )

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Target -> model and baseline, of each target that is measured."""
        comparisons = {name: metrics.comparison for name, metrics in self.secondary_targets.items()}
        if self.rankings is not None:
            model, baseline = self.rankings.model, self.rankings.baseline
            comparisons = {self.target: Comparison("auc", model.auc, baseline.auc, False), **comparisons}
        return {name: each for name, each in comparisons.items() if each is not None}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Targets that are not measured, and those in which the model is behind its baseline."""
        whys = {self.target: self.not_measured}
        whys |= {name: metrics.not_measured for name, metrics in self.secondary_targets.items()}
        behind = (
            f"{name}: the model is behind its baseline on the test period: {each.name} {each.model:.3f}, baseline "
            f"{each.baseline:.3f}{self._difference(name)}"
            for name, each in self.comparisons.items()
            if each.is_behind
        )
        return (*(f"{name}, test period: {why}" for name, why in whys.items() if why), *behind)

    def _difference(self, target: str) -> str:
        if target != self.target or self.rankings is None:
            return ""
        low, high = self.rankings.auc_difference
        return f" (95 % interval of the difference: {low:+.3f} to {high:+.3f})"

    @property
    def tags(self) -> dict[str, str]:
        """Held-out numbers of every target, as tags of the model version: `held_out.TARGET.METRIC`."""
        tags: dict[str, float | str] = {}
        for name, metrics in self.secondary_targets.items():
            numbers = {**metrics.metrics, "examples": metrics.examples}
            tags |= {f"{TAG_PREFIX}{name}.{metric}": value for metric, value in numbers.items()}
            tags |= {f"{TAG_PREFIX}{name}.not_measured": metrics.not_measured} if metrics.not_measured else {}
        own: dict[str, float | str] = {"examples": self.examples, "positives": self.positives}
        if self.rankings is None:
            own["not_measured"] = self.not_measured
        else:
            for prefix, ranking in (("", self.rankings.model), ("baseline_", self.rankings.baseline)):
                own |= {f"{prefix}auc": ranking.auc, f"{prefix}lift": ranking.deciles[0].lift}
        tags |= {f"{TAG_PREFIX}{self.target}.{metric}": value for metric, value in own.items()}
        return {
            name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in tags.items()
        }
