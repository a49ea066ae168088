"""Calibration bins, expected calibration error and the Wilson interval."""

from __future__ import annotations

import numpy as np
import pytest

from lam_spark.evaluation.calibration import calibration_bins, expected_calibration_error, wilson_interval
from lam_spark.evaluation.ranking import Histogram


def test_calibration_bins_compare_predicted_with_observed_rates() -> None:
    rows = np.full(10, 100.0)
    positives = np.arange(10) * 10.0
    histogram = Histogram(np.arange(10.0), rows, positives, positives + 5)
    bins = calibration_bins(histogram, bins=10)
    assert [part["observed"] for part in bins] == pytest.approx(np.arange(10) / 10)
    assert [part["mean_predicted"] for part in bins] == pytest.approx(np.arange(10) / 10 + 0.05)
    assert all(part["observed_low"] <= part["observed"] <= part["observed_high"] for part in bins)
    assert expected_calibration_error(bins) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("share", "count", "interval"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0)), (0.1, 1000, (0.0829, 0.1201)),
     (0.1, 100, (0.0552, 0.1744))],
)  # fmt: skip
def test_wilson_interval_matches_known_values(
    share: float, count: float, interval: tuple[float, float]
) -> None:
    assert wilson_interval(share, count) == pytest.approx(interval, abs=1e-4)
