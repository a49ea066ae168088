"""Validation metrics: equal to those computed from all rows, in constant memory, and the same on all processes."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from lam_spark.errors import ModelError
from lam_spark.model.metrics import Float, auc, fit_logistic_calibration, log_loss, sigmoid
from lam_spark.model.value import expected_value, median_value, value_loss
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.validation import ValidationMetrics, Validator
from lam_spark.training_data.layout import Target

GROUP = LocalGroup()


def test_metrics_of_a_next_target_are_those_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    logits = (rng.normal(size=(500, 3)) + 2 * labels - 1).astype(np.float32)
    validator = Validator(Target("items", "next", "item", 3))
    for rows in (slice(0, 200), slice(200, 500)):
        validator.update(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows]))
    metrics = validator.compute(GROUP)
    wide, flat = logits.astype(float), labels.astype(float)
    assert metrics.loss == pytest.approx(log_loss(wide.ravel(), flat.ravel()), rel=1e-12)
    areas = [auc(wide[:, value], flat[:, value]) for value in range(3)]
    assert metrics.measures["macro AUC"] == pytest.approx(np.mean(areas), abs=1e-3)
    slope, intercept = fit_logistic_calibration(wide.ravel(), flat.ravel())
    assert metrics.calibration.slope == pytest.approx(slope, rel=1e-3)
    assert metrics.calibration.intercept == pytest.approx(intercept, abs=1e-3)
    assert metrics.excess < 0  # better than a constant


def with_ties(rng: np.random.Generator, count: int) -> Float:
    """Normal logits with deviation 2; every third is rounded to a half."""
    logits = rng.normal(size=count) * 2
    logits[::3] = np.rint(logits[::3] * 2) / 2
    return logits


def with_extremes(rng: np.random.Generator, count: int) -> Float:
    """The same, with every fiftieth beyond the bins."""
    logits = with_ties(rng, count)
    logits[::50] = rng.choice([-1, 1], count // 50) * rng.uniform(12, 40, count // 50)
    return logits


@pytest.mark.parametrize(
    ("draw", "auc_error", "slope_error", "intercept_error"),
    [(with_ties, 1e-4, 1e-5, 1e-5), (with_extremes, 1e-4, 1e-4, 1e-4)],
)
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_a_binary_target_are_those_of_its_rows(
    draw: Callable[[np.random.Generator, int], Float],
    auc_error: float,
    slope_error: float,
    intercept_error: float,
    seed: int,
) -> None:
    """One in ten logits beyond the bins is wrong: taken as 12 they would make the slope too steep by 0.1."""
    rng = np.random.default_rng(seed)
    logits = draw(rng, 20_000).astype(np.float32).astype(np.float64)
    labels = (rng.random(20_000) < sigmoid(0.8 * logits - 1)) ^ (
        (abs(logits) > 12) & (rng.random(20_000) < 0.1)
    )
    validator = Validator(Target("a"))
    validator.update(torch.from_numpy(logits).float(), torch.from_numpy(labels).float())
    metrics = validator.compute(GROUP)
    yes = labels.astype(np.float64)
    assert metrics.loss == pytest.approx(log_loss(logits, yes), rel=1e-12)
    assert metrics.naive_loss == pytest.approx(
        log_loss(np.full(20_000, math.log(yes.mean() / (1 - yes.mean()))), yes)
    )
    assert metrics.measures == {"AUC": pytest.approx(auc(logits, yes), abs=auc_error)}
    slope, intercept = fit_logistic_calibration(logits, yes)
    assert metrics.calibration.slope == pytest.approx(slope, abs=slope_error)
    assert metrics.calibration.intercept == pytest.approx(intercept, abs=intercept_error)


def test_the_largest_logits_fall_into_the_outermost_bins() -> None:
    validator = Validator(Target("a"))
    validator.update(torch.tensor([3e38, 3e37, -3e38]), torch.tensor([1.0, 0.0, 0.0]))
    metrics = validator.compute(GROUP)
    assert metrics.measures["AUC"] == 0.75
    assert metrics.loss == pytest.approx(1e37)


class ThreadGroup(LocalGroup):
    """A process group whose processes are threads."""

    def __init__(self, barrier: threading.Barrier, parts: list[torch.Tensor]) -> None:
        self.barrier, self.parts = barrier, parts

    def begin_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.parts.append(values)
        self.barrier.wait(timeout=60)
        return lambda: torch.stack(self.parts).sum(dim=0)


def draw_examples(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """900 informative predictions and their labels; the first hundred labels are zero."""
    torch.manual_seed(0)
    shape = (900, target.values) if target.kind == "next" else (900,)
    happened = (torch.rand(shape) < 0.3) & (torch.arange(900) >= 100).view(-1, *[1] * (len(shape) - 1))
    logit = torch.randn(shape) * 2 + happened
    if target.kind != "value":
        return logit, happened.float()
    amount = torch.exp(1.0 + 0.5 * torch.randn(900)) * happened
    return torch.stack([logit, torch.randn(900) + 1, torch.randn(900)], dim=1), amount


EACH_KIND = pytest.mark.parametrize(
    "target", [Target("a"), Target("a", "value"), Target("a", "next", "item", 3)], ids=lambda t: t.kind
)


@EACH_KIND
def test_processes_with_parts_of_the_examples_get_the_metrics_of_all(target: Target) -> None:
    """One process has no examples, one only zero labels."""
    predictions, labels = draw_examples(target)
    single = Validator(target)
    single.update(predictions, labels)
    expected = single.compute(GROUP)
    parts: list[list[slice]] = [[slice(0, 100)], [], [slice(100, 101), slice(101, 500)], [slice(500, 900)]]
    barrier, sums = threading.Barrier(len(parts)), list[torch.Tensor]()

    def compute(slices: list[slice]) -> ValidationMetrics:
        validator = Validator(target)
        for rows in slices:
            validator.update(predictions[rows], labels[rows])
        return validator.compute(ThreadGroup(barrier, sums))

    with ThreadPoolExecutor(len(parts)) as pool:
        metrics = list(pool.map(compute, parts))
    assert all(of_process == metrics[0] for of_process in metrics)
    assert metrics[0].measures.keys() == expected.measures.keys()
    for value, expected_number in zip(numbers(metrics[0]), numbers(expected), strict=True):
        assert value == pytest.approx(expected_number, rel=1e-9)
    assert len({values.numel() for values in sums}) == 1


def numbers(metrics: ValidationMetrics) -> list[float]:
    calibration = (metrics.calibration.slope, metrics.calibration.intercept)
    return [metrics.loss, metrics.naive_loss, metrics.unit, *metrics.measures.values(), *calibration]


@EACH_KIND
def test_memory_does_not_depend_on_the_number_of_examples(target: Target) -> None:
    predictions, labels = draw_examples(target)
    validator = Validator(target)
    validator.update(predictions, labels)
    size = len(pickle.dumps(validator))
    for _ in range(9):
        validator.update(predictions, labels)
    assert len(pickle.dumps(validator)) == size


def test_the_calibration_of_amounts_corrects_their_sum() -> None:
    torch.manual_seed(0)
    predictions = torch.tensor([[1.0, 2.0, -0.7]]).repeat(200, 1)
    labels = torch.where(torch.rand(200) < 0.7, torch.exp(1.0 + torch.randn(200)), 0.0)
    validator = Validator(Target("amount", "value"))
    validator.update(predictions, labels)
    metrics = validator.compute(GROUP)
    total = float(expected_value(predictions).sum()) * metrics.calibration.slope
    assert total == pytest.approx(float(labels.sum()), rel=1e-4)
    assert metrics.measures["mean absolute error"] == pytest.approx(
        float((labels - median_value(predictions)).abs().mean()), rel=1e-4
    )
    assert metrics.loss == pytest.approx(float(value_loss(predictions, labels).mean()), rel=1e-6)
    share, spread = float((labels > 0).double().mean()), float(np.log(labels[labels > 0].numpy()).std())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert metrics.unit == pytest.approx(entropy + share)
    assert metrics.naive_loss == pytest.approx(entropy + share * (0.5 + math.log(spread)), rel=1e-6)


def test_equal_amounts_have_the_least_spread() -> None:
    """Rounding must not leave a smaller variance."""
    labels = torch.tensor([0.0, *[1e6 / 3] * 999])
    validator = Validator(Target("amount", "value"))
    validator.update(torch.zeros(1000, 3), labels)
    entropy = -0.999 * math.log(0.999) - 0.001 * math.log(0.001)
    assert validator.compute(GROUP).naive_loss == pytest.approx(entropy + 0.999 * (0.5 - 3))


@pytest.mark.parametrize(
    ("target", "predictions", "labels", "message"),
    [
        (Target("a"), [0.1, 0.2], [1.0, 1.0], "2 examples, but not of both classes"),
        (Target("a", "value"), [[0.1, 0.2, 0.3]], [0.0], "1 examples, but none with an amount above 0"),
        (
            Target("a", "next", "item", 2),
            [[0.1, 0.2]],
            [[0.0, 0.0]],
            "1 examples, but each of its 2 values follows all of them or none",
        ),
        (
            Target("a", "next", "item", 2),
            [[0.1, 0.2], [0.3, 0.4]],
            [[1.0, 0.0], [1.0, 0.0]],
            "2 examples, but each of its 2 values follows all of them or none",
        ),
    ],
)
def test_a_target_with_equal_labels_is_refused(
    target: Target, predictions: list[Any], labels: list[Any], message: str
) -> None:
    validator = Validator(target)
    validator.update(torch.tensor(predictions), torch.tensor(labels))
    with pytest.raises(ModelError) as raised:
        validator.compute(GROUP)
    assert str(raised.value) == (
        f"expected examples of 'a' with different labels in the validation period, found {message}: no epoch can be "
        "selected or calibrated. Move split.validation_start"
    )


def test_amounts_that_are_never_zero_are_validated() -> None:
    """For example a monthly bill: only the amount is predicted."""
    rng = np.random.default_rng(5)
    logs = rng.normal(3.0, 0.5, 400)
    losses = []
    for mean in (3.0, 0.0):
        validator = Validator(Target("bill", "value"))
        predictions = torch.tensor([[12.0, mean, math.log(0.5)]]).expand(len(logs), 3)
        validator.update(predictions, torch.from_numpy(np.exp(logs)))
        metrics = validator.compute(GROUP)
        losses.append(metrics.loss)
        assert metrics.unit == 1.0
        assert metrics.naive_loss == pytest.approx(0.5 + math.log(logs.std()))
    assert losses[0] == pytest.approx(0.5 + math.log(0.5), abs=0.1)
    assert losses[1] > losses[0] + 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("target", "predictions"),
    [
        (Target("a"), [0.1, 0.2, 0.3]),
        (Target("a", "value"), [[0.1, 0.2, 0.3]] * 3),
        (Target("a", "next", "item", 2), [[0.1, 0.2]] * 3),
    ],
)
def test_a_prediction_that_is_not_finite_shows_in_the_loss(
    target: Target, predictions: list[Any], value: float
) -> None:
    outputs = torch.tensor(predictions)
    outputs.view(3, -1)[1, 0] = value
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    validator = Validator(target)
    for rows in (slice(0, 2), slice(2, 3)):
        validator.update(outputs[rows], labels[rows] if target.kind == "next" else labels[rows, 0])
    assert not math.isfinite(validator.compute(GROUP).loss)
