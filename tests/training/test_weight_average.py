"""Average of a model's weights: against its formula, and its use in a training."""

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

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow


def set_to(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_is_about_that_of_the_last_tenth_of_the_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    expected = 0.0
    for step in range(40):
        set_to(model, float(step))
        average.update(step)
        expected += (step - expected) * 10 / (10 + step)
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert 34 < expected < 39  # the middle of all steps would be 19.5


def test_a_new_phase_starts_a_new_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    for step, value in ((0, 1.0), (1, 2.0), (0, 7.0)):
        set_to(model, value)
        average.update(step)
    assert average.weights["weight"].item() == 7.0


def test_the_average_is_applied_inside_the_context_only() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    set_to(model, 1.0)
    average.update(0)
    set_to(model, 5.0)
    with contextlib.suppress(ModelError), average.applied():
        assert model.weight.item() == 1.0
        raise ModelError("validation fails")
    assert (model.weight.item(), average.weights["weight"].item()) == (5.0, 1.0)


def test_a_training_ends_with_the_average_of_its_refit(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks()], finetune_epochs=1)
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    averages: list[dict[str, torch.Tensor]] = []
    update = trainer._average.update

    def recording_update(steps_before: int) -> None:
        update(steps_before)
        averages.append({name: w.clone() for name, w in trainer._average.weights.items()})

    trainer._average.update = recording_update  # type: ignore[method-assign]
    trainer.fit()
    saved = load(read_artifact(tmp_path)[0])
    assert all(torch.equal(saved[name], weights) for name, weights in averages[-1].items())
    last_step = trainer._average.weights  # swapped with the average
    assert any(not torch.equal(saved[name], weights) for name, weights in last_step.items())
