"""Progress records of a training: loss, events a second and seconds left, for the log and MLflow.

The first process writes each record as one JSON line. Keys by `event`:

| event | keys | written |
| --- | --- | --- |
| `step`, `epoch end` | phase, epoch, step, steps, loss, tokens_per_second, seconds_left | every 2 s; after an epoch |
| `epoch` | phase, epoch, tokens and the validation metrics (`validation loss`, `validation AUC`, ...) | after
validation |
| `resumed` | phase, epoch, step, seconds | when a checkpoint was loaded |
| `checkpoint failed` | phase, error | when a checkpoint could not be written |
| `checkpoint damaged` | file | when a checkpoint was not loaded |
| `done` | digest, summary (`TrainingSummary.to_json`) | last |
"""

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
    """Progress of one epoch in one process; the first process reports.

    Args:
        group: the process group.
        progress: receives the records.
        state: updated after each step.
        steps: steps of the epoch.
    """

    def __init__(self, group: ProcessGroup, progress: Progress, state: TrainingState, steps: int) -> None:
        self.group, self.progress, self.state, self.steps = group, progress, state, steps
        self._started = self._reported = time.monotonic()
        self._first_step, self._tokens = state.step, 0
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)

    def add(self, loss: float, tokens: int, flops: float) -> None:
        """Record a step: this process's share of the loss, the events in its batch, and the FLOPs."""
        self.state.step += 1
        self.state.loss_sum += loss
        self.state.tokens += tokens
        self.state.flops += flops
        self._tokens += tokens
        self._recent.append(loss)
        if self.group.rank == 0 and time.monotonic() - self._reported > _SECONDS_BETWEEN_REPORTS:
            # An estimate that needs no communication: all processes are taken to have equal shares.
            loss = sum(self._recent) / len(self._recent)
            self._report("step", loss * self.group.size, self._tokens * self.group.size)

    def finish(self) -> None:
        """Report the epoch's mean loss and its events, summed over all processes."""
        local = torch.tensor([self.state.loss_sum, self._tokens], dtype=torch.float64)
        loss_sum, tokens = self.group.sum(local).tolist()
        if self.group.rank == 0:
            self._report("epoch end", loss_sum / max(1, self.steps), tokens)

    def _report(self, event: str, loss: float, tokens: float) -> None:
        self._reported = time.monotonic()
        elapsed = max(1e-9, self._reported - self._started)
        step = self.state.step
        self.progress(
            {
                "event": event,
                "phase": self.state.phase,
                "epoch": self.state.epoch,
                "step": step,
                "steps": self.steps,
                "loss": loss,
                "tokens_per_second": tokens / elapsed,
                "seconds_left": elapsed / max(1, step - self._first_step) * (self.steps - step),
            }
        )
