"""AUC, deciles and gains of a histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lam_spark.evaluation.ranking import Float, Histogram
from lam_spark.model.metrics import auc, sigmoid

# (score, label, weight); few distinct scores, so that many tie.
ROWS = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 4)), min_size=2, max_size=30
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)


def columns(rows: list[tuple[int, bool, int]]) -> tuple[Float, Float, Float]:
    score, label, weight = np.array(rows, dtype=np.float64).T
    return score, label, weight


def histogram(rows: list[tuple[int, bool, int]]) -> Histogram:
    """Group rows (score, label, weight) by score."""
    score, label, weight = columns(rows)
    values, inverse = np.unique(score, return_inverse=True)
    total = np.bincount(inverse, weight)
    return Histogram(values, total, np.bincount(inverse, weight * label), total * sigmoid(values))


@given(ROWS)
def test_a_histogram_has_the_auc_of_its_rows(rows: list[tuple[int, bool, int]]) -> None:
    score, label, weight = columns(rows)
    assert histogram(rows).auc == pytest.approx(auc(score, label, weight))


@given(ROWS)
def test_deciles_are_equal_in_size_and_add_up(rows: list[tuple[int, bool, int]]) -> None:
    _, label, weight = columns(rows)
    deciles = histogram(rows).deciles()
    assert [part["decile"] for part in deciles] == list(range(1, 11))
    assert [part["examples"] for part in deciles] == pytest.approx([weight.sum() / 10] * 10)
    assert sum(part["positives"] for part in deciles) == pytest.approx((label * weight).sum())
    assert deciles[-1]["cumulative_gain"] == pytest.approx(1)
    assert sum(part["lift"] for part in deciles) == pytest.approx(10)


def test_a_tie_across_deciles_is_split_in_proportion() -> None:
    # 20 rows: 5 at the top with 4 positives, then 15 tied rows with 3 positives. A decile has 2 rows.
    ranking = Histogram(
        np.array([0.0, 1.0]), np.array([15.0, 5.0]), np.array([3.0, 4.0]), np.array([3.0, 4.0])
    )
    deciles = ranking.deciles()
    assert [part["positives"] for part in deciles] == pytest.approx([1.6, 1.6, 0.8 + 0.2, *[0.4] * 7])
    assert deciles[0]["rate"] == pytest.approx(0.8)
    assert deciles[0]["lift"] == pytest.approx(0.8 / 0.35)
    assert deciles[1]["cumulative_gain"] == pytest.approx(3.2 / 7)
