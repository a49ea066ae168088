"""One training step on blocks in memory, for benchmarks of the computation alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lam_spark.model.transformer import LargeActionModel, ModelSize, Normaliser
from lam_spark.training.losses import Period, loss_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, unfold

_ANY_TIME = Period(0, 1 << 62, ("train", "validation"))


def stack_blocks(layout: Layout, blocks: Sequence[Block]) -> Block:
    """Blocks as one batch, as the loader yields it."""
    return unfold(layout, {name: np.stack([block[name] for block in blocks]) for name in blocks[0]})


def untrained_model(layout: Layout, size: ModelSize) -> LargeActionModel:
    """Model with the same random weights on every call; zero-initialised parameters are perturbed."""
    torch.manual_seed(0)
    normaliser = Normaliser.neutral(layout, tuple(np.linspace(0, 4, 9).tolist()))
    model = LargeActionModel(layout, size, normaliser)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def step_loss(
    model: LargeActionModel, batch: dict[str, torch.Tensor], bfloat16: bool = False
) -> torch.Tensor:
    """The loss of a fine-tuning step: mean over next timestamp groups plus mean over each target's labels."""
    with torch.autocast(batch["window"].device.type, torch.bfloat16, enabled=bfloat16):
        loss = loss_of(model, batch, _ANY_TIME, with_next=True, with_targets=True)
    targets = (loss.target_sums / loss.target_counts.clamp_min(1)).sum()
    return loss.next_sum / loss.next_count.clamp_min(1) + targets
