"""Measures of a ranking from a histogram of its scores; rows of one score are tied and share their fate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lam_spark.model.metrics import auc

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Distinct scores (ascending), rows and positives at each, and the sum of calibrated probabilities."""

    score: Float
    rows: Float
    positives: Float
    predicted: Float

    @property
    def auc(self) -> float:
        """Area under the ROC curve, ties counted half."""
        scores = np.concatenate([self.score, self.score])
        labels = np.repeat([1.0, 0.0], len(self.score))
        return auc(scores, labels, np.concatenate([self.positives, self.rows - self.positives]))

    def tenths(self) -> list[dict[str, float]]:
        """Ten equal parts from the highest score down; a tie across a border is split in proportion.

        Each has `decile, examples, positives, rate, lift` (rate over the overall rate) and
        `cumulative_gain` (share of all positives down to here).
        """
        total, hits = float(self.rows.sum()), float(self.positives.sum())
        rows_down = np.concatenate([[0.0], np.cumsum(self.rows[::-1])])
        hits_down = np.concatenate([[0.0], np.cumsum(self.positives[::-1])])
        borders = np.linspace(0, total, 11)
        reached = np.interp(borders, rows_down, hits_down)
        base = hits / total if total else 0.0
        parts = []
        for number in range(10):
            examples, positives = borders[number + 1] - borders[number], reached[number + 1] - reached[number]
            rate = positives / examples if examples else 0.0
            parts.append(
                {
                    "decile": number + 1,
                    "examples": float(examples),
                    "positives": float(positives),
                    "rate": float(rate),
                    "lift": float(rate / base) if base else 0.0,
                    "cumulative_gain": float(reached[number + 1] / hits) if hits else 0.0,
                }
            )
        return parts

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        """Bins of about equal size by score: mean predicted, observed rate with its 95 % Wilson interval."""
        upto = np.cumsum(self.rows) - self.rows / 2
        member = np.minimum((upto / max(self.rows.sum(), 1e-9) * bins).astype(int), bins - 1)
        parts = []
        for number in range(bins):
            here = member == number
            examples = float(self.rows[here].sum())
            if not examples:
                continue
            observed = float(self.positives[here].sum()) / examples
            low, high = wilson_interval(observed, examples)
            parts.append(
                {
                    "mean_predicted": float(self.predicted[here].sum()) / examples,
                    "observed": observed,
                    "observed_low": low,
                    "observed_high": high,
                    "examples": examples,
                }
            )
        return parts


@dataclass(frozen=True)
class Intervals:
    """95 % intervals (low, high) over customers: of both rankings, and of their difference on the same customers."""

    model: tuple[float, float]
    rule: tuple[float, float]
    lead: tuple[float, float]


@dataclass(frozen=True)
class CustomerIntervals:
    """Of the AUC, and of the first tenth's lift."""

    auc: Intervals
    lift: Intervals


def customer_intervals(
    customer: npt.NDArray[np.generic],
    label: Float,
    model: Float,
    rule: Float,
    replicates: int = 400,
    seed: int = 0,
) -> CustomerIntervals:
    """Bootstrap over customers, the examples of one drawn together, both rankings on the same draw."""
    _, member = np.unique(customer, return_inverse=True)
    rankings = [np.unique(score, return_inverse=True) for score in (model, rule)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(replicates):
        weight = rng.poisson(1.0, member.max() + 1)[member].astype(np.float64)
        drawn.append([_measured(values, place, label, weight) for values, place in rankings])
    model_drawn, rule_drawn = np.moveaxis(np.array(drawn), 1, 0)  # (replicates, measures) each

    def middle(values: Float) -> tuple[float, float]:
        low, high = np.nanpercentile(values, [2.5, 97.5])
        return float(low), float(high)

    return CustomerIntervals(
        *(
            Intervals(middle(mine), middle(theirs), middle(mine - theirs))
            for mine, theirs in zip(model_drawn.T, rule_drawn.T, strict=True)
        )
    )


def _measured(values: Float, place: npt.NDArray[np.intp], label: Float, weight: Float) -> tuple[float, float]:
    """AUC and lift of the first tenth, both NaN where a class is absent; `place`: of each row's score in `values`."""
    rows = np.bincount(place, weight, len(values)).astype(np.float64)
    positives = np.bincount(place, weight * label, len(values)).astype(np.float64)
    ranking = Histogram(values, rows, positives, np.zeros_like(rows))
    area = ranking.auc
    return area, math.nan if math.isnan(area) else ranking.tenths()[0]["lift"]


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean distance of predicted and observed, weighted by the bins' examples."""
    total = sum(part["examples"] for part in bins)
    gaps = sum(part["examples"] * abs(part["mean_predicted"] - part["observed"]) for part in bins)
    return gaps / total if total else float("nan")
