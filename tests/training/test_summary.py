"""Summary of a training as JSON."""

from __future__ import annotations

import dataclasses
import json

from lam_spark.training.summary import TrainingSummary

ON_CPU = TrainingSummary(
    parameters=100,
    tokens=7,
    flops=2e9,
    world_size=2,
    seconds=12.5,
    gpu_seconds=None,
    core_seconds=25.0,
    best_epoch=3,
    seed=1,
    validation={"loss": 0.5, "AUC": 0.75, "items macro AUC": 0.625},
)
ON_GPU = dataclasses.replace(ON_CPU, gpu_seconds=25.0, core_seconds=None)


def test_a_summary_is_read_from_its_json() -> None:
    for summary in (ON_CPU, ON_GPU):
        assert TrainingSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    assert "gpu_seconds" not in ON_CPU.to_json()
    assert "core_seconds" not in ON_GPU.to_json()


def test_costs_are_the_numbers_for_mlflow() -> None:
    numbers = {"seconds": 12.5, "tokens": 7.0, "flops": 2e9, "parameters": 100.0}
    assert ON_CPU.costs() == numbers | {"core_seconds": 25.0}
    assert ON_GPU.costs() == numbers | {"gpu_seconds": 25.0}
