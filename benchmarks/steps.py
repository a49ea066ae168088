"""One training step on blocks in memory, for the benchmarks that look at the computing alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lam_spark.model.transformer import LargeActionModel, ModelSize, Normaliser
from lam_spark.training.losses import Period, loss_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, unfold

_EVER = Period(0, 1 << 62, ("train", "validation"))


def stacked(layout: Layout, made: Sequence[Block]) -> Block:
    """The blocks as the loader gives them."""
    return unfold(layout, {name: np.stack([block[name] for block in made]) for name in made[0]})


def untrained(layout: Layout, size: ModelSize) -> LargeActionModel:
    """Always the same weights; what starts as the identity is made to count."""
    torch.manual_seed(0)
    constants = Normaliser.neutral(layout, tuple(np.linspace(0, 4, 9).tolist()))
    model = LargeActionModel(layout, size, constants)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def loss(model: LargeActionModel, batch: dict[str, torch.Tensor], half: bool = False) -> torch.Tensor:
    """What a fine-tuning step minimises."""
    with torch.autocast(batch["window"].device.type, torch.bfloat16, enabled=half):
        part = loss_of(model, batch, _EVER, with_next=True, with_targets=True)
    answered = (part.target_sums / part.target_counts.clamp_min(1)).sum()
    return part.next_sum / part.next_count.clamp_min(1) + answered
