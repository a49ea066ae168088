"""Training curves and the cost of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from lam_spark.training.summary import CurvePoint


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
