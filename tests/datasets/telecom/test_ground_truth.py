"""Metrics of the best possible model, compared with the true probabilities of single queries."""

from __future__ import annotations

import numpy as np
import pytest

from lam_spark.datasets.telecom.customers import Queries, Traits
from lam_spark.datasets.telecom.ground_truth import best_possible, count_cells
from lam_spark.datasets.telecom.parameters import NEVER
from lam_spark.model.metrics import auc


def test_the_best_possible_metrics_follow_from_the_true_probabilities(
    traits: Traits, queries: Queries
) -> None:
    cells = {cell: count for (_, cell), count in count_cells(traits, queries).items()}
    best = best_possible(cells)
    p = queries.p_treated[queries.treated]
    expected = auc(np.tile(p, 2), np.repeat([1.0, 0.0], len(p)), np.concatenate([p, 1 - p]))
    assert best["auc"]["full_knowledge"] == pytest.approx(expected, abs=1e-9)
    assert best["auc"]["full_knowledge"] > best["auc"]["without_churn"] > best["auc"]["without_order"] + 0.02
    drawn = auc(p, (queries.ordered_at < NEVER)[queries.treated].astype(float))
    assert drawn == pytest.approx(expected, abs=0.01)
    effect = (queries.p_treated - queries.p_control)[queries.selected]
    assert best["uplift"]["of_calling_all"] == pytest.approx(effect.mean(), abs=1e-9)
    assert best["uplift"]["qini_by_effect"] > best["uplift"]["qini_by_probability"] > 0
    assert best["treated"] + best["control"] == queries.selected.sum()
