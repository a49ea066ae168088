"""Calibration: how predicted probabilities compare with observed rates."""

from __future__ import annotations

import math

import numpy as np

from lam_spark.evaluation.ranking import Histogram


def calibration_bins(histogram: Histogram, bins: int = 10) -> list[dict[str, float]]:
    """Group examples into bins of about equal size by score.

    Args:
        histogram: Examples by score, with their summed probabilities.
        bins: Number of bins; empty bins are left out.

    Returns:
        One dictionary per bin, lowest scores first: `mean_predicted`, `observed` (rate), `observed_low` and
        `observed_high` (its 95 % Wilson interval), and `examples`.
    """
    midpoints = np.cumsum(histogram.rows) - histogram.rows / 2
    bin_of = np.minimum((midpoints / max(histogram.rows.sum(), 1e-9) * bins).astype(int), bins - 1)
    result = []
    for number in range(bins):
        inside = bin_of == number
        examples = float(histogram.rows[inside].sum())
        if not examples:
            continue
        observed = float(histogram.positives[inside].sum()) / examples
        low, high = wilson_interval(observed, examples)
        result.append(
            {
                "mean_predicted": float(histogram.predicted[inside].sum()) / examples,
                "observed": observed,
                "observed_low": low,
                "observed_high": high,
                "examples": examples,
            }
        )
    return result


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean absolute difference between predicted and observed rates, weighted by examples; NaN without examples."""
    total = sum(row["examples"] for row in bins)
    error = sum(row["examples"] * abs(row["mean_predicted"] - row["observed"]) for row in bins)
    return error / total if total else float("nan")


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927).

    Args:
        share: Observed proportion, between 0 and 1.
        count: Number of observations.
    """
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half_width = 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
