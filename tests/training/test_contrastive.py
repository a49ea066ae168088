"""Contrastive loss: slices of histories are cut between timestamp groups, see nothing of each other, and are compared."""

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
    slice_ends,
)
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.trainer import Trainer
from tests.support.learnable import blocks, specification
from tests.support.tiny import DAY, START, batch_of, customer, layout, random_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

EVER = START + 1000 * DAY
# One block of 16 events per customer: eight timestamp groups of two events.
TWICE = [START + day * DAY for day in range(8) for _ in range(2)]


def people(count: int) -> Batch:
    shape = layout(queries_per_block=2)
    return batch_of(shape, [customer(shape, TWICE, [START + 9 * DAY], seed) for seed in range(count)])


@pytest.mark.parametrize("seed", range(5))
def test_every_other_block_is_cut_between_two_timestamp_groups_of_its_middle(seed: int) -> None:
    torch.manual_seed(seed)
    batch = people(6)
    cut = cut_histories(batch, EVER)
    parts = [row.unique().tolist() for row in cut["window"]]
    assert sorted(map(len, parts)) == [1, 1, 1, 2, 2, 2]
    for row in cut["window"]:
        assert (row.diff() >= 0).all()  # one slice, then the other
        first = int((row == row[0]).sum())
        assert first == 16 or (first % 2 == 0 and 4 <= first <= 12)
    for name in batch.keys() - {"window", "query_window"}:
        assert cut[name] is batch[name]
    assert torch.equal(cut["query_window"][:, 0], cut["window"][:, -1])  # the query follows the last event
    assert not cut["query_window"][:, 1].any()  # an empty slot stays empty


def test_every_window_of_a_block_is_cut() -> None:
    shape = layout(block_events=32, queries_per_block=4)
    torch.manual_seed(0)
    batch = batch_of(shape, [customer(shape, TWICE, [], 1), customer(shape, TWICE[:10], [], 2)])
    cut = cut_histories(batch, EVER)
    assert cut["window"].unique().tolist() == [0, 1, 2, 3, 4]
    slots, owner = slice_ends(cut)
    assert owner.tolist() == [2, 2, 3, 3]
    assert slots[-1] == 25
    assert count_anchors(cut) == 4
    assert count_anchors(batch) == 0


def test_slices_do_not_see_each_other() -> None:
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


def test_events_from_the_end_on_are_in_no_slice() -> None:
    torch.manual_seed(0)
    cut = cut_histories(people(4), START + 5 * DAY)
    assert (cut["window"][:, 10:] == 0).all()
    assert (cut["window"][:, :10] > 0).all()


def test_the_loss_is_the_cross_entropy_of_finding_the_customers_other_slice() -> None:
    torch.manual_seed(0)
    batch = cut_histories(people(4), EVER)
    model = random_model(layout(queries_per_block=2))
    predictions = model(batch)
    slots, owner = slice_ends(batch)
    states = predictions.event_hidden_BTD.flatten(0, 1)[slots]
    states = (states / states.norm(dim=1, keepdim=True)).tolist()
    cosine = [
        [sum(a * b for a, b in zip(one, other, strict=True)) / 0.1 for other in states] for one in states
    ]
    expected, anchors = 0.0, 0
    for i, own in enumerate(owner.tolist()):
        same = [j for j, other in enumerate(owner.tolist()) if other == own and j != i]
        total = math.log(sum(math.exp(cosine[i][j]) for j in range(len(states)) if j != i))
        expected -= sum(cosine[i][j] - total for j in same) / max(1, len(same))
        anchors += bool(same)
    assert count_anchors(batch) == anchors == 4
    assert float(contrastive_loss(batch, predictions).detach()) == pytest.approx(expected, rel=1e-4)


def test_training_steps_reduce_the_loss() -> None:
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


def test_a_training_with_contrastive_loss_still_learns_to_predict_next_events(tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 0.5):
        records: list[dict[str, Any]] = []
        spec = specification(tmp_path / str(weight), [blocks()], contrastive_weight=weight)
        Trainer(spec, LocalGroup(), records.append).fit()
        epochs = [r for r in records if r["event"] == "epoch" and r["phase"] == "pre-training"]
        losses.append([record["validation loss"] for record in epochs])
    plain, contrastive = losses
    assert contrastive[0] == plain[0]  # before the first step
    assert contrastive[-1] != plain[-1]
    assert contrastive[-1] < contrastive[0] - 0.3
