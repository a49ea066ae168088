"""The average of a model's weights: against its formula, and what of a training uses it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from lam_spark.errors import ModelError
from lam_spark.model.artifact import read_artifact
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.trainer import Trainer
from lam_spark.training.weight_average import WeightAverage
from tests.support.learnable import blocks, specification

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow


def set_to(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_late_steps_weigh_more_the_more_there_were() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    expected = 0.0
    for done in range(40):
        set_to(model, float(done))
        average.follow(done)
        expected += (done - expected) * 10 / (10 + done)
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert 34 < expected < 39  # about the last tenth of the steps, not the middle


def test_a_new_pass_begins_a_new_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    for done, value in ((0, 1.0), (1, 2.0), (0, 7.0)):
        set_to(model, value)
        average.follow(done)
    assert average.weights["weight"].item() == 7.0


def test_it_is_in_use_for_as_long_as_asked() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    set_to(model, 1.0)
    average.follow(0)
    set_to(model, 5.0)
    with contextlib.suppress(ModelError), average.in_use():
        assert model.weight.item() == 1.0
        raise ModelError("a judge that fails")
    assert (model.weight.item(), average.weights["weight"].item()) == (5.0, 1.0)


def test_a_training_ends_with_the_average_of_its_refit(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks()], finetune_epochs=1)
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    followed: list[dict[str, torch.Tensor]] = []
    follow = trainer._average.follow

    def spied(done: int) -> None:
        follow(done)
        followed.append({name: w.clone() for name, w in trainer._average.weights.items()})

    trainer._average.follow = spied  # type: ignore[method-assign]
    trainer.fit()
    saved = load(read_artifact(tmp_path)[0])
    assert all(torch.equal(saved[name], weights) for name, weights in followed[-1].items())
    last_step = trainer._average.weights  # they changed places
    assert any(not torch.equal(saved[name], weights) for name, weights in last_step.items())
