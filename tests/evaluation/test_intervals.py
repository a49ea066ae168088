"""Bootstrap intervals over customers."""

from __future__ import annotations

import numpy as np
import pytest

from lam_spark.evaluation.intervals import customer_intervals
from lam_spark.evaluation.ranking import Float
from lam_spark.model.metrics import auc


def top_decile_lift(scores: Float, labels: Float) -> float:
    """Rate of the top decile divided by the overall rate; no scores are tied."""
    top = np.argsort(-scores)[: len(scores) // 10]
    return float(labels[top].mean() / labels.mean())


def test_intervals_depend_only_on_the_seed_and_contain_the_estimate() -> None:
    rng = np.random.default_rng(5)
    customer = np.repeat(np.arange(150), 4)
    label = (rng.random(600) < 0.3).astype(float)
    model, baseline = label + rng.normal(size=600), label * 0.5 + rng.normal(size=600)
    first, again, other = (
        customer_intervals(customer, label, model, baseline, replicates=100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    for intervals, measure in ((first.auc, auc), (first.lift, top_decile_lift)):
        of_model, of_baseline = measure(model, label), measure(baseline, label)
        for (low, high), estimate in (
            (intervals.model, of_model),
            (intervals.baseline, of_baseline),
            (intervals.difference, of_model - of_baseline),
        ):
            assert low < estimate < high


def test_intervals_resample_customers_not_rows() -> None:
    rng = np.random.default_rng(5)
    label = (rng.random(100) < 0.4).astype(float)
    score = label + rng.normal(size=100)
    once = customer_intervals(np.arange(100), label, score, score, seed=3)
    copies = [np.repeat(values, 9) for values in (np.arange(100), label, score)]
    many = customer_intervals(*copies, copies[2], seed=3)
    assert many.auc.model == pytest.approx(once.auc.model)
    assert many.lift.model == pytest.approx(once.lift.model)
    assert once.auc.difference == once.lift.difference == (0.0, 0.0)


def test_without_both_classes_the_interval_is_nan() -> None:
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        intervals = customer_intervals(
            np.arange(5), np.zeros(5), np.arange(5.0), np.arange(5.0), replicates=3
        )
    assert np.isnan([*intervals.auc.model, *intervals.lift.model, *intervals.lift.difference]).all()
