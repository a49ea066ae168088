"""What is told of an epoch while it goes on, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lam_spark.training import progress as meter
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.progress import Meter
from lam_spark.training.state import TrainingState


class OneOf(LocalGroup):
    """A rank of several with the same numbers."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        return lambda: values * self.size


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


Records = list[dict[str, Any]]


def epoch(
    clock: Clock, standing: TrainingState, rank: int = 0, ranks: int = 1, seconds: float = 1.0
) -> Records:
    """What is told of an epoch of twelve steps, each of 50 events and of a loss of its number."""
    told: Records = []
    running = Meter(OneOf(rank, ranks), told.append, standing, 12)
    while standing.step < 12:
        clock.now += seconds
        running.add(float(standing.step + 1), 50, 7.0)
    running.finish()
    return told


def test_it_tells_every_few_seconds_how_fast_it_is_and_how_long_it_will_take(clock: Clock) -> None:
    *steps, end = epoch(clock, TrainingState(phase="refit", epoch=3), seconds=1.5)
    assert [record["step"] for record in steps] == [2, 4, 6, 8, 10, 12]
    assert [record["seconds_left"] for record in steps] == [15.0, 12.0, 9.0, 6.0, 3.0, 0.0]
    assert {record["tokens_per_second"] for record in [*steps, end]} == {50 / 1.5}
    assert [record["loss"] for record in steps] == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    assert end == {
        "event": "epoch end",
        "phase": "refit",
        "epoch": 3,
        "step": 12,
        "steps": 12,
        "loss": 6.5,
        "tokens_per_second": 50 / 1.5,
        "seconds_left": 0.0,
    }


def test_an_epoch_that_is_resumed_is_as_fast_as_what_is_done_now(clock: Clock) -> None:
    """The steps of an earlier process took none of this one's time; their losses count in the mean."""
    standing = TrainingState(phase="refit", step=6, losses=21.0, tokens=300, flops=42.0)
    first, *_, end = epoch(clock, standing)
    assert (first["step"], first["seconds_left"], first["tokens_per_second"]) == (9, 3.0, 50.0)
    assert end["loss"] == 6.5
    assert (standing.tokens, standing.flops, standing.losses) == (600, 84.0, 78.0)


def test_the_first_of_several_ranks_tells_of_all(clock: Clock) -> None:
    first, *_, end = epoch(clock, TrainingState(), rank=0, ranks=4)
    assert (first["step"], first["tokens_per_second"], first["seconds_left"]) == (3, 200.0, 9.0)
    assert (first["loss"], end["loss"]) == (8.0, 26.0)
    assert epoch(clock, TrainingState(), rank=1, ranks=4) == []


def test_at_its_end_an_epoch_is_as_fast_as_all_ranks_were(clock: Clock) -> None:
    """A rank with more files reads more events than the others."""

    class WithAnother(OneOf):
        def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
            return lambda: values + torch.tensor([0.0, 100.0], dtype=torch.float64)

    told: Records = []
    running = Meter(WithAnother(0, 2), told.append, TrainingState(), 1)
    clock.now += 4
    running.add(1.0, 300, 0.0)
    running.finish()
    step, end = told
    assert (step["tokens_per_second"], end["tokens_per_second"]) == (150.0, 100.0)


def test_the_loss_of_a_step_is_the_mean_of_the_last_fifty(clock: Clock) -> None:
    told: Records = []
    running = Meter(OneOf(0, 1), told.append, TrainingState(), 61)
    for number in range(60):
        running.add(float(number), 1, 0.0)
    clock.now += 3
    running.add(60.0, 1, 0.0)
    assert [record["loss"] for record in told] == [sum(range(11, 61)) / 50]
