"""Estimated cost of a training: parameters, FLOPs, GPU-hours, memory and money. No Spark.

FLOPs are those of matrix products (a multiply-add counts as two). A backward pass costs twice the forward pass: once
for the gradients of inputs, once for those of weights. Attention is counted dense, as it is computed. All other work
is part of the utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lam_spark.model.decayed_counts import num_counters
from lam_spark.model.transformer import (
    LargeActionModel,
    ModelSize,
    Normaliser,
    event_number_dim,
    feed_forward_dim,
    target_feature_dim,
)
from lam_spark.training_data.layout import Layout

# GPU-hours of the reference system, a large telecom operator's.
REFERENCE_GPU_HOURS = 145
# Share of a GPU's bfloat16 peak. An H100 reached 23 % with d_model 768 and 32 blocks per step; numeric bins and
# decayed counts cost 12 % of that (benchmarks/RESULTS.md). An A100 is assumed to reach the same.
UTILISATION = 0.20
_BACKWARD = 2
# float32: weight, gradient, AdamW's two moments and the weight average; with several processes also the flat gradients
# and their sum.
_BYTES_PER_PARAMETER = 20
_BYTES_TO_SUM = 8
# Activations kept for the backward pass, bytes per slot, layer and d_model; measured 45 and 52 (bfloat16, compiled).
_BYTES_PER_ACTIVATION = 50
# float32 logits of every field's values and of `next` targets, with their inputs.
_BYTES_PER_LOGIT = 12


@dataclass(frozen=True)
class Accelerator:
    """A GPU model.

    Attributes:
        flops: peak FLOP/s, dense bfloat16, as its maker states.
        memory_gib: memory of one GPU, GiB.
        dollars: price of one GPU-hour, on demand, a large cloud's list price of 2025. Your price will differ.
    """

    name: str
    flops: float
    memory_gib: int
    dollars: float


ACCELERATORS = (
    Accelerator("A100-40GB", 312e12, 40, 4.10),
    Accelerator("H100-80GB", 989e12, 80, 6.88),
)


@dataclass(frozen=True)
class Recipe:
    """Named size of a model and its training. Larger sizes are for more data, which is read fewer times.

    Attributes:
        size: size of the model.
        context_events: events per block.
        pretrain_epochs, finetune_epochs: epochs.
        micro_batch_size: blocks per GPU and step.
    """

    size: ModelSize
    context_events: int
    pretrain_epochs: int
    finetune_epochs: int
    micro_batch_size: int


# Any other size is set in the configuration: `model.d_model`, `training.pretrain_epochs` and so on.
RECIPES = {
    "small": Recipe(ModelSize(d_model=64, n_layers=2, n_heads=4, dropout=0.1), 512, 2, 4, 32),
    "medium": Recipe(ModelSize(d_model=512, n_layers=8, n_heads=8, dropout=0.1), 512, 1, 2, 32),
    "large": Recipe(ModelSize(d_model=768, n_layers=4, n_heads=12, dropout=0.1), 512, 1, 1, 32),
    "xlarge": Recipe(ModelSize(d_model=1024, n_layers=24, n_heads=16, dropout=0.1), 512, 1, 1, 32),
    "1b": Recipe(ModelSize(d_model=1536, n_layers=36, n_heads=24, dropout=0.1), 512, 1, 1, 16),
}


@dataclass(frozen=True)
class Passes:
    """Number of blocks, and how often they are computed.

    Attributes:
        all_blocks: blocks of pre-training, each computed `pretrain_epochs` times.
        queried_blocks: blocks of fine-tuning and of the refit, each computed at most `finetune_epochs` times.
        pretrain_epochs, finetune_epochs: epochs.
        validation_blocks: most blocks of either kind that one validation reads; validation runs before the first epoch
            and after each.
    """

    all_blocks: int
    queried_blocks: int
    pretrain_epochs: int
    finetune_epochs: int
    validation_blocks: int

    @property
    def pretraining(self) -> int:
        """Block passes of pre-training."""
        return self.all_blocks * self.pretrain_epochs

    @property
    def fine_tuning(self) -> int:
        """Block passes of fine-tuning and refit, at most: early stopping makes them fewer."""
        return 2 * self.queried_blocks * self.finetune_epochs

    @property
    def validating_next(self) -> int:
        """Forward passes without targets, at most: blocks without events in the validation period are skipped."""
        return min(self.validation_blocks, self.all_blocks) * (self.pretrain_epochs + 1)

    @property
    def validating_targets(self) -> int:
        """Forward passes with targets, at most: blocks without queries in the validation period are skipped."""
        return min(self.validation_blocks, self.queried_blocks) * (self.finetune_epochs + 1)


@dataclass(frozen=True)
class Requirement:
    """Requirements of a training on one GPU model.

    Attributes:
        accelerator: the GPU model.
        gpu_hours: hours of all GPUs together.
        memory_gib: memory per GPU for a step of `micro_batch_size` blocks, GiB.
        dollars: price of `gpu_hours`.
    """

    accelerator: Accelerator
    gpu_hours: float
    memory_gib: float
    dollars: float


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a training.

    Attributes:
        parameters: parameters of the model.
        tokens: events over all passes, with full blocks.
        slots: events and query slots over all passes; both cost the same.
        flops: FLOPs of all passes, validation included.
        requirements: one per GPU model.
    """

    parameters: int
    tokens: int
    slots: int
    flops: float
    requirements: tuple[Requirement, ...]


def meta_model(layout: Layout, size: ModelSize) -> LargeActionModel:
    """Model without memory for its weights (torch's device `meta`)."""
    with torch.device("meta"):
        return LargeActionModel(layout, size, Normaliser.neutral(layout))


def block_flops(layout: Layout, size: ModelSize, with_targets: bool = True) -> float:
    """FLOPs of training on one block, forward and backward; recomputed activations are not counted."""
    flops = (1 + _BACKWARD) * forward_flops(layout, size, with_targets)
    if not with_targets:
        return flops
    # Decayed counts and aggregates are inputs without gradients.
    outputs = sum(target.outputs for target in layout.targets)
    into_aggregates = 2.0 * layout.queries_per_block * len(layout.aggregate_names) * outputs
    return flops - _BACKWARD * _decayed_count_flops(layout) - into_aggregates


def forward_flops(layout: Layout, size: ModelSize, with_targets: bool = True) -> float:
    """FLOPs of one block's forward pass.

    An upper bound: it takes each event as a timestamp group with a next one, and attention over all pairs of slots.
    """
    width, events, queries = size.d_model, layout.block_events, layout.queries_per_block
    slots = events + queries
    products = 4 * width * width + 3 * width * feed_forward_dim(width)
    layer = 2 * slots * products + 4 * slots * slots * width
    inputs = 2 * slots * (event_number_dim(layout, size) + sum(layout.value_embedding_dims)) * width
    next_groups = 2 * events * width * (sum(layout.sizes) + len(layout.numeric) + 2)
    if not with_targets:
        return float(size.n_layers * layer + inputs + next_groups)
    aggregates = len(layout.aggregate_names)
    inner = target_feature_dim(layout, size) * width
    target_heads = sum(inner + (width + aggregates) * target.outputs for target in layout.targets)
    target_heads += sum(
        width * len(layout.half_life_days) for target in layout.targets if target.kind == "next"
    )
    return float(
        size.n_layers * layer
        + inputs
        + next_groups
        + 2 * queries * target_heads
        + _decayed_count_flops(layout)
    )


def _decayed_count_flops(layout: Layout) -> float:
    """FLOPs of the decayed counts of a block's queries."""
    counted = len(layout.half_life_days) * layout.block_events * num_counters(layout)
    return 2.0 * layout.queries_per_block * counted


def plan(
    layout: Layout,
    size: ModelSize,
    passes: Passes,
    micro_batch_size: int,
    utilisation: float = UTILISATION,
    gpus: int = 1,
) -> Plan:
    """Estimate the cost of a training.

    Args:
        layout: fields and shapes of a block.
        size: size of the model.
        passes: number of blocks and passes.
        micro_batch_size: blocks per GPU and step.
        utilisation: share of a GPU's peak FLOP/s that is reached.
        gpus: number of GPUs that share the work.
    """
    parameters = sum(p.numel() for p in meta_model(layout, size).parameters())
    events, queries = layout.block_events, layout.queries_per_block
    flops = block_flops(layout, size, with_targets=False) * passes.pretraining
    flops += block_flops(layout, size) * passes.fine_tuning
    flops += forward_flops(layout, size, with_targets=False) * passes.validating_next
    flops += forward_flops(layout, size) * passes.validating_targets
    outputs = sum(target.outputs for target in layout.targets)
    activations = micro_batch_size * (
        (events + queries) * size.n_layers * size.d_model * _BYTES_PER_ACTIVATION
        + (events * sum(layout.sizes) + queries * outputs) * _BYTES_PER_LOGIT
    )
    parameter_bytes = _BYTES_PER_PARAMETER + (_BYTES_TO_SUM if gpus > 1 else 0)
    memory = (parameters * parameter_bytes + activations) / 2**30
    requirements = []
    for accelerator in ACCELERATORS:
        hours = flops / (accelerator.flops * utilisation) / 3600
        requirements.append(Requirement(accelerator, hours, memory, hours * accelerator.dollars))
    blocks = passes.pretraining + passes.fine_tuning
    return Plan(parameters, blocks * events, blocks * (events + queries), flops, tuple(requirements))


def estimated_passes(
    layout: Layout,
    customers: int,
    events: int,
    queries: int,
    pretrain_epochs: int,
    finetune_epochs: int,
    validation_blocks: int,
) -> Passes:
    """Passes over full blocks for customers with equal numbers of events and labelled queries.

    A history longer than a block is read in windows that overlap by half (`packing`), so each window but the first adds
    half a block of new events.

    Args:
        layout: fields and shapes of a block.
        customers: number of customers.
        events: events per customer.
        queries: labelled queries per customer.
        pretrain_epochs, finetune_epochs, validation_blocks: as in `Passes`.
    """
    length = layout.block_events
    windows = 1 if events <= length else 1 + -(-(events - length) // (length // 2))
    slots = events if windows == 1 else windows * length
    for_events = -(-customers * slots // length)
    for_queries = -(-customers * queries // layout.queries_per_block)
    blocks = max(for_events, for_queries)
    return Passes(blocks, blocks if queries else 0, pretrain_epochs, finetune_epochs, validation_blocks)
