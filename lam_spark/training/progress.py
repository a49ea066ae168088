"""How an epoch goes, for people and MLflow: loss, events a second, seconds left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from lam_spark.training.process_group import ProcessGroup
from lam_spark.training.state import TrainingState

Progress = Callable[[dict[str, Any]], None]
_SECONDS_BETWEEN_REPORTS = 2.0
_RECENT_STEPS = 50


class Meter:
    """Of one epoch of one rank; the first rank tells.

    Args:
        world: the ranks.
        progress: takes the records.
        standing: is kept up to date with each step.
        steps: of the epoch.
    """

    def __init__(self, world: ProcessGroup, progress: Progress, standing: TrainingState, steps: int) -> None:
        self.world, self.progress, self.standing, self.steps = world, progress, standing, steps
        self._started = self._reported = time.monotonic()
        self._first_step, self._tokens = standing.step, 0
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)

    def add(self, loss: float, tokens: int, flops: float) -> None:
        """After each step: this rank's part of the loss, the events in its batch, and what computing it took."""
        self.standing.step += 1
        self.standing.losses += loss
        self.standing.tokens += tokens
        self.standing.flops += flops
        self._tokens += tokens
        self._recent.append(loss)
        if self.world.rank == 0 and time.monotonic() - self._reported > _SECONDS_BETWEEN_REPORTS:
            # As if all ranks had as many: what they have, they say at the end.
            loss = sum(self._recent) / len(self._recent)
            self._tell("step", loss * self.world.size, self._tokens * self.world.size)

    def finish(self) -> None:
        """Tell the epoch's mean loss, and its events, over all ranks."""
        own = torch.tensor([self.standing.losses, self._tokens], dtype=torch.float64)
        losses, tokens = self.world.sum(own).tolist()
        if self.world.rank == 0:
            self._tell("epoch end", losses / max(1, self.steps), tokens)

    def _tell(self, event: str, loss: float, tokens: float) -> None:
        self._reported = time.monotonic()
        elapsed = max(1e-9, self._reported - self._started)
        done = self.standing.step
        self.progress(
            {
                "event": event,
                "phase": self.standing.phase,
                "epoch": self.standing.epoch,
                "step": done,
                "steps": self.steps,
                "loss": loss,
                "tokens_per_second": tokens / elapsed,
                "seconds_left": elapsed / max(1, done - self._first_step) * (self.steps - done),
            }
        )
