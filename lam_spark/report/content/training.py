"""Training curves and the cost of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["pre-training", "fine-tuning", "refit"]
"""A phase of training; the report draws the phases in this order."""

Measure = Literal["loss", "validation loss", "validation AUC"]
"""What a training curve shows: losses in nats, AUC as a fraction."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One measurement during training.

    Attributes:
        phase: Phase of training.
        epoch: Passes over the training data in this phase so far; may be fractional.
        name: What was measured.
        value: Nats for losses, a fraction for AUC.
    """

    phase: Phase
    epoch: float
    name: Measure
    value: float


@dataclass(frozen=True, slots=True)
class Training:
    """How the model was trained.

    Attributes:
        curves: Measurements, in any order.
        facts: Formatted (label, value) pairs, e.g. parameters, tokens, seconds, number of processes.
    """

    curves: tuple[CurvePoint, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of one stage of the run.

    Attributes:
        stage: Name of the stage.
        seconds: Wall-clock seconds.
        peak_memory_gib: Peak resident memory in GiB, or None if it was not measured.
    """

    stage: str
    seconds: float
    peak_memory_gib: float | None = None
