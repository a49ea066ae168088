"""Statistics of the training period's queries: constants of the targets, moments and bins of the aggregates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lam_spark.model.value import value_loss
from lam_spark.training.normalisation import query_statistics
from lam_spark.training.process_group import LocalGroup
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.loader import files_of_rank
from lam_spark.training_data.packing import unfold
from tests.support.shoppers import SHAPE, shopper
from tests.support.tiny import blocks_of, write_blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

GROUP = LocalGroup()


def test_constants_are_those_of_the_training_period(tmp_path: Path) -> None:
    people = [shopper(number) for number in range(10)]
    url = write_blocks(tmp_path / "a.parquet", SHAPE, blocks_of(SHAPE, people))
    constants = query_statistics(files_of_rank([url], 0, 1), SHAPE, GROUP, bins=8).constants
    early = slice(0, 4)  # queries of the training period
    yes = np.concatenate([customer.queries["label_reply"][early] for customer in people])
    odds = (yes.sum() + 0.5) / ((1 - yes).sum() + 0.5)
    assert float(constants["reply"]) == pytest.approx(math.log(odds), rel=1e-5)
    spent = np.concatenate([customer.queries["label_amount_spent"][early] for customer in people])
    logs = np.log(spent[spent > 0])
    expected = [
        math.log((len(logs) + 0.5) / (len(spent) - len(logs) + 0.5)),
        logs.mean(),
        math.log(logs.std()),
    ]
    assert constants["amount_spent"].tolist() == pytest.approx(expected, rel=1e-4)
    items = np.concatenate([customer.queries["label_items"][early] for customer in people]).sum(axis=0)
    assert constants["items"].tolist() == pytest.approx(
        np.log((items + 0.5) / (40 - items + 0.5)).tolist(), rel=1e-4
    )


def test_the_constant_spread_of_amounts_has_a_gradient(tmp_path: Path) -> None:
    """Amounts of all customers spread more than the largest spread of a prediction."""
    people = [shopper(number) for number in range(10)]
    for number, customer in enumerate(people):
        customer.queries["label_amount_spent"][:] = 10.0 ** (number - 3)
    url = write_blocks(tmp_path / "a.parquet", SHAPE, blocks_of(SHAPE, people))
    start = query_statistics(files_of_rank([url], 0, 1), SHAPE, GROUP, bins=8).constants["amount_spent"]
    outputs = start.expand(4, 3).clone().requires_grad_()
    amounts = torch.tensor([9.0, 10.0, 11.0, 12.0])
    value_loss(outputs, amounts).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert (outputs.grad[:, 2] != 0).all()


@pytest.mark.parametrize("bins", [4, 0])
def test_the_bins_of_an_aggregate_are_equally_full_in_the_training_period(tmp_path: Path, bins: int) -> None:
    content = blocks_of(SHAPE, [shopper(number) for number in range(30)])
    url = write_blocks(tmp_path / "a.parquet", SHAPE, content)
    statistics = query_statistics(files_of_rank([url], 0, 1), SHAPE, GROUP, bins)
    whole = unfold(SHAPE, {name: np.stack([block[name] for block in content]) for name in content[0]})
    rows = whole["aggregates"][whole["query_split"] == SPLIT_IDS["train"]]
    assert len(rows) == 120
    assert len(statistics.edges) == rows.shape[1]
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-5)
    if not bins:
        assert not any(statistics.edges)
        return
    assert max(map(len, statistics.edges)) == bins + 1
    for edges, values in zip(statistics.edges, rows.T, strict=True):
        assert list(edges) == sorted(set(edges))
        exact = np.quantile(values, np.arange(bins + 1) / bins, method="inverted_cdf")
        for quantile in exact:  # edges are rounded down to 1/32
            assert any(0 <= quantile - edge <= 1 / 32 for edge in edges)
        assert all(np.any((exact >= edge) & (exact <= edge + 1 / 32)) for edge in edges)
