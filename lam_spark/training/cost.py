"""What a training would cost, on paper: parameters, FLOPs, GPU-hours, memory and money. No Spark.

FLOPs are those of the matrix products (a multiplication and an addition are two): what a forward pass costs, times
three, because the gradients of inputs and of weights cost as much each. The attention is counted dense, as it is
computed. Everything else takes time but no FLOPs worth counting; it is in the utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lam_spark.model.decayed_counts import counted_rows
from lam_spark.model.transformer import (
    LargeActionModel,
    ModelSize,
    Normaliser,
    inner_width,
    number_features,
    target_features,
)
from lam_spark.training_data.layout import Layout

# Of the system that this one follows: a large telecom operator's.
REFERENCE_GPU_HOURS = 145
# Of a GPU's bfloat16 peak: what a model 768 wide, of some 55 million parameters, reached on an H100, compiled, with 32
# blocks a step (230 of 989 TFLOP/s), less the 12 % that bins and decayed_counts have cost larger models since
# (docs/benchmarks.md). An A100 is taken to reach the same share of its own peak: it has more memory speed for its
# FLOPs.
UTILISATION = 0.20
_BACKWARD = 2
# Weight, gradient, AdamW's two moments and the weights' average, float32; and where there are several ranks, the
# gradients in one piece and their sum.
_BYTES_A_PARAMETER = 20
_BYTES_TO_SUM = 8
# Kept for the backward pass, per slot, layer and unit of width: measured at two sizes, bfloat16, compiled (45 and 52).
_BYTES_OF_ACTIVATION = 50
# Log-probabilities of every field's values and what they are made from, float32; likewise what `next` targets answer.
_BYTES_OF_LOGIT = 12


@dataclass(frozen=True)
class Accelerator:
    """A kind of GPU.

    Attributes:
        flops: bfloat16, dense, FLOP/s, as its maker says.
        memory_gib: of one.
        dollars: an hour of one, on demand, at a large cloud's list price of 2025. Yours will differ.
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
    """A size, the events of a block, and how often the data is read: the more there is of it, the fewer times.

    Attributes:
        micro_batch_size: blocks a GPU and step.
    """

    size: ModelSize
    context_events: int
    pretrain_epochs: int
    finetune_epochs: int
    micro_batch_size: int


# Named ones. A company's own is in its configuration: `model.d_model`, `training.pretrain_epochs` and so on.
RECIPES = {
    "small": Recipe(ModelSize(d_model=64, n_layers=2, n_heads=4, dropout=0.1), 512, 2, 4, 32),
    "medium": Recipe(ModelSize(d_model=512, n_layers=8, n_heads=8, dropout=0.1), 512, 1, 2, 32),
    "large": Recipe(ModelSize(d_model=768, n_layers=4, n_heads=12, dropout=0.1), 512, 1, 1, 32),
    "xlarge": Recipe(ModelSize(d_model=1024, n_layers=24, n_heads=16, dropout=0.1), 512, 1, 1, 32),
    "1b": Recipe(ModelSize(d_model=1536, n_layers=36, n_heads=24, dropout=0.1), 512, 1, 1, 16),
}


@dataclass(frozen=True)
class Passes:
    """How many blocks are computed, and how often.

    Attributes:
        all_blocks: in pre-training, each of `pretrain_epochs` times.
        queried_blocks: in fine-tuning and in the refit, each of `finetune_epochs` times at most.
        validation_blocks: of either, at most so many are judged by after each epoch, and once before the first.
    """

    all_blocks: int
    queried_blocks: int
    pretrain_epochs: int
    finetune_epochs: int
    validation_blocks: int

    @property
    def pretraining(self) -> int:
        """Blocks computed without answers."""
        return self.all_blocks * self.pretrain_epochs

    @property
    def answering(self) -> int:
        """Blocks computed with answers, at most: early stopping makes it fewer."""
        return 2 * self.queried_blocks * self.finetune_epochs

    @property
    def validating_next(self) -> int:
        """Blocks computed forward, without answers, at most: those without a late event are not."""
        return min(self.validation_blocks, self.all_blocks) * (self.pretrain_epochs + 1)

    @property
    def validating_targets(self) -> int:
        """Blocks computed forward, with answers, at most: those without a late question are not."""
        return min(self.validation_blocks, self.queried_blocks) * (self.finetune_epochs + 1)


@dataclass(frozen=True)
class Need:
    """What one kind of GPU needs for the training.

    Attributes:
        gpu_hours: in all, on however many.
        memory_gib: of each, for a step of `micro_batch_size`.
        dollars: for `gpu_hours`.
    """

    accelerator: Accelerator
    gpu_hours: float
    memory_gib: float
    dollars: float


@dataclass(frozen=True)
class Plan:
    """The cost of a training.

    Attributes:
        parameters: of the model.
        tokens: events learned from in all passes, blocks being full.
        slots: those and the places of queries, which are computed alike.
        flops: in all passes, those that judge included.
        needs: one a kind of GPU.
    """

    parameters: int
    tokens: int
    slots: int
    flops: float
    needs: tuple[Need, ...]


def model_on_paper(layout: Layout, size: ModelSize) -> LargeActionModel:
    """The model without memory for its weights (torch's device `meta`)."""
    with torch.device("meta"):
        return LargeActionModel(layout, size, Normaliser.neutral(layout))


def block_flops(layout: Layout, size: ModelSize, with_targets: bool = True) -> float:
    """FLOPs of learning from one block: forward and backward, what `activation_checkpointing` computes again not counted."""
    learned = (1 + _BACKWARD) * forward_flops(layout, size, with_targets)
    if not with_targets:
        return learned
    # DecayedCounts and aggregates are counted, not learned: nothing flows back into them.
    outputs = sum(target.outputs for target in layout.targets)
    into_aggregates = 2.0 * layout.queries_per_block * len(layout.aggregate_names) * outputs
    return learned - _BACKWARD * _decayed_count_flops(layout) - into_aggregates


def forward_flops(layout: Layout, size: ModelSize, with_targets: bool = True) -> float:
    """FLOPs of one block's forward pass, every event a moment with a next one and all pairs of slots in attention.

    An upper bound: moments may hold several events, and attention by history computes fewer pairs.
    """
    width, events, queries = size.d_model, layout.block_events, layout.queries_per_block
    slots = events + queries
    products = 4 * width * width + 3 * width * inner_width(width)
    layer = 2 * slots * products + 4 * slots * slots * width
    inputs = 2 * slots * (number_features(layout, size) + sum(layout.value_embedding_dims)) * width
    nexts = 2 * events * width * (sum(layout.sizes) + len(layout.numeric) + 2)
    if not with_targets:
        return float(size.n_layers * layer + inputs + nexts)
    summaries = len(layout.aggregate_names)
    inner = target_features(layout, size) * width
    answers = sum(inner + (width + summaries) * target.outputs for target in layout.targets)
    answers += sum(width * len(layout.half_life_days) for target in layout.targets if target.kind == "next")
    return float(
        size.n_layers * layer + inputs + nexts + 2 * queries * answers + _decayed_count_flops(layout)
    )


def _decayed_count_flops(layout: Layout) -> float:
    """Of counting them for each query of a block."""
    counted = len(layout.half_life_days) * layout.block_events * counted_rows(layout)
    return 2.0 * layout.queries_per_block * counted


def plan(
    layout: Layout,
    size: ModelSize,
    passes: Passes,
    micro_batch_size: int,
    utilisation: float = UTILISATION,
    gpus: int = 1,
) -> Plan:
    """What a training of this size over so many blocks costs.

    Args:
        layout: fields and shapes of a block.
        size: of the transformer.
        passes: how many blocks are computed.
        micro_batch_size: blocks a GPU and step.
        utilisation: share of a GPU's peak that is reached.
        gpus: that share the work.
    """
    parameters = sum(p.numel() for p in model_on_paper(layout, size).parameters())
    events, queries = layout.block_events, layout.queries_per_block
    flops = block_flops(layout, size, with_targets=False) * passes.pretraining
    flops += block_flops(layout, size) * passes.answering
    flops += forward_flops(layout, size, with_targets=False) * passes.validating_next
    flops += forward_flops(layout, size) * passes.validating_targets
    outputs = sum(target.outputs for target in layout.targets)
    activations = micro_batch_size * (
        (events + queries) * size.n_layers * size.d_model * _BYTES_OF_ACTIVATION
        + (events * sum(layout.sizes) + queries * outputs) * _BYTES_OF_LOGIT
    )
    bytes_held = _BYTES_A_PARAMETER + (_BYTES_TO_SUM if gpus > 1 else 0)
    memory = (parameters * bytes_held + activations) / 2**30
    needs = []
    for kind in ACCELERATORS:
        hours = flops / (kind.flops * utilisation) / 3600
        needs.append(Need(kind, hours, memory, hours * kind.dollars))
    blocks = passes.pretraining + passes.answering
    return Plan(parameters, blocks * events, blocks * (events + queries), flops, tuple(needs))


def imagined_passes(
    layout: Layout,
    customers: int,
    events: int,
    queries: int,
    pretrain_epochs: int,
    finetune_epochs: int,
    validation_blocks: int,
) -> Passes:
    """Passes over customers of so many events and labelled queries each, in blocks that are full.

    A history longer than a block is read in windows that overlap by half (`packing`): each window but the first then
    brings half a block of new events.
    """
    length = layout.block_events
    windows = 1 if events <= length else 1 + -(-(events - length) // (length // 2))
    slots = events if windows == 1 else windows * length
    by_events, by_queries = (
        -(-customers * slots // length),
        -(-customers * queries // layout.queries_per_block),
    )
    every = max(by_events, by_queries)
    queried = every if queries else 0
    return Passes(every, queried, pretrain_epochs, finetune_epochs, validation_blocks)
