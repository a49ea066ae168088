"""Progress records of an epoch, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lam_spark.training import progress
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.progress import Meter
from lam_spark.training.state import TrainingState


class EqualGroup(LocalGroup):
    """One of several processes with equal values."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        return lambda: values * self.size


class Clock:
    """A clock that only the test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


Records = list[dict[str, Any]]


def epoch(
    clock: Clock, state: TrainingState, rank: int = 0, world_size: int = 1, seconds: float = 1.0
) -> Records:
    """Records of an epoch of twelve steps; step n has loss n and 50 events."""
    records: Records = []
    meter = Meter(EqualGroup(rank, world_size), records.append, state, 12)
    while state.step < 12:
        clock.now += seconds
        meter.add(float(state.step + 1), 50, 7.0)
    meter.finish()
    return records


def test_speed_and_remaining_time_are_reported_every_few_seconds(clock: Clock) -> None:
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


def test_the_speed_of_a_resumed_epoch_is_that_of_the_new_steps(clock: Clock) -> None:
    """Steps of an earlier process took no time of this one; their losses count in the mean."""
    state = TrainingState(phase="refit", step=6, loss_sum=21.0, tokens=300, flops=42.0)
    first, *_, end = epoch(clock, state)
    assert (first["step"], first["seconds_left"], first["tokens_per_second"]) == (9, 3.0, 50.0)
    assert end["loss"] == 6.5
    assert (state.tokens, state.flops, state.loss_sum) == (600, 84.0, 78.0)


def test_the_first_process_reports_for_all(clock: Clock) -> None:
    first, *_, end = epoch(clock, TrainingState(), rank=0, world_size=4)
    assert (first["step"], first["tokens_per_second"], first["seconds_left"]) == (3, 200.0, 9.0)
    assert (first["loss"], end["loss"]) == (8.0, 26.0)
    assert epoch(clock, TrainingState(), rank=1, world_size=4) == []


def test_the_speed_at_the_end_of_an_epoch_counts_the_events_of_all_processes(clock: Clock) -> None:
    """A process with more files reads more events than the others."""

    class UnequalGroup(EqualGroup):
        def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
            return lambda: values + torch.tensor([0.0, 100.0], dtype=torch.float64)

    records: Records = []
    meter = Meter(UnequalGroup(0, 2), records.append, TrainingState(), 1)
    clock.now += 4
    meter.add(1.0, 300, 0.0)
    meter.finish()
    step, end = records
    assert (step["tokens_per_second"], end["tokens_per_second"]) == (150.0, 100.0)


def test_the_loss_of_a_step_is_the_mean_of_the_last_fifty(clock: Clock) -> None:
    records: Records = []
    meter = Meter(EqualGroup(0, 1), records.append, TrainingState(), 61)
    for number in range(60):
        meter.add(float(number), 1, 0.0)
    clock.now += 3
    meter.add(60.0, 1, 0.0)
    assert [record["loss"] for record in records] == [sum(range(11, 61)) / 50]
