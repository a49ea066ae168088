"""Metrics on arrays and measures of a ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from lam_spark.evaluation.ranking import (
    Histogram,
    customer_intervals,
    expected_calibration_error,
    wilson_interval,
)
from lam_spark.model.metrics import Float, auc, fit_logistic_calibration, log_loss, sigmoid

# Few distinct scores, so that many tie.
RANKED = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 4)), min_size=2, max_size=30
).filter(lambda rows: len({hit for _, hit, _ in rows}) == 2)


def columns(rows: list[tuple[int, bool, int]]) -> tuple[Float, Float, Float]:
    score, hit, weight = np.array(rows, dtype=np.float64).T
    return score, hit, weight


@given(RANKED)
def test_auc_is_scikit_learns_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    score, hit, weight = columns(rows)
    assert auc(score, hit) == pytest.approx(roc_auc_score(hit, score))
    assert auc(score, hit, weight) == pytest.approx(roc_auc_score(hit, score, sample_weight=weight))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    score, hit = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(score, hit) == (1 + 0.5 + 1 + 1) / 4
    assert math.isnan(auc(score, np.ones(4)))


def test_log_loss_is_scikit_learns_and_stays_finite_far_out() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=500) * 3
    labels = (rng.random(500) < 0.3).astype(float)
    assert log_loss(logits, labels) == pytest.approx(sklearn_log_loss(labels, sigmoid(logits)))
    assert log_loss(np.array([1e4, -1e4]), np.array([0.0, 0.0])) == pytest.approx(5e3)


def test_sigmoid_neither_overflows_nor_loses_its_middle() -> None:
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e4, 0.0, math.log(3), 1e4])) == pytest.approx([0, 0.5, 0.75, 1])


@pytest.mark.parametrize("spread", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, -2.0), (0.1, -1.0), (2.0, 1.0)])
def test_calibration_recovers_the_slope_and_the_intercept(
    spread: float, slope: float, intercept: float
) -> None:
    """An overconfident model has a wide spread and a small slope; the fit has to reach it."""
    rng = np.random.default_rng(11)
    logits = rng.normal(size=40_000) * spread
    labels = (rng.random(40_000) < sigmoid(slope * logits + intercept)).astype(float)
    fitted = fit_logistic_calibration(logits, labels)
    assert fitted == pytest.approx((slope, intercept), rel=0.1, abs=0.1 / spread + 0.05)


@given(RANKED)
def test_calibration_never_turns_the_order_round(rows: list[tuple[int, bool, int]]) -> None:
    logits, labels, _ = columns(rows)
    slope, intercept = fit_logistic_calibration(logits, labels)
    assert slope > 0
    assert math.isfinite(intercept)
    calibrated = slope * logits + intercept
    assert (np.argsort(calibrated, kind="stable") == np.argsort(logits, kind="stable")).all()


def test_logits_that_say_the_opposite_leave_the_share_of_all() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(1.0, 2.0, 20_000)
    labels = (rng.random(20_000) < sigmoid(-0.5 * logits - 3.0)).astype(float)
    assert auc(logits, labels) < 0.5
    slope, intercept = fit_logistic_calibration(logits, labels)
    assert 0 < slope < 0.01
    assert sigmoid(slope * logits + intercept).mean() == pytest.approx(labels.mean(), rel=0.01)


def test_calibration_stays_finite_where_the_classes_separate() -> None:
    slope, intercept = fit_logistic_calibration(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([0.0, 0, 1, 1]))
    assert 0 < slope < 100
    assert abs(intercept) < 1e-6


def histogram(rows: list[tuple[int, bool, int]]) -> Histogram:
    """Rows (score, hit, weight) gathered by score."""
    score, hit, weight = columns(rows)
    values, inverse = np.unique(score, return_inverse=True)
    total = np.bincount(inverse, weight)
    return Histogram(values, total, np.bincount(inverse, weight * hit), total * sigmoid(values))


@given(RANKED)
def test_a_histogram_ranks_as_its_rows_do(rows: list[tuple[int, bool, int]]) -> None:
    score, hit, weight = columns(rows)
    assert histogram(rows).auc == pytest.approx(auc(score, hit, weight))


@given(RANKED)
def test_tenths_are_equal_parts_that_add_up(rows: list[tuple[int, bool, int]]) -> None:
    _, hit, weight = columns(rows)
    tenths = histogram(rows).tenths()
    assert [part["decile"] for part in tenths] == list(range(1, 11))
    assert [part["examples"] for part in tenths] == pytest.approx([weight.sum() / 10] * 10)
    assert sum(part["positives"] for part in tenths) == pytest.approx((hit * weight).sum())
    assert tenths[-1]["cumulative_gain"] == pytest.approx(1)
    assert sum(part["lift"] for part in tenths) == pytest.approx(10)


def test_a_tie_across_tenths_is_split_in_proportion() -> None:
    # 20 rows: 5 at the top (4 of them hits), then 15 that tie (3 hits): a tenth of those is 2 rows, 0.4 hits.
    ranking = Histogram(
        np.array([0.0, 1.0]), np.array([15.0, 5.0]), np.array([3.0, 4.0]), np.array([3.0, 4.0])
    )
    tenths = ranking.tenths()
    assert [part["positives"] for part in tenths] == pytest.approx([1.6, 1.6, 0.8 + 0.2, *[0.4] * 7])
    assert tenths[0]["rate"] == pytest.approx(0.8)
    assert tenths[0]["lift"] == pytest.approx(0.8 / 0.35)
    assert tenths[1]["cumulative_gain"] == pytest.approx(3.2 / 7)


def test_calibration_bins_compare_what_was_said_with_what_came() -> None:
    rows = np.full(10, 100.0)
    hits = np.arange(10) * 10.0
    ranking = Histogram(np.arange(10.0), rows, hits, hits + 5)
    bins = ranking.calibration(bins=10)
    assert [part["observed"] for part in bins] == pytest.approx(np.arange(10) / 10)
    assert [part["mean_predicted"] for part in bins] == pytest.approx(np.arange(10) / 10 + 0.05)
    assert all(part["observed_low"] <= part["observed"] <= part["observed_high"] for part in bins)
    assert expected_calibration_error(bins) == pytest.approx(0.05)


def first_lift(scores: Float, labels: Float) -> float:
    """Rate of the highest tenth over the rate of all; no scores are tied."""
    first = np.argsort(-scores)[: len(scores) // 10]
    return float(labels[first].mean() / labels.mean())


def test_intervals_over_customers_follow_the_seed_and_hold_the_estimate() -> None:
    rng = np.random.default_rng(5)
    customer = np.repeat(np.arange(150), 4)
    label = (rng.random(600) < 0.3).astype(float)
    model, rule = label + rng.normal(size=600), label * 0.5 + rng.normal(size=600)
    first, again, other = (
        customer_intervals(customer, label, model, rule, replicates=100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    for intervals, measure in ((first.auc, auc), (first.lift, first_lift)):
        mine, theirs = measure(model, label), measure(rule, label)
        for (low, high), estimate in (
            (intervals.model, mine),
            (intervals.rule, theirs),
            (intervals.lead, mine - theirs),
        ):
            assert low < estimate < high


def test_intervals_count_customers_and_not_their_rows() -> None:
    rng = np.random.default_rng(5)
    label = (rng.random(100) < 0.4).astype(float)
    score = label + rng.normal(size=100)
    once = customer_intervals(np.arange(100), label, score, score, seed=3)
    copies = [np.repeat(values, 9) for values in (np.arange(100), label, score)]
    many = customer_intervals(*copies, copies[2], seed=3)
    assert many.auc.model == pytest.approx(once.auc.model)
    assert many.lift.model == pytest.approx(once.lift.model)
    assert once.auc.lead == once.lift.lead == (0.0, 0.0)


def test_where_no_draw_has_both_classes_there_is_no_interval() -> None:
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        found = customer_intervals(np.arange(5), np.zeros(5), np.arange(5.0), np.arange(5.0), replicates=3)
    assert np.isnan([*found.auc.model, *found.lift.model, *found.lift.lead]).all()


@pytest.mark.parametrize(
    ("share", "count", "interval"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0)), (0.1, 1000, (0.0829, 0.1201)),
     (0.1, 100, (0.0552, 0.1744))],
)  # fmt: skip
def test_wilsons_interval(share: float, count: float, interval: tuple[float, float]) -> None:
    assert wilson_interval(share, count) == pytest.approx(interval, abs=1e-4)
