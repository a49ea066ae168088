"""Options of a training step: accumulation, float16 compression, clipping, activation checkpointing, schedules."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lam_spark.model.transformer import _Block
from lam_spark.training.losses import loss_of
from lam_spark.training.optimisation import learning_rate_factor
from lam_spark.training.phases import blocks_per_step
from lam_spark.training.process_group import LocalGroup, _exponent, sum_gradients
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.loader import block_batches, files_of_rank
from tests.support.learnable import SHAPE, blocks, specification, take_steps
from tests.support.tiny import DAY, SIZE, START, batch_of, customer, random_model, stack
from tests.training.test_losses import WHOLE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

Weights = dict[str, Tensor]


class EqualPair(LocalGroup):
    """Two processes with the same data; records what is sent."""

    size = 2

    def __init__(self) -> None:
        self.sent: list[Tensor] = []

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        self.sent.append(values)
        return lambda: values * 2


def after_one_epoch(folder: Path, **settings: object) -> tuple[Weights, Weights]:
    """Weights before and after the steps of one epoch over eight blocks."""
    spec = specification(folder, [blocks(11)[:8]], **settings)
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    before = {name: values.clone() for name, values in trainer.model.state_dict().items()}
    size = blocks_per_step(spec.settings)
    steps = block_batches(files_of_rank(spec.queried_urls, 0, 1), SHAPE, size, seed=None)
    return before, take_steps(trainer, list(steps))


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    _, expected = after_one_epoch(tmp_path / "a", micro_batch_size=4)
    before, accumulated = after_one_epoch(tmp_path / "b", micro_batch_size=1, gradient_accumulation_steps=4)
    for name, values in expected.items():
        torch.testing.assert_close(accumulated[name], values, rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.allclose(before[name], values, atol=1e-3) for name, values in accumulated.items())


def test_activation_checkpointing_repeats_the_same_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = _Block.forward

    def counting_forward(self: _Block, *arguments: Any) -> Tensor:
        calls.append(self)
        return forward(self, *arguments)

    monkeypatch.setattr(_Block, "forward", counting_forward)
    people = [
        customer(SHAPE, [START + day * DAY for day in range(9)], [START + 9 * DAY], n) for n in range(3)
    ]
    batch = batch_of(SHAPE, people)
    gradients = []
    for activation_checkpointing in (False, True):
        model = random_model(SHAPE, size=dataclasses.replace(SIZE, dropout=0.3)).train()
        model.activation_checkpointing = activation_checkpointing
        torch.manual_seed(5)
        part = loss_of(model, batch, WHOLE, with_next=True, with_targets=True)
        (part.next_sum + part.target_sums.sum()).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert len(calls) == (1 + activation_checkpointing) * SIZE.n_layers
        calls.clear()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    for flag in (False, True):
        spec = specification(tmp_path / str(flag), [blocks(2)], activation_checkpointing=flag)
        assert Trainer(spec, LocalGroup(), lambda record: None).model.activation_checkpointing is flag


def test_gradients_are_sent_as_float16_with_compression() -> None:
    for compress, dtype in ((False, torch.float32), (True, torch.float16)):
        model, group = torch.nn.Linear(3, 2), EqualPair()
        model(torch.tensor([[1.0, 2.0, 1 / 3]])).sum().backward()
        own = model.weight.grad.clone()
        sum_gradients(group, list(model.parameters()), compress)
        assert [sent.dtype for sent in group.sent] == [dtype]
        assert model.weight.grad.dtype == torch.float32
        torch.testing.assert_close(model.weight.grad, 2 * own, rtol=1e-3 if compress else 0, atol=0)
        assert torch.equal(model.weight.grad, 2 * own) is not compress


@pytest.mark.parametrize("size", [1e9, 60_000.0, 1e-9, 1e-30, 0.0])
def test_compression_keeps_large_and_small_gradients(size: float) -> None:
    """Without scaling, float16 would make them infinite or zero."""
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = size * torch.tensor([1.0, -0.75, 1e-4])
    own = weight.grad.clone()
    sum_gradients(EqualPair(), [weight], compress=True)
    torch.testing.assert_close(weight.grad, 2 * own, rtol=1e-3, atol=0)


def test_a_process_with_zero_gradients_does_not_decide_the_scale() -> None:
    zeros, small = torch.zeros(3), torch.tensor([0.0, 1e-6, -2e-9])
    assert _exponent(zeros) < _exponent(small) < 0


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_compression_keeps_values_that_are_not_finite(value: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, value, 1e-9])
    sum_gradients(EqualPair(), [weight], compress=True)
    assert weight.grad.isfinite().tolist()[:2] == [True, False]


@pytest.mark.parametrize("group", [LocalGroup, EqualPair])
def test_pre_training_does_not_change_the_target_heads(tmp_path: Path, group: type[LocalGroup]) -> None:
    """They start at the base rates; weight decay without a loss would move them away."""
    spec = specification(tmp_path, [blocks(11)[:4], blocks(11)[4:8]], pretrain_epochs=1, weight_decay=0.5)
    trainer = Trainer(spec, group(), lambda record: None)
    before = {name: values.clone() for name, values in trainer.model.state_dict().items()}
    trainer.state.enter("pre-training")
    next(trainer._epochs(trainer.phases[0]))
    after = trainer.model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    target_heads = {name for name in before if name.startswith("target_heads.")}
    assert target_heads <= unchanged
    assert not {name for name in before if name.startswith(("blocks.", "next_"))} & unchanged


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rates_grow_with_the_micro_batches_of_a_step(
    tmp_path: Path, scaling: str, factor: float
) -> None:
    spec = specification(
        tmp_path,
        [blocks(11)[:8]],
        micro_batch_size=1,
        gradient_accumulation_steps=4,
        learning_rate_scaling=scaling,
    )
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    rates: list[float] = []
    step = trainer._step

    def recording_step(optimiser: torch.optim.Optimizer, *rest: object) -> tuple[float, bool]:
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *rest)  # type: ignore[arg-type]

    trainer._step = recording_step  # type: ignore[method-assign]
    trainer.state.enter("pre-training")
    next(trainer._epochs(trainer.phases[0]))
    assert max(rates) == pytest.approx(factor * spec.settings.learning_rate, rel=0.2)


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    rates = [learning_rate_factor(step, 2000) for step in range(2000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[49] == pytest.approx(0.5, rel=2e-3)  # warm-up takes a hundred steps
    assert max(rates) == rates[99] > 0.99
    assert rates[500] == pytest.approx(0.05 + 0.95 * (2 + math.sqrt(2)) / 4)
    assert rates[1000] == pytest.approx((1 + 0.05) / 2)
    assert rates[1500] == pytest.approx(0.05 + 0.95 * (2 - math.sqrt(2)) / 4)
    assert 0.05 < rates[-1] < 0.0501
    changes = [after - before for before, after in itertools.pairwise(rates)]
    assert all(change > 0 for change in changes[:99])
    assert all(change < 0 for change in changes[99:])


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (9, 1), (20, 2), (500, 50), (5000, 100)])
def test_a_short_training_warms_up_in_a_tenth_of_its_steps(total: int, steps: int) -> None:
    rates = [learning_rate_factor(step, total) for step in range(total)]
    assert rates.index(max(rates)) == steps - 1
    assert rates[0] == pytest.approx(1 / steps)


def test_the_schedule_spans_all_epochs_of_a_phase(tmp_path: Path) -> None:
    """The refit, which stops earlier, has the same learning rates as fine-tuning."""
    spec = specification(
        tmp_path, [blocks(8)], pretrain_epochs=2, finetune_epochs=3, learning_rate=0.01,
        finetune_learning_rate=0.004,
    )  # fmt: skip
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    rates: dict[str, list[float]] = {}
    step = trainer._step

    def recording_step(optimiser: torch.optim.Optimizer, *rest: Any) -> tuple[float, bool]:
        rates.setdefault(trainer.state.phase, []).append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *rest)

    trainer._step = recording_step  # type: ignore[method-assign]
    trainer.fit()
    steps = 4  # per epoch: eight blocks, two per step
    assert rates["pre-training"] == [
        0.01 * learning_rate_factor(step, 2 * steps) for step in range(2 * steps)
    ]
    assert rates["fine-tuning"] == [
        0.004 * learning_rate_factor(step, 3 * steps) for step in range(len(rates["fine-tuning"]))
    ]
    assert rates["refit"] == rates["fine-tuning"][: trainer.state.best_epoch * steps] != []


def test_gradients_are_clipped_to_the_largest_norm(tmp_path: Path) -> None:
    """Gradient descent with rate 0.5 changes the weights by half the clipped gradient."""
    changes: dict[float, Tensor] = {}
    for limit in (1e9, 0.1, 1e-3):
        spec = specification(tmp_path / str(limit), [blocks(8)], max_grad_norm=limit)
        trainer = Trainer(spec, LocalGroup(), lambda record: None)
        before = torch.cat([values.detach().flatten().double() for values in trainer.model.parameters()])
        take_steps(trainer, [stack(SHAPE, blocks(8))])
        after = torch.cat([values.detach().flatten().double() for values in trainer.model.parameters()])
        changes[limit] = after - before
    unclipped = float(changes[1e9].norm())
    assert unclipped > 0.5 * 0.1
    for limit in (0.1, 1e-3):
        assert float(changes[limit].norm()) == pytest.approx(0.5 * limit, rel=1e-2)
        torch.testing.assert_close(
            changes[limit] / limit, changes[1e9] / (2 * unclipped), rtol=0.05, atol=1e-2
        )


def test_weight_decay_acts_on_matrices_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = specification(tmp_path, [blocks(11)[:4]], weight_decay=0.5)
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.fill_(1.0)

    def step_without_gradients(optimiser: torch.optim.Optimizer, *rest: object) -> tuple[float, bool]:
        for group in optimiser.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimiser.step()
        return 0.0, False

    monkeypatch.setattr(trainer, "_step", step_without_gradients)
    trainer.state.enter("fine-tuning")
    next(trainer._epochs(trainer.phases[1]))
    for name, weight in trainer.model.named_parameters():
        assert bool((weight == 1).all()) == (weight.ndim <= 1), name
        assert bool((weight > 0).all()), name
