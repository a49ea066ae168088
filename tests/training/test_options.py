"""What the options of a step do: gradients added up, sent in 16 bits, cut; layers computed again; rates scaled."""

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
from lam_spark.training.process_group import LocalGroup, _exponent, sum_gradients
from lam_spark.training.trainer import Trainer, _schedule
from lam_spark.training_data.loader import block_batches, files_of_rank
from tests.support.learnable import SHAPE, blocks, specification, take_steps
from tests.support.tiny import DAY, SIZE, START, batch_of, customer, random_model, stack
from tests.training.test_losses import WHOLE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

Weights = dict[str, Tensor]


class TwoAlike(LocalGroup):
    """Two ranks with the same data; keeps what was sent."""

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
    together = spec.settings["micro_batch_size"] * spec.settings["gradient_accumulation_steps"]
    steps = block_batches(files_of_rank(spec.queried_urls, 0, 1), SHAPE, together, seed=None)
    return before, take_steps(trainer, list(steps))


def test_batches_that_are_added_up_are_one_batch(tmp_path: Path) -> None:
    _, at_once = after_one_epoch(tmp_path / "a", micro_batch_size=4)
    before, added = after_one_epoch(tmp_path / "b", micro_batch_size=1, gradient_accumulation_steps=4)
    for name, values in at_once.items():
        torch.testing.assert_close(added[name], values, rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.allclose(before[name], values, atol=1e-3) for name, values in added.items())


def test_a_layer_computed_again_drops_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    forward = _Block.forward

    def counted(self: _Block, *given: Any) -> Tensor:
        computed.append(self)
        return forward(self, *given)

    monkeypatch.setattr(_Block, "forward", counted)
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
        assert len(computed) == (1 + activation_checkpointing) * SIZE.n_layers
        computed.clear()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    for asked in (False, True):
        spec = specification(tmp_path / str(asked), [blocks(2)], activation_checkpointing=asked)
        assert Trainer(spec, LocalGroup(), lambda record: None).model.activation_checkpointing is asked


def test_gradients_travel_in_sixteen_bits_when_asked() -> None:
    for compress, kind in ((False, torch.float32), (True, torch.float16)):
        model, world = torch.nn.Linear(3, 2), TwoAlike()
        model(torch.tensor([[1.0, 2.0, 1 / 3]])).sum().backward()
        given = model.weight.grad.clone()
        sum_gradients(world, list(model.parameters()), compress)
        assert [sent.dtype for sent in world.sent] == [kind]
        assert model.weight.grad.dtype == torch.float32
        torch.testing.assert_close(model.weight.grad, 2 * given, rtol=1e-3 if compress else 0, atol=0)
        assert torch.equal(model.weight.grad, 2 * given) is not compress


@pytest.mark.parametrize("size", [1e9, 60_000.0, 1e-9, 1e-30, 0.0])
def test_in_sixteen_bits_large_and_small_gradients_arrive(size: float) -> None:
    """By themselves those would be infinite, and these nothing."""
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = size * torch.tensor([1.0, -0.75, 1e-4])
    given = weight.grad.clone()
    sum_gradients(TwoAlike(), [weight], compress=True)
    torch.testing.assert_close(weight.grad, 2 * given, rtol=1e-3, atol=0)


def test_a_rank_that_adds_zeros_does_not_decide_how_small_gradients_may_be() -> None:
    zeros, small = torch.zeros(3), torch.tensor([0.0, 1e-6, -2e-9])
    assert _exponent(zeros) < _exponent(small) < 0


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_in_sixteen_bits_what_is_no_number_stays_none(wrong: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, wrong, 1e-9])
    sum_gradients(TwoAlike(), [weight], compress=True)
    assert weight.grad.isfinite().tolist()[:2] == [True, False]


@pytest.mark.parametrize("world", [LocalGroup, TwoAlike])
def test_pre_training_leaves_the_answers_as_they_began(tmp_path: Path, world: type[LocalGroup]) -> None:
    """They begin at how rare the rare is; decay without a lesson would make them forget it, rank by rank."""
    spec = specification(tmp_path, [blocks(11)[:4], blocks(11)[4:8]], pretrain_epochs=1, weight_decay=0.5)
    trainer = Trainer(spec, world(), lambda record: None)
    before = {name: values.clone() for name, values in trainer.model.state_dict().items()}
    trainer.standing.enter("pre-training")
    next(trainer._epochs(trainer._passes()[0]))
    after = trainer.model.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    answers = {name for name in before if name.startswith("target_heads.")}
    assert answers <= kept
    assert not {name for name in before if name.startswith(("blocks.", "next_"))} & kept


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rates_grow_with_the_batches_of_a_step(tmp_path: Path, scaling: str, factor: float) -> None:
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

    def watched(optimiser: torch.optim.Optimizer, *rest: object) -> tuple[float, bool]:
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *rest)  # type: ignore[arg-type]

    trainer._step = watched  # type: ignore[method-assign]
    trainer.standing.enter("pre-training")
    next(trainer._epochs(trainer._passes()[0]))
    assert max(rates) == pytest.approx(factor * spec.settings["learning_rate"], rel=0.2)


def test_the_rate_begins_in_a_line_and_ends_in_half_a_cosine() -> None:
    rates = [_schedule(done, 2000) for done in range(2000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[49] == pytest.approx(0.5, rel=2e-3)  # of a hundred steps
    assert max(rates) == rates[99] > 0.99
    assert rates[500] == pytest.approx(0.05 + 0.95 * (2 + math.sqrt(2)) / 4)
    assert rates[1000] == pytest.approx((1 + 0.05) / 2)
    assert rates[1500] == pytest.approx(0.05 + 0.95 * (2 - math.sqrt(2)) / 4)
    assert 0.05 < rates[-1] < 0.0501
    changes = [after - before for before, after in itertools.pairwise(rates)]
    assert all(change > 0 for change in changes[:99])
    assert all(change < 0 for change in changes[99:])


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (9, 1), (20, 2), (500, 50), (5000, 100)])
def test_a_short_training_warms_up_in_a_tenth_of_it(total: int, steps: int) -> None:
    rates = [_schedule(done, total) for done in range(total)]
    assert rates.index(max(rates)) == steps - 1
    assert rates[0] == pytest.approx(1 / steps)


def test_a_phase_goes_through_its_schedule_once(tmp_path: Path) -> None:
    """Over all its epochs; the refit, which stops earlier, as fine-tuning until then."""
    spec = specification(
        tmp_path, [blocks(8)], pretrain_epochs=2, finetune_epochs=3, learning_rate=0.01,
        finetune_learning_rate=0.004,
    )  # fmt: skip
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    rates: dict[str, list[float]] = {}
    step = trainer._step

    def watched(optimiser: torch.optim.Optimizer, *rest: Any) -> tuple[float, bool]:
        rates.setdefault(trainer.standing.phase, []).append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *rest)

    trainer._step = watched  # type: ignore[method-assign]
    trainer.fit()
    steps = 4  # an epoch: eight blocks by two
    assert rates["pre-training"] == [0.01 * _schedule(done, 2 * steps) for done in range(2 * steps)]
    assert rates["fine-tuning"] == [
        0.004 * _schedule(done, 3 * steps) for done in range(len(rates["fine-tuning"]))
    ]
    assert rates["refit"] == rates["fine-tuning"][: trainer.standing.chosen * steps] != []


def test_a_step_is_as_long_as_the_longest_gradient_allowed(tmp_path: Path) -> None:
    """Plain descent at the rate 0.5 changes the weights by half the gradient: of its length, or of the limit's."""
    moved: dict[float, Tensor] = {}
    for limit in (1e9, 0.1, 1e-3):
        spec = specification(tmp_path / str(limit), [blocks(8)], max_grad_norm=limit)
        trainer = Trainer(spec, LocalGroup(), lambda record: None)
        before = torch.cat([values.detach().flatten().double() for values in trainer.model.parameters()])
        take_steps(trainer, [stack(SHAPE, blocks(8))])
        after = torch.cat([values.detach().flatten().double() for values in trainer.model.parameters()])
        moved[limit] = after - before
    free = float(moved[1e9].norm())
    assert free > 0.5 * 0.1
    for limit in (0.1, 1e-3):
        assert float(moved[limit].norm()) == pytest.approx(0.5 * limit, rel=1e-2)
        torch.testing.assert_close(moved[limit] / limit, moved[1e9] / (2 * free), rtol=0.05, atol=1e-2)


def test_only_matrices_are_pulled_to_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = specification(tmp_path, [blocks(11)[:4]], weight_decay=0.5)
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.fill_(1.0)

    def decayed_only(optimiser: torch.optim.Optimizer, *rest: object) -> tuple[float, bool]:
        for group in optimiser.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimiser.step()
        return 0.0, False

    monkeypatch.setattr(trainer, "_step", decayed_only)
    trainer.standing.enter("fine-tuning")
    next(trainer._epochs(trainer._passes()[1]))
    for name, weight in trainer.model.named_parameters():
        assert bool((weight == 1).all()) == (weight.ndim <= 1), name
        assert bool((weight > 0).all()), name
