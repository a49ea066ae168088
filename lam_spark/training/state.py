"""Training state: the part of a checkpoint that is not tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class TrainingState:
    """Position and results of a training. All processes agree on it, except on `tokens`, `flops` and `loss_sum`.

    Attributes:
        phase: name of the current phase; empty before the first.
        epoch: current epoch of the phase, from 1.
        step: finished steps of the epoch.
        tokens: events that this process has trained on.
        flops: FLOPs of this process, forward and backward passes (`cost.block_flops`).
        loss_sum: sum of this process's share of the loss over the epoch's steps.
        seconds: seconds that earlier processes spent on this training.
        best_epoch: fine-tuning epoch with the best validation loss so far; 0 before the first.
        best_loss: its weighted excess loss over all targets (`ValidationMetrics.excess`).
        calibration: target -> slope and intercept of that epoch.
        validation: validation metrics of that epoch by name.
    """

    phase: str = ""
    epoch: int = 1
    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    calibration: dict[str, tuple[float, float]] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self.phase = phase
        self.begin_epoch(1)

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self.step, self.loss_sum = epoch, 0, 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        calibration = {
            target: (slope, intercept) for target, (slope, intercept) in values["calibration"].items()
        }
        return cls(**{**values, "calibration": calibration})
