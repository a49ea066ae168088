"""Optimiser, learning-rate schedule, seeds and precision of a training step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lam_spark.config import TrainingConfig
from lam_spark.model.transformer import LargeActionModel
from lam_spark.training.phases import Phase

# The learning rate is multiplied by (micro-batches per step) ** exponent.
_SCALING_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def create_optimiser(model: LargeActionModel, phase: Phase, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that the phase's losses reach; weight decay acts on matrices only."""
    parameters = model.parameters_with_gradient(next_groups=phase.next_weight > 0, targets=phase.with_targets)
    # Norm scales and biases hold scales and base rates; decaying them does not simplify the model.
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in parameters if weight.ndim > 1]},
        {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,  # saves about a tenth of a small model's step
    )


def learning_rate_scale(settings: TrainingConfig, world_size: int) -> float:
    """Factor of the learning rates for the number of micro-batches in a step of all processes."""
    micro_batches = world_size * settings.gradient_accumulation_steps
    return float(micro_batches ** _SCALING_EXPONENTS[settings.learning_rate_scaling])


def learning_rate_factor(step: int, total: int) -> float:
    """Share of the highest learning rate at a step (from 0) of `total`: linear warm-up, then half a cosine to 5 %."""
    warmup = max(1, min(100, total // 10))
    return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * step / total)))


def step_seed(seed: int, rank: int, phase: str, epoch: int, step: int) -> int:
    """Seed of one step of one process, so that a resumed training drops out the same units."""
    entropy = [seed, rank, *phase.encode(), epoch, step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def autocast(device: torch.device, settings: TrainingConfig) -> torch.autocast:
    """Context for a forward pass: with `bfloat16`, matrix products are bfloat16; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
