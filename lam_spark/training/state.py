"""How far a training is: what a checkpoint holds beside the tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class TrainingState:
    """Plain values; all ranks agree but on their own `tokens`, `flops` and `losses`.

    Attributes:
        phase: the pass that is under way; empty before the first.
        epoch: the one that is under way, from 1.
        step: steps of the epoch that are done.
        tokens: events that this rank has trained on.
        flops: of this rank's forward and backward passes over them (`plan.block_flops`).
        losses: sum over the epoch's steps of this rank's part of the loss.
        seconds: that earlier processes spent on this training.
        chosen: the fine-tuning epoch with the best validation loss so far.
        best: that loss: of all targets, by weight, beyond the best constant answers.
        calibration: target -> slope and intercept for that epoch.
        validation: what else was measured for it.
    """

    phase: str = ""
    epoch: int = 1
    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    losses: float = 0.0
    seconds: float = 0.0
    chosen: int = 0
    best: float = math.inf
    calibration: dict[str, tuple[float, float]] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)

    def enter(self, phase: str) -> None:
        """Begin a pass."""
        self.phase = phase
        self.begin_epoch(1)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing of the epoch is done yet."""
        self.epoch, self.step, self.losses = epoch, 0, 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        calibration = {target: (slope, add) for target, (slope, add) in values["calibration"].items()}
        return cls(**{**values, "calibration": calibration})
