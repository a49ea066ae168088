"""A causal transformer over customers' events, with query slots that predict what follows.

Shapes: B blocks, T event slots, Q query slots, S = T + Q, F fields, D d_model, A aggregates, N bins, H half-lives,
R counters of decayed counts, V values of a `next` target, K features of a target head; in attention E head dimension.

Design:

- An event vector is the sum of the embeddings of its categorical fields, the projected value embeddings, its numbers,
  its hour of the week, the time since the previous event and its delay: how long after it happened it became known.
- Numbers are standardised and encoded by quantile bins; missing and zero have indicators of their own.
- Several customers share a block. Attention stays within a window and is causal (`attention.py`).
- A query is a hypothetical event: it attends to the events before it, and no other slot attends to it. One forward
  pass predicts any number of queries at any points in time.
- A target head reads the query's hidden state, the aggregates of the history, and the decayed counts.
- Blocks: pre-norm RMSNorm, rotary positions, gated feed-forward, `scaled_dot_product_attention`.
- Events are in the order of `known_at`. Those of one instant (the lines of a basket) form a timestamp group without
  order, whose last event predicts the next group as a set.
- Initialisation is in one place: `LargeActionModel._initialise`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lam_spark.model.attention import (
    Attention,
    apply_rotary,
    positions,
    query_event_mask,
    rotary_factors,
    select_attention,
)
from lam_spark.model.decayed_counts import DecayedCounts, counter_slices, num_counters
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training_data.layout import HOURS_OF_WEEK, MICROS_PER_DAY, Layout, Target

Batch = dict[str, Tensor]
_TIME_FEATURES = 8
_MAX_DEVIATIONS = 4.0
# Decayed counts are many and correlated: unscaled, one optimiser step would add up their changes of a logit.
_COUNT_SCALE = 0.25


@dataclass(frozen=True)
class ModelSize:
    """Size of the transformer.

    Attributes:
        d_model: dimension D of the hidden states; a multiple of 2 * n_heads.
        n_layers: number of transformer blocks.
        n_heads: attention heads.
        dropout: probability, in transformer blocks and target heads.
        numeric_bins: quantile bins N of each number; 0 for none.
    """

    d_model: int
    n_layers: int
    n_heads: int
    dropout: float
    numeric_bins: int = 8


@dataclass(frozen=True)
class Normaliser:
    """Means, standard deviations and bin edges of the inputs, computed from training data only.

    Attributes:
        numeric_mean, numeric_std: of the signed log of each numeric field, (F,).
        numeric_edges: of the same, ascending quantiles that bound its bins: at most one more than there are bins.
        aggregate_mean, aggregate_std: of each aggregate, (A,).
        aggregate_edges: quantiles that bound the bins of each aggregate, as `numeric_edges`.
    """

    numeric_mean: tuple[float, ...]
    numeric_std: tuple[float, ...]
    numeric_edges: tuple[tuple[float, ...], ...]
    aggregate_mean: tuple[float, ...]
    aggregate_std: tuple[float, ...]
    aggregate_edges: tuple[tuple[float, ...], ...]

    @classmethod
    def neutral(cls, layout: Layout, edges: tuple[float, ...] = ()) -> Self:
        """Return the identity: mean 0, standard deviation 1, and the same bin edges (or none) for every input."""
        sizes = (len(layout.numeric), len(layout.aggregate_names))
        numeric, aggregate = (((0.0,) * n, (1.0,) * n, (edges,) * n) for n in sizes)
        return cls(*numeric, *aggregate)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        fields: dict[str, Any] = {key: tuple(value) for key, value in values.items()}
        edges = {key: tuple(map(tuple, values[key])) for key in ("numeric_edges", "aggregate_edges")}
        return cls(**fields | edges)


@dataclass(frozen=True)
class Predictions:
    """Output of one forward pass.

    Attributes:
        event_hidden_BTD: hidden state of each event.
        query_hidden_BQD: hidden state of each query.
        targets: target name -> prediction. `binary`: logit, (B, Q). `value`: logit of a positive amount, mean and log
            standard deviation of the log amount, (B, Q, 3). `next`: one logit per value, (B, Q, V).
    """

    event_hidden_BTD: Tensor
    query_hidden_BQD: Tensor
    targets: dict[str, Tensor]


class LargeActionModel(nn.Module):
    """Computes hidden states and target predictions from events and queries.

    Args:
        layout: fields and shapes.
        size: dimensions of the transformer.
        normaliser: statistics of the inputs, stored as buffers.

    Attributes:
        activation_checkpointing: in training, store only the input of each block and recompute it in the backward pass.
        typical_amount: `value` target -> geometric mean of its positive amounts, the unit of its error in training.
    """

    def __init__(self, layout: Layout, size: ModelSize, normaliser: Normaliser) -> None:
        super().__init__()
        self.layout, self.size, self.normaliser = layout, size, normaliser
        self.activation_checkpointing = False
        self.typical_amount = {target.name: 1.0 for target in layout.targets if target.kind == "value"}
        d_model = size.d_model
        offsets = [0, *itertools.accumulate(layout.sizes)]
        self.field_offsets: Tensor
        self.register_buffer("field_offsets", torch.tensor(offsets[:-1]), persistent=False)
        # One table for all categorical fields: one gather and one sum per event.
        self.embedding = nn.EmbeddingBag(offsets[-1], d_model, mode="sum")
        # Pre-computed embeddings (text, image, audio) are fixed; their shared projection also serves rare values.
        shapes = layout.value_embedding_shapes
        self.value_embeddings = nn.ModuleDict(
            {module_key(name): _ValueEmbeddings(ids, dim) for name, (ids, dim) in shapes.items()}
        )
        self.value_projection = nn.ModuleDict(
            {module_key(name): nn.Linear(dim, d_model, bias=False) for name, (_, dim) in shapes.items()}
        )
        self.hour_embedding = nn.Embedding(HOURS_OF_WEEK, d_model)
        self.number_projection = nn.Linear(event_number_dim(layout, size), d_model)
        self.is_query = nn.Parameter(torch.zeros(d_model))
        self.delay_weight = nn.Parameter(torch.zeros(d_model))
        self.input_norm = nn.RMSNorm(d_model)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.n_layers))
        self.output_norm = nn.RMSNorm(d_model)
        # Heads that predict the next timestamp group: values of each field, numbers, days until then.
        self.next_value = nn.ModuleDict(
            {module_key(name): nn.Linear(d_model, ids) for name, ids in layout.ids_in_use.items()}
        )
        self.next_number = nn.Linear(d_model, len(layout.numeric))
        self.next_days = nn.Linear(d_model, 2)  # mean and log standard deviation of the log of days
        self.decayed_counts = DecayedCounts(layout)
        self.target_heads = nn.ModuleDict(
            {module_key(target.name): _TargetHead(target, layout, size) for target in layout.targets}
        )
        self.numeric_mean: Tensor
        self.numeric_std: Tensor
        self.aggregate_mean: Tensor
        self.aggregate_std: Tensor
        for name in ("numeric_mean", "numeric_std", "aggregate_mean", "aggregate_std"):
            self.register_buffer(name, torch.tensor(getattr(normaliser, name)), persistent=False)
        self.numeric_bins = _Bins(normaliser.numeric_edges, size.numeric_bins)
        self.aggregate_bins = _Bins(normaliser.aggregate_edges, size.numeric_bins)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise weights: each block starts as the identity, and each target head predicts its bias.

        Parameters created as zeros (`is_query`, `delay_weight`, `value_weight_HV`) and norm scales keep their values.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
                nn.init.normal_(module.weight, std=0.1)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.attention_out.weight)
                nn.init.zeros_(module.feed_forward_out.weight)
            elif isinstance(module, _TargetHead):
                nn.init.zeros_(module.aggregate_linear.weight)
                nn.init.zeros_(module.output.weight)
            elif isinstance(module, _DecayedCountTerm):
                nn.init.zeros_(module.sequence_weight.weight)

    def initialise_targets(self, constants: dict[str, Tensor]) -> None:
        """Set the prediction of each untrained target head to a constant, (outputs,)."""
        with torch.no_grad():
            for name, constant in constants.items():
                head = self.target_heads[module_key(name)]
                head.get_parameter("aggregate_linear.bias").copy_(constant)
                if name in self.typical_amount:
                    self.typical_amount[name] = math.exp(float(constant[1]))

    def set_value_embeddings(self, vectors: dict[str, Tensor]) -> None:
        """Set the value embeddings of every field that has them, (ids, dim) each; zeros for a value without one."""
        for name in self.layout.value_embedding_shapes:
            self.value_embeddings[module_key(name)].get_buffer("table").copy_(vectors[name])

    def parameters_with_gradient(self, next_groups: bool, targets: bool) -> list[nn.Parameter]:
        """Return the parameters that these losses reach; weight decay must not act on unused heads."""
        unused: list[nn.Module] = [] if targets else [self.target_heads]
        if not next_groups:
            unused += [self.next_value, self.next_number, self.next_days]
        excluded = {id(parameter) for module in unused for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in excluded]

    def forward(self, batch: Batch, with_targets: bool = True) -> Predictions:
        """Run the model.

        Args:
            batch: columns of `Layout.columns` for B blocks, as tensors.
            with_targets: False skips the target heads; `Predictions.targets` is then empty.
        """
        events_BTD = self._embed_events(batch)
        queries_BQD = self._embed_queries(batch)
        x_BSD = self.input_norm(torch.cat([events_BTD, queries_BQD], dim=1))
        visible_BQT = query_event_mask(batch)
        attention = select_attention(batch, visible_BQT)
        rotation = rotary_factors(positions(batch), self.size.d_model // self.size.n_heads)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x_BSD = checkpoint(block, x_BSD, attention, rotation, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, attention, rotation)
        x_BSD = self.output_norm(x_BSD)
        hidden_BTD, hidden_BQD = x_BSD[:, : self.layout.block_events], x_BSD[:, self.layout.block_events :]
        if not with_targets:
            return Predictions(hidden_BTD, hidden_BQD, {})
        counts_BQHR = self.decayed_counts(batch, visible_BQT)
        targets = self.predict_targets(hidden_BQD, batch["aggregates"], counts_BQHR)
        return Predictions(hidden_BTD, hidden_BQD, targets)

    def predict_targets(
        self, hidden_BQD: Tensor, aggregates_BQA: Tensor, counts_BQHR: Tensor
    ) -> dict[str, Tensor]:
        """Return `Predictions.targets` from each query's hidden state, aggregates and decayed counts."""
        standard_BQA = standardise(aggregates_BQA, self.aggregate_mean, self.aggregate_std)
        bins_BQAN = self.aggregate_bins(aggregates_BQA)
        features = [hidden_BQD, standard_BQA, bins_BQAN.flatten(2), _COUNT_SCALE * counts_BQHR.flatten(2)]
        features_BQK = torch.cat(features, dim=-1)  # shared by all targets
        return {
            target.name: self.target_heads[module_key(target.name)](features_BQK, standard_BQA, counts_BQHR)
            for target in self.layout.targets
        }

    def _embed_events(self, batch: Batch) -> Tensor:
        """(B, T, D) event vectors."""
        time = batch["known_at"]
        elapsed = torch.zeros_like(time)
        same_window = batch["window"][:, 1:] == batch["window"][:, :-1]
        elapsed[:, 1:] = (time[:, 1:] - time[:, :-1]) * same_window
        delay_BTD = batch["log_delay_hours"][..., None] * self.delay_weight
        return self._embed(batch, "event_", batch["hour_of_week"], elapsed) + delay_BTD

    def _embed_queries(self, batch: Batch) -> Tensor:
        """(B, Q, D) query vectors: those of events, with the time elapsed since the last visible event."""
        index = batch["query_index"].long()
        previous = (index - 1).clamp_min(0)
        previous_window = batch["window"].gather(1, previous)
        elapsed = batch["query_time"] - batch["known_at"].gather(1, previous)
        has_previous = (index > 0) & (previous_window == batch["query_window"])
        x_BQD = self._embed(batch, "query_", batch["query_hour_of_week"], elapsed * has_previous)
        return x_BQD + self.is_query

    def _embed(self, batch: Batch, prefix: str, hour: Tensor, elapsed: Tensor) -> Tensor:
        """(B, slots, D): the sum of all inputs of each event or query; `elapsed` in microseconds."""
        n_blocks, n_slots = hour.shape
        ids = torch.stack([batch[prefix + name] for name in self.layout.categorical], dim=-1)
        ids = ids.long() + self.field_offsets
        x: Tensor = self.embedding(ids.view(-1, ids.shape[-1])).view(n_blocks, n_slots, -1)
        x = x + self.hour_embedding(hour.long())
        for name in self.layout.value_embedding_shapes:
            vectors = self.value_embeddings[module_key(name)](batch[prefix + name].long())
            x = x + self.value_projection[module_key(name)](vectors)
        features = [_time_features(elapsed)]
        if self.layout.numeric:
            numbers = torch.stack([batch[prefix + name] for name in self.layout.numeric], dim=-1)
            is_missing = numbers.isnan()
            logs = signed_log(numbers)
            standard = standardise(logs, self.numeric_mean, self.numeric_std)
            bins = torch.where(is_missing[..., None], 0.0, self.numeric_bins(logs))
            features += [torch.where(is_missing, 0.0, standard), is_missing.float(), (numbers == 0).float()]
            features.append(bins.flatten(-2))
        embedded: Tensor = x + self.number_projection(torch.cat(features, dim=-1))
        return embedded


class _Bins(nn.Module):
    """Piecewise linear encoding of numbers (Gorishniy et al. 2022, arXiv 2203.05556).

    A bin's feature is 1 above the bin, 0 below it and linear inside. Where equal quantiles leave fewer bins, the
    remaining ones start above any number and stay 0.
    """

    def __init__(self, edges: tuple[tuple[float, ...], ...], bins: int) -> None:
        super().__init__()
        starts, widths = torch.full((len(edges), bins), 1e9), torch.ones(len(edges), bins)
        for row, bounds in enumerate(edges):
            for column, (low, high) in enumerate(itertools.pairwise(bounds)):
                starts[row, column], widths[row, column] = low, high - low
        self.start_FN: Tensor
        self.width_FN: Tensor
        self.register_buffer("start_FN", starts, persistent=False)
        self.register_buffer("width_FN", widths, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., F) -> (..., F, N) in [0, 1]."""
        return ((numbers[..., None] - self.start_FN) / self.width_FN).clamp(0, 1)


class _ValueEmbeddings(nn.Module):
    """A fixed table of value embeddings, one row per token id; saved with the weights, not trained."""

    def __init__(self, ids: int, dim: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.zeros(ids, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class _Block(nn.Module):
    """Transformer block: pre-norm attention and gated feed-forward."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        d_model, inner = size.d_model, feed_forward_dim(size.d_model)
        self.n_heads, self.dropout = size.n_heads, size.dropout
        self.attention_norm = nn.RMSNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward_norm = nn.RMSNorm(d_model)
        self.feed_forward_in = nn.Linear(d_model, 2 * inner, bias=False)
        self.feed_forward_out = nn.Linear(inner, d_model, bias=False)

    def forward(self, x_BSD: Tensor, attention: Attention, rotation: tuple[Tensor, Tensor]) -> Tensor:
        n_blocks, n_slots, _ = x_BSD.shape
        qkv = self.qkv(self.attention_norm(x_BSD)).view(n_blocks, n_slots, 3, self.n_heads, -1)
        query_BSHE, key_BSHE, value_BSHE = qkv.unbind(2)
        output_BSHE = attention(
            apply_rotary(query_BSHE, *rotation), apply_rotary(key_BSHE, *rotation), value_BSHE
        )
        attended_BSD = self.attention_out(output_BSHE.flatten(2))
        x_BSD = x_BSD + F.dropout(attended_BSD, self.dropout, self.training)
        gate, content = self.feed_forward_in(self.feed_forward_norm(x_BSD)).chunk(2, dim=-1)
        transformed_BSD = self.feed_forward_out(F.silu(gate) * content)
        return x_BSD + F.dropout(transformed_BSD, self.dropout, self.training)


class _TargetHead(nn.Module):
    """Predicts one target from the hidden state, the aggregates and the decayed counts of a query.

    An MLP reads all three. A linear term of the aggregates is added to it and, for a `next` target, a term of each
    value's own decayed counts.
    """

    def __init__(self, target: Target, layout: Layout, size: ModelSize) -> None:
        super().__init__()
        self.target = target
        self.aggregate_linear = nn.Linear(len(layout.aggregate_names), target.outputs)
        self.hidden = nn.Linear(target_feature_dim(layout, size), size.d_model)
        self.dropout = nn.Dropout(size.dropout)
        self.output = nn.Linear(size.d_model, target.outputs)
        self.count_term = _DecayedCountTerm(target, layout, size) if target.kind == "next" else None

    def forward(self, features_BQK: Tensor, standard_BQA: Tensor, counts_BQHR: Tensor) -> Tensor:
        hidden_BQD = self.dropout(F.silu(self.hidden(features_BQK)))
        prediction: Tensor = self.aggregate_linear(standard_BQA) + self.output(hidden_BQD)
        if self.count_term is not None:
            prediction = prediction + self.count_term(hidden_BQD, counts_BQHR)
        return prediction.squeeze(-1) if self.target.kind == "binary" else prediction


class _DecayedCountTerm(nn.Module):
    """Adds each value's own decayed counts to its logit, weighted by the value and by the query's hidden state."""

    def __init__(self, target: Target, layout: Layout, size: ModelSize) -> None:
        super().__init__()
        first = counter_slices(layout)[target.field].start + FIRST_VALUE
        self.counters = slice(first, first + target.values)
        self.sequence_weight = nn.Linear(size.d_model, len(layout.half_life_days))
        self.value_weight_HV = nn.Parameter(torch.zeros(len(layout.half_life_days), target.values))

    def forward(self, hidden_BQD: Tensor, counts_BQHR: Tensor) -> Tensor:
        weight_BQHV = self.sequence_weight(hidden_BQD)[..., None] + self.value_weight_HV
        logits_BQV: Tensor = (weight_BQHV * counts_BQHR[..., self.counters]).sum(dim=-2)
        return logits_BQV


def signed_log(values: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return values.sign() * values.abs().log1p()


def standardise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return deviations from the mean, clipped because the model cannot extrapolate beyond its training data."""
    deviations = (values - mean) / std
    # Non-finite input becomes NaN and shows in the loss: an upstream defect must not be clipped away.
    return deviations.clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS) + 0 * deviations


def module_key(name: str) -> str:
    """Return the ModuleDict key of a field or target; plain names such as `items` or `type` are attributes of it."""
    return f"of_{name}"


def event_number_dim(layout: Layout, size: ModelSize) -> int:
    """Return the number of numeric features that are projected into an event vector."""
    return (3 + size.numeric_bins) * len(layout.numeric) + _TIME_FEATURES


def target_feature_dim(layout: Layout, size: ModelSize) -> int:
    """K: features of a target head: hidden state, aggregates with their bins, and decayed counts."""
    aggregates = (1 + size.numeric_bins) * len(layout.aggregate_names)
    return size.d_model + aggregates + len(layout.half_life_days) * num_counters(layout)


def feed_forward_dim(d_model: int) -> int:
    """Return the inner dimension of the gated feed-forward: 8/3 of d_model, rounded up to a multiple of 16."""
    return 16 * math.ceil(d_model * 8 / 3 / 16)


def _time_features(elapsed: Tensor) -> Tensor:
    """(…) microseconds -> (…, 8): log of minutes and days, and a coarse periodic encoding of the log."""
    days = elapsed.double() / MICROS_PER_DAY
    log_days = days.clamp_min(0).log1p().float()
    log_minutes = (days * 1440).clamp_min(0).log1p().float() / 8
    phases = [wave(log_minutes * 2**k) for k in range(3) for wave in (torch.sin, torch.cos)]
    return torch.stack([log_days, log_minutes, *phases], dim=-1)
