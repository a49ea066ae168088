"""Targets of kind `value` and `next`: their distributions, and a training of all kinds."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lam_spark.model.artifact import open_artifact, read_artifact
from lam_spark.model.decayed_counts import counter_slices, num_counters
from lam_spark.model.transformer import _DecayedCountTerm
from lam_spark.model.value import expected_value, median_error, median_value, value_loss
from lam_spark.scoring.predictor import predict_queries
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training.launch import worker
from lam_spark.training.spec import TrainingSpec
from lam_spark.training_data.layout import Layout
from tests.support.learnable import specification
from tests.support.shoppers import SHAPE, shopper
from tests.support.tiny import SIZE, blocks_of, random_model, write_blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder of a training of all three kinds, and its progress records."""
    folder = tmp_path_factory.mktemp("kinds")
    content = blocks_of(SHAPE, [shopper(number) for number in range(24)])
    url = write_blocks(folder / "all.parquet", SHAPE, content)
    spec = specification(folder / "unused", [[]], finetune_epochs=12, patience=12)
    spec = dataclasses.replace(
        spec,
        layout=SHAPE,
        all_urls=(url,),
        queried_urls=(url,),
        target_weights=(1.0, 1.0, 1.0),
        folder=str(folder),
    )
    spec.save(folder / "spec.json")
    worker.main([str(folder / "spec.json")])
    lines = (folder / worker.PROGRESS_FILE).read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def test_one_training_learns_all_kinds(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    metrics = trained[1][-1]["summary"]["validation"]
    assert metrics["AUC"] > 0.95
    assert metrics["items macro AUC"] > 0.9
    amounts = np.concatenate([shopper(n).queries["label_amount_spent"][4:6] for n in range(24)])
    share, spread = (amounts > 0).mean(), np.log(amounts[amounts > 0]).std()
    constant_loss = (
        -share * math.log(share) - (1 - share) * math.log(1 - share) + share * (0.5 + math.log(spread))
    )
    assert metrics["amount_spent loss"] < constant_loss - 0.3
    # The mean amount is the error of predicting zero.
    assert metrics["amount_spent mean absolute error"] < 0.7 * amounts.mean()


def test_the_artifact_predicts_every_kind(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, records = trained
    artifact = open_artifact(*read_artifact(folder), records[-1]["digest"])
    assert set(artifact.calibration) == {"reply", "amount_spent", "items"}
    assert artifact.model.layout == SHAPE
    people = [shopper(100), shopper(101)]
    for target, shape in (("reply", (7,)), ("amount_spent", (7, 3)), ("items", (7, 6))):
        predictions = predict_queries(artifact, people, target)
        assert [rows.shape for rows in predictions] == [shape, shape]
        alone = predict_queries(artifact, people[1:], target)[0]
        np.testing.assert_allclose(predictions[1], alone, rtol=1e-4, atol=1e-5)


def test_a_specification_is_read_from_its_file(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    spec = TrainingSpec.load(trained[0] / "spec.json")
    assert spec.layout == SHAPE
    assert spec.numeric_edges == ((-1.0, 0.0, 1.0),)


@pytest.mark.parametrize("logit", [-3.0, -0.2, 0.2, 3.0])
def test_mean_and_median_are_those_of_the_distribution(logit: float) -> None:
    outputs = torch.tensor([logit, 1.2, math.log(0.6)], dtype=torch.float64)
    torch.manual_seed(0)
    sample = torch.exp(1.2 + 0.6 * torch.randn(400_000, dtype=torch.float64))
    sample[torch.rand(len(sample)) > torch.sigmoid(torch.tensor(logit))] = 0.0
    assert float(expected_value(outputs)) == pytest.approx(float(sample.mean()), rel=0.01)
    assert float(median_value(outputs)) == pytest.approx(float(sample.median()), rel=0.02, abs=1e-9)


def test_the_true_spread_has_the_least_loss() -> None:
    torch.manual_seed(0)
    label = torch.exp(1.0 + 0.5 * torch.randn(10_000))

    def loss(mean: float, log_std: float) -> float:
        return float(value_loss(torch.tensor([2.0, mean, log_std]).expand(len(label), 3), label).mean())

    best = loss(1.0, math.log(0.5))
    assert all(
        loss(*parameters) > best
        for parameters in ((0.8, math.log(0.5)), (1.2, math.log(0.5)), (1.0, -0.9), (1.0, -0.4))
    )
    assert math.isfinite(loss(1.0, -50.0))


def test_the_true_median_has_the_least_error() -> None:
    torch.manual_seed(0)
    label = torch.exp(1.0 + 0.5 * torch.randn(10_000)) * (torch.rand(10_000) < 0.8)

    def error(mean: float) -> float:
        outputs = torch.tensor([math.log(0.8 / 0.2), mean, math.log(0.5)]).expand(len(label), 3)
        assert torch.equal(median_error(outputs, label), (median_value(outputs) - label).abs())
        return float(median_error(outputs, label).mean())

    assert all(error(mean) > error(1.0) for mean in (0.8, 1.2))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1e-6, 2.0])
def test_the_gradient_of_the_medians_error_stays_finite(logit: float) -> None:
    outputs = torch.tensor([logit, 3.0, 0.0], requires_grad=True)
    median_error(outputs, torch.tensor(5.0)).backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert float(outputs.grad[0]) == 0.0  # only the likelihood trains the probability
    assert bool(outputs.grad[1] != 0) == (logit > 0)


def test_errors_are_in_units_of_the_usual_amount() -> None:
    model = random_model(SHAPE)
    constant = torch.tensor([0.0, math.log(40.0), math.log(0.5)])
    model.initialise_targets({"amount_spent": constant})
    assert model.typical_amount == {"amount_spent": pytest.approx(40.0)}


def test_a_layout_is_read_from_its_json() -> None:
    assert Layout.from_json(json.loads(json.dumps(SHAPE.to_json()))) == SHAPE


def test_decayed_counts_change_logits_by_value_and_by_hidden_state() -> None:
    target = SHAPE.targets[2]
    own = _DecayedCountTerm(target, SHAPE, SIZE)
    torch.nn.init.zeros_(own.sequence_weight.weight)
    torch.nn.init.zeros_(own.sequence_weight.bias)
    inner, decayed_counts = (
        torch.randn(1, 2, SIZE.d_model),
        torch.rand(1, 2, len(SHAPE.half_life_days), num_counters(SHAPE)),
    )
    assert not own(inner, decayed_counts).any()
    with torch.no_grad():
        own.value_weight_HV[1, 4] = 2.0
        added = own(inner, decayed_counts)
        first = counter_slices(SHAPE)["item"].start + FIRST_VALUE
        assert added[0, :, 4].tolist() == (2 * decayed_counts[0, :, 1, first + 4]).tolist()
        assert added.count_nonzero() == 2
        own.sequence_weight.bias[0] = 1.0
        difference = own(inner, decayed_counts) - added
    torch.testing.assert_close(difference, decayed_counts[:, :, 0, first : first + target.values])
