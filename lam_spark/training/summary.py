"""Result of a finished training, as the model card, the progress file, MLflow and the report show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

# Numbers that MLflow gets as metrics of the run.
_COSTS = ("seconds", "core_seconds", "gpu_seconds", "tokens", "flops", "parameters")

PhaseName = Literal["pre-training", "fine-tuning", "refit"]
CurveMetric = Literal["loss", "validation loss", "validation AUC"]


@dataclass(frozen=True)
class CurvePoint:
    """One measurement of a training curve.

    Attributes:
        phase: phase of training.
        epoch: passes over the training data in this phase so far; may be fractional.
        metric: what was measured.
        value: nats for losses, a fraction for AUC.
    """

    phase: PhaseName
    epoch: float
    metric: CurveMetric
    value: float


@dataclass(frozen=True)
class TrainingSummary:
    """Size, cost and validation metrics of a training. Costs are sums over all processes.

    Attributes:
        parameters: parameters of the model.
        tokens: events that were trained on, once for each time they were read.
        flops: FLOPs of the forward and backward passes, validation included.
        world_size: number of processes.
        seconds: wall-clock seconds, of all runs if the training was resumed.
        gpu_seconds: seconds times GPUs; None on CPUs.
        core_seconds: seconds times CPU threads; None on GPUs.
        best_epoch: fine-tuning epoch with the best validation loss, which the refit repeated.
        seed: random seed.
        validation: name -> metric of the best epoch. The scored target's metrics have plain names (`loss`, `AUC`),
            those of other targets begin with the target (`items macro AUC`).
    """

    parameters: int
    tokens: int
    flops: float
    world_size: int
    seconds: float
    gpu_seconds: float | None
    core_seconds: float | None
    best_epoch: int
    seed: int
    validation: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """JSON values; fields that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{"gpu_seconds": None, "core_seconds": None, **values})

    def costs(self) -> dict[str, float]:
        """Name -> cost of the training, without values that are None."""
        values = self.to_json()
        return {name: float(values[name]) for name in _COSTS if name in values}
