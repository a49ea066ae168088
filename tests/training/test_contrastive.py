"""Slices of histories: cut between moments, blind to each other, told apart by whose they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lam_spark.model.transformer import Batch
from lam_spark.training.contrastive import (
    contrastive_loss,
    count_anchors,
    cut_histories,
    ends_of_slices,
)
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.trainer import Trainer
from tests.support.learnable import blocks, specification
from tests.support.tiny import DAY, START, batch_of, customer, layout, random_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

EVER = START + 1000 * DAY
# A block of 16 events a customer: eight moments of two lines.
TWICE = [START + day * DAY for day in range(8) for _ in range(2)]


def people(count: int) -> Batch:
    shape = layout(queries_per_block=2)
    return batch_of(shape, [customer(shape, TWICE, [START + 9 * DAY], seed) for seed in range(count)])


@pytest.mark.parametrize("seed", range(5))
def test_every_other_block_is_cut_between_two_moments_of_its_middle(seed: int) -> None:
    torch.manual_seed(seed)
    batch = people(6)
    cut = cut_histories(batch, EVER)
    parts = [row.unique().tolist() for row in cut["window"]]
    assert sorted(map(len, parts)) == [1, 1, 1, 2, 2, 2]
    for row in cut["window"]:
        assert (row.diff() >= 0).all()  # one part, then the other
        first = int((row == row[0]).sum())
        assert first == 16 or (first % 2 == 0 and 4 <= first <= 12)
    for name in batch.keys() - {"window", "query_window"}:
        assert cut[name] is batch[name]
    assert torch.equal(cut["query_window"][:, 0], cut["window"][:, -1])  # asked after the last event
    assert not cut["query_window"][:, 1].any()  # an empty slot stays one


def test_several_segments_of_a_block_are_each_cut() -> None:
    shape = layout(block_events=32, queries_per_block=4)
    torch.manual_seed(0)
    batch = batch_of(shape, [customer(shape, TWICE, [], 1), customer(shape, TWICE[:10], [], 2)])
    cut = cut_histories(batch, EVER)
    assert cut["window"].unique().tolist() == [0, 1, 2, 3, 4]
    slots, owner = ends_of_slices(cut)
    assert owner.tolist() == [2, 2, 3, 3]
    assert slots[-1] == 25
    assert count_anchors(cut) == 4
    assert count_anchors(batch) == 0


def test_the_second_slice_does_not_know_the_first() -> None:
    torch.manual_seed(1)
    batch = people(1)
    cut = cut_histories(batch, EVER)
    second = cut["window"][0] == 2
    assert 0 < int(second.sum()) < 16
    model = random_model(layout(queries_per_block=2))
    changed = {**cut, "event_item": torch.where(second, cut["event_item"], 1)}
    with torch.no_grad():
        before, after = (model(one).event_hidden_BTD[0] for one in (cut, changed))
    assert torch.equal(before[second], after[second])
    assert not torch.equal(before[~second], after[~second])


def test_what_judges_is_not_in_a_slice() -> None:
    torch.manual_seed(0)
    cut = cut_histories(people(4), START + 5 * DAY)
    assert (cut["window"][:, 10:] == 0).all()
    assert (cut["window"][:, :10] > 0).all()


def test_the_loss_is_that_of_picking_the_right_slice() -> None:
    torch.manual_seed(0)
    batch = cut_histories(people(4), EVER)
    model = random_model(layout(queries_per_block=2))
    predictions = model(batch)
    slots, owner = ends_of_slices(batch)
    states = predictions.event_hidden_BTD.flatten(0, 1)[slots]
    states = (states / states.norm(dim=1, keepdim=True)).tolist()
    cosine = [
        [sum(a * b for a, b in zip(one, other, strict=True)) / 0.1 for other in states] for one in states
    ]
    expected, anchors = 0.0, 0
    for i, own in enumerate(owner.tolist()):
        alike = [j for j, other in enumerate(owner.tolist()) if other == own and j != i]
        total = math.log(sum(math.exp(cosine[i][j]) for j in range(len(states)) if j != i))
        expected -= sum(cosine[i][j] - total for j in alike) / max(1, len(alike))
        anchors += bool(alike)
    assert count_anchors(batch) == anchors == 4
    assert float(contrastive_loss(batch, predictions).detach()) == pytest.approx(expected, rel=1e-4)


def test_steps_bring_the_slices_of_a_customer_together() -> None:
    torch.manual_seed(0)
    model = random_model(layout(queries_per_block=2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        batch = cut_histories(people(8), EVER)
        loss = contrastive_loss(batch, model(batch)) / count_anchors(batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_training_with_it_still_learns_what_comes_next(tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 0.5):
        told: list[dict[str, Any]] = []
        spec = specification(tmp_path / str(weight), [blocks()], contrastive_weight=weight)
        Trainer(spec, LocalGroup(), told.append).fit()
        judged = [r for r in told if r["event"] == "epoch" and r["phase"] == "pre-training"]
        losses.append([record["validation loss"] for record in judged])
    plain, contrasted = losses
    assert contrasted[0] == plain[0]  # before the first step
    assert contrasted[-1] != plain[-1]
    assert contrasted[-1] < contrasted[0] - 0.3
