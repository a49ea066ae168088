"""Metrics on arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from lam_spark.model.metrics import Float, auc, fit_logistic_calibration, log_loss, sigmoid

# Few distinct scores, so that many tie.
RANKED = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 4)), min_size=2, max_size=30
).filter(lambda rows: len({hit for _, hit, _ in rows}) == 2)


def columns(rows: list[tuple[int, bool, int]]) -> tuple[Float, Float, Float]:
    score, hit, weight = np.array(rows, dtype=np.float64).T
    return score, hit, weight


@given(RANKED)
def test_auc_equals_that_of_scikit_learn_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    score, hit, weight = columns(rows)
    assert auc(score, hit) == pytest.approx(roc_auc_score(hit, score))
    assert auc(score, hit, weight) == pytest.approx(roc_auc_score(hit, score, sample_weight=weight))


def test_auc_is_the_share_of_correctly_ordered_pairs() -> None:
    score, hit = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(score, hit) == (1 + 0.5 + 1 + 1) / 4
    assert math.isnan(auc(score, np.ones(4)))


def test_log_loss_equals_that_of_scikit_learn_and_is_finite_for_large_logits() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=500) * 3
    labels = (rng.random(500) < 0.3).astype(float)
    assert log_loss(logits, labels) == pytest.approx(sklearn_log_loss(labels, sigmoid(logits)))
    assert log_loss(np.array([1e4, -1e4]), np.array([0.0, 0.0])) == pytest.approx(5e3)


def test_sigmoid_is_accurate_and_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e4, 0.0, math.log(3), 1e4])) == pytest.approx([0, 0.5, 0.75, 1])


@pytest.mark.parametrize("spread", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, -2.0), (0.1, -1.0), (2.0, 1.0)])
def test_calibration_recovers_the_slope_and_the_intercept(
    spread: float, slope: float, intercept: float
) -> None:
    """An overconfident model has logits with a wide spread and needs a small slope."""
    rng = np.random.default_rng(11)
    logits = rng.normal(size=40_000) * spread
    labels = (rng.random(40_000) < sigmoid(slope * logits + intercept)).astype(float)
    fitted = fit_logistic_calibration(logits, labels)
    assert fitted == pytest.approx((slope, intercept), rel=0.1, abs=0.1 / spread + 0.05)


@given(RANKED)
def test_calibration_never_reverses_the_order(rows: list[tuple[int, bool, int]]) -> None:
    logits, labels, _ = columns(rows)
    slope, intercept = fit_logistic_calibration(logits, labels)
    assert slope > 0
    assert math.isfinite(intercept)
    calibrated = slope * logits + intercept
    assert (np.argsort(calibrated, kind="stable") == np.argsort(logits, kind="stable")).all()


def test_calibration_of_contradicting_logits_predicts_the_mean_rate() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(1.0, 2.0, 20_000)
    labels = (rng.random(20_000) < sigmoid(-0.5 * logits - 3.0)).astype(float)
    assert auc(logits, labels) < 0.5
    slope, intercept = fit_logistic_calibration(logits, labels)
    assert 0 < slope < 0.01
    assert sigmoid(slope * logits + intercept).mean() == pytest.approx(labels.mean(), rel=0.01)


def test_calibration_is_finite_if_the_classes_separate() -> None:
    slope, intercept = fit_logistic_calibration(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([0.0, 0, 1, 1]))
    assert 0 < slope < 100
    assert abs(intercept) < 1e-6
