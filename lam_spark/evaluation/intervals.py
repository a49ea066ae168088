"""Confidence intervals of ranking measures, by a bootstrap over customers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lam_spark.evaluation.ranking import Float, Histogram


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals (low, high) of one measure.

    Attributes:
        model: Interval of the model's value.
        baseline: Interval of the baseline's value.
        difference: Interval of model minus baseline, paired by resample.
    """

    model: tuple[float, float]
    baseline: tuple[float, float]
    difference: tuple[float, float]


@dataclass(frozen=True)
class CustomerIntervals:
    """Intervals of the AUC and of the lift of the top decile."""

    auc: Intervals
    lift: Intervals


def customer_intervals(
    customer: npt.NDArray[np.generic],
    label: Float,
    model: Float,
    baseline: Float,
    replicates: int = 400,
    seed: int = 0,
) -> CustomerIntervals:
    """Bootstrap over customers with Poisson weights.

    All examples of a customer share one weight. The model and the baseline are measured on the same resamples.

    Args:
        customer: Customer of each example; shape (n,).
        label: 0 or 1; shape (n,).
        model: Scores of the model; shape (n,).
        baseline: Scores of the baseline; shape (n,).
        replicates: Number of resamples.
        seed: Seed of the random generator.
    """
    _, customer_index = np.unique(customer, return_inverse=True)
    rankings = [np.unique(score, return_inverse=True) for score in (model, baseline)]
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(replicates):
        weight = rng.poisson(1.0, customer_index.max() + 1)[customer_index].astype(np.float64)
        samples.append([_auc_and_lift(values, index, label, weight) for values, index in rankings])
    model_samples, baseline_samples = np.moveaxis(np.array(samples), 1, 0)  # (replicates, measures) each
    auc, lift = (
        Intervals(
            _percentile_interval(of_model),
            _percentile_interval(of_baseline),
            _percentile_interval(of_model - of_baseline),
        )
        for of_model, of_baseline in zip(model_samples.T, baseline_samples.T, strict=True)
    )
    return CustomerIntervals(auc, lift)


def _percentile_interval(values: Float) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _auc_and_lift(
    values: Float, index: npt.NDArray[np.intp], label: Float, weight: Float
) -> tuple[float, float]:
    """AUC and lift of the top decile; both NaN if a class is absent.

    Args:
        values: Distinct scores, ascending.
        index: Position of each row's score in `values`; shape (n,).
        label: 0 or 1; shape (n,).
        weight: Times each row is drawn; shape (n,).
    """
    rows = np.bincount(index, weight, len(values)).astype(np.float64)
    positives = np.bincount(index, weight * label, len(values)).astype(np.float64)
    histogram = Histogram(values, rows, positives, np.zeros_like(rows))
    area = histogram.auc
    return area, math.nan if math.isnan(area) else histogram.deciles()[0]["lift"]
