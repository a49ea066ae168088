"""A causal transformer over customers' events, with query events that ask what follows.

Shapes: B blocks, T event slots, Q query slots, S = T + Q, F fields, D width, A aggregates, H half-lives and R rows of
decayed_counts, V values of an answer; in attention H heads of width E.

- An event is the sum of its fields' embeddings, projections of its values' fixed vectors (where a field has them) and
  of its numbers (standardised and by quantile bins, missing and zero apart), its hour of the week and the time since
  the moment before it.
- Several customers share a block: attention stays within a window and never looks ahead (`attention.py`).
- A query is an event that did not happen: it sees the history before it, nothing ever sees it. So one pass
  over a history answers any number of questions at any number of points in time.
- An answer is made of the sequence's summary, the aggregates of the full history (standardised and by quantile bins,
  as an event's numbers) and the decayed_counts (`decayed_counts.py`).
- Pre-norm RMSNorm, rotary positions, gated feed-forward, `scaled_dot_product_attention`.
- Events of one moment (the lines of a basket) have no order: what is predicted is the next *moment*, as a
  set, from the last event of the one before.
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

from lam_spark.model.attention import Attention, attention_of, positions, seen_events
from lam_spark.model.decayed_counts import DecayedCounts, counted_rows, field_rows
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training_data.layout import HOURS_OF_WEEK, MICROS_PER_DAY, Layout, Target

Batch = dict[str, Tensor]
_TIME_FEATURES = 8
_MOST_DEVIATIONS = 4.0
# DecayedCounts are many and alike: as they are, a step of the optimiser would move an answer by all of them at once.
_COUNT_SCALE = 0.25


@dataclass(frozen=True)
class ModelSize:
    """Width D, layers, heads (D a multiple of 2 x heads), dropout, bins of numbers (or 0)."""

    d_model: int
    n_layers: int
    n_heads: int
    dropout: float
    numeric_bins: int = 8


@dataclass(frozen=True)
class Normaliser:
    """Means and deviations that inputs are standardised by, from training data only.

    Attributes:
        numeric_mean, numeric_std: of each numeric field's signed log, (F,).
        numeric_edges: of the same, the quantiles that bound its bins, ascending: at most one more than there are bins.
        aggregate_mean, aggregate_std: of each aggregate, (A,).
        aggregate_edges: the quantiles that bound each aggregate's bins, as `numeric_edges`.
    """

    numeric_mean: tuple[float, ...]
    numeric_std: tuple[float, ...]
    numeric_edges: tuple[tuple[float, ...], ...]
    aggregate_mean: tuple[float, ...]
    aggregate_std: tuple[float, ...]
    aggregate_edges: tuple[tuple[float, ...], ...]

    @classmethod
    def neutral(cls, layout: Layout, edges: tuple[float, ...] = ()) -> Self:
        """One that changes nothing; the same bins for every number and aggregate, or none."""
        numbers, summaries = len(layout.numeric), len(layout.aggregate_names)
        of_numbers, of_summaries = [((0.0,) * count, (1.0,) * count) for count in (numbers, summaries)]
        return cls(*of_numbers, (edges,) * numbers, *of_summaries, (edges,) * summaries)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        tupled: dict[str, Any] = {key: tuple(value) for key, value in values.items()}
        for key in ("numeric_edges", "aggregate_edges"):
            tupled[key] = tuple(tuple(edges) for edges in values[key])
        return cls(**tupled)


@dataclass(frozen=True)
class Predictions:
    """What one pass gives.

    Attributes:
        event_hidden_BTD: after each event.
        query_hidden_BQD: at each query.
        answers: target -> (B, Q) logit of `binary`; (B, Q, 3) of `value`: logit of more than nothing, mean and log
            deviation of the log of how much; (B, Q, V) of `next`: a logit a value.
    """

    event_hidden_BTD: Tensor
    query_hidden_BQD: Tensor
    answers: dict[str, Tensor]


class LargeActionModel(nn.Module):
    """Events and queries in, hidden states and answers out.

    Args:
        layout: fields and shapes.
        size: of the transformer.
        normaliser: constants, kept as buffers.

    Attributes:
        activation_checkpointing: in training, keep a layer's input only and compute the layer again for its gradient.
        usual_amount: of each `value` target, the geometric mean of what is more than nothing, which training measures
            errors in.
    """

    def __init__(self, layout: Layout, size: ModelSize, normaliser: Normaliser) -> None:
        super().__init__()
        self.layout, self.size, self.normaliser = layout, size, normaliser
        self.activation_checkpointing = False
        self.usual_amount = {target.name: 1.0 for target in layout.targets if target.kind == "value"}
        width = size.d_model
        offsets = [0]
        for rows in layout.sizes:
            offsets.append(offsets[-1] + rows)
        self.field_offsets: Tensor
        self.register_buffer("field_offsets", torch.tensor(offsets[:-1]), persistent=False)
        # One table for all categorical fields: one gather and one sum an event.
        self.embedding = nn.EmbeddingBag(offsets[-1], width, mode="sum")
        # Given, not learned: what a value looks, sounds or reads like. The same projection serves the rare ones.
        self.value_embeddings = nn.ModuleDict(
            {entry(name): _ValueEmbeddings(ids, inner) for name, (ids, inner) in layout.vectors.items()}
        )
        self.value_projection = nn.ModuleDict(
            {entry(name): nn.Linear(inner, width, bias=False) for name, (_, inner) in layout.vectors.items()}
        )
        self.hour_embedding = nn.Embedding(HOURS_OF_WEEK, width)
        self.number_projection = nn.Linear(number_features(layout, size), width)
        self.is_query = nn.Parameter(torch.zeros(width))
        self.input_norm = nn.RMSNorm(width)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.n_layers))
        self.output_norm = nn.RMSNorm(width)
        self.next_value = nn.ModuleDict(
            {
                entry(name): nn.Linear(width, rows)
                for name, rows in zip(layout.categorical, layout.sizes, strict=True)
            }
        )
        self.next_number = nn.Linear(width, len(layout.numeric))
        self.next_days = nn.Linear(width, 2)  # mean and log deviation of the log of days
        self.decayed_counts = DecayedCounts(layout)
        self.answers = nn.ModuleDict(
            {entry(target.name): _TargetHead(target, layout, size) for target in layout.targets}
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
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
                nn.init.normal_(module.weight, std=0.1)
        for module in self.modules():
            if isinstance(module, _Block):  # each layer starts as the identity
                nn.init.zeros_(module.attention_out.weight)
                nn.init.zeros_(module.feed_out.weight)
            elif isinstance(module, _TargetHead):
                nn.init.zeros_(module.wide.weight)
                nn.init.zeros_(module.last.weight)
            elif isinstance(module, _OwnCount):
                nn.init.zeros_(module.by_sequence.weight)

    def initialise_targets(self, constants: dict[str, Tensor]) -> None:
        """Let each target's untrained answer be a constant, (outputs,)."""
        with torch.no_grad():
            for name, constant in constants.items():
                self.answers[entry(name)].get_parameter("wide.bias").copy_(constant)
                if name in self.usual_amount:
                    self.usual_amount[name] = math.exp(float(constant[1]))

    def set_value_embeddings(self, vectors: dict[str, Tensor]) -> None:
        """Set the fixed vectors of every field that has them, (ids, width) each; a value without one has zeros."""
        for name in self.layout.vectors:
            self.value_embeddings[entry(name)].get_buffer("table").copy_(vectors[name])

    def parameters_with_gradient(self, next_groups: bool, answers: bool) -> list[nn.Parameter]:
        """The parameters that such losses reach; heads that nobody asks are not to be decayed either."""
        idle: list[nn.Module] = [] if answers else [self.answers]
        if not next_groups:
            idle += [self.next_value, self.next_number, self.next_days]
        out_of_reach = {id(parameter) for module in idle for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in out_of_reach]

    def forward(self, batch: Batch, with_targets: bool = True) -> Predictions:
        """Read a batch of blocks (columns of `Layout.columns`, as tensors); without answers where nobody asks."""
        events = self._events(batch)
        queries = self._queries(batch)
        x_BSD = self.input_norm(torch.cat([events, queries], dim=1))
        seen_BQT = seen_events(batch)
        attend = attention_of(batch, seen_BQT)
        rotation = _rotation(positions(batch), self.size.d_model // self.size.n_heads)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x_BSD = checkpoint(block, x_BSD, attend, rotation, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, attend, rotation)
        x_BSD = self.output_norm(x_BSD)
        slots = self.layout.block_events
        hidden_BQD = x_BSD[:, slots:]
        if not with_targets:
            return Predictions(x_BSD[:, :slots], hidden_BQD, {})
        counts_BQHR = self.decayed_counts(batch, seen_BQT)
        answers = self.predict_targets(hidden_BQD, batch["aggregates"], counts_BQHR)
        return Predictions(x_BSD[:, :slots], hidden_BQD, answers)

    def predict_targets(
        self, hidden_BQD: Tensor, aggregates_BQA: Tensor, counts_BQHR: Tensor
    ) -> dict[str, Tensor]:
        """Target -> answers (`Predictions.answers`), from what is known at each query."""
        summary_BQA = standardise(aggregates_BQA, self.aggregate_mean, self.aggregate_std)
        bins_BQN = self.aggregate_bins(aggregates_BQA).flatten(2)
        known = [hidden_BQD, summary_BQA, bins_BQN, _COUNT_SCALE * counts_BQHR.flatten(2)]
        known_BQK = torch.cat(known, dim=-1)  # one for all targets
        return {
            target.name: self.answers[entry(target.name)](known_BQK, summary_BQA, counts_BQHR)
            for target in self.layout.targets
        }

    def _events(self, batch: Batch) -> Tensor:
        time = batch["event_time"]
        elapsed = torch.zeros_like(time)
        same = batch["window"][:, 1:] == batch["window"][:, :-1]
        elapsed[:, 1:] = (time[:, 1:] - time[:, :-1]) * same
        return self._vectors(batch, "event_", batch["hour_of_week"], elapsed)

    def _queries(self, batch: Batch) -> Tensor:
        """Queries as events: their elapsed time is since the last event that they see."""
        index = batch["query_index"].long()
        before = (index - 1).clamp_min(0)
        window = batch["window"].gather(1, before)
        since = batch["query_time"] - batch["event_time"].gather(1, before)
        known = (index > 0) & (window == batch["query_window"])
        vectors = self._vectors(batch, "query_", batch["query_hour_of_week"], since * known)
        return vectors + self.is_query

    def _vectors(self, batch: Batch, prefix: str, hour: Tensor, elapsed: Tensor) -> Tensor:
        rows, slots = hour.shape
        ids = torch.stack([batch[prefix + name] for name in self.layout.categorical], dim=-1)
        ids = ids.long() + self.field_offsets
        x: Tensor = self.embedding(ids.view(-1, ids.shape[-1])).view(rows, slots, -1)
        x = x + self.hour_embedding(hour.long())
        for name in self.layout.vectors:
            known = self.value_embeddings[entry(name)](batch[prefix + name].long())
            x = x + self.value_projection[entry(name)](known)
        features = [_time_features(elapsed)]
        if self.layout.numeric:
            numbers = torch.stack([batch[prefix + name] for name in self.layout.numeric], dim=-1)
            missing = numbers.isnan()
            logs = signed_log(numbers)
            standard = standardise(logs, self.numeric_mean, self.numeric_std)
            features += [torch.where(missing, 0.0, standard), missing.float(), (numbers == 0).float()]
            features.append(torch.where(missing[..., None], 0.0, self.numeric_bins(logs)).flatten(-2))
        x = x + self.number_projection(torch.cat(features, dim=-1))
        return x


class _Bins(nn.Module):
    """How far numbers reach into each of their bins: 1 below a number's own, 0 above.

    By Gorishniy et al. (2022, arXiv 2203.05556). Where equal quantiles leave fewer bins, the rest starts where no
    number reaches.
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
    """A table of given vectors, a row a token id; it travels with the weights and is not trained."""

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.zeros(ids, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class _Block(nn.Module):
    """Pre-norm attention and gated feed-forward."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        width, inner = size.d_model, inner_width(size.d_model)
        self.heads, self.dropout = size.n_heads, size.dropout
        self.attention_norm = nn.RMSNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.RMSNorm(width)
        self.feed_in = nn.Linear(width, 2 * inner, bias=False)
        self.feed_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BSD: Tensor, attend: Attention, rotation: tuple[Tensor, Tensor]) -> Tensor:
        rows, slots, _ = x_BSD.shape
        qkv = self.attention_in(self.attention_norm(x_BSD)).view(rows, slots, 3, self.heads, -1)
        query, key, value = qkv.unbind(2)
        mixed = attend(_rotate(query, *rotation), _rotate(key, *rotation), value)
        mixed = self.attention_out(mixed.flatten(2))
        x_BSD = x_BSD + F.dropout(mixed, self.dropout, self.training)
        gate, content = self.feed_in(self.feed_norm(x_BSD)).chunk(2, dim=-1)
        fed = self.feed_out(F.silu(gate) * content)
        return x_BSD + F.dropout(fed, self.dropout, self.training)


class _TargetHead(nn.Module):
    """Fuses what the sequence says with the summary aggregates and the decayed_counts.

    A small network reads all three. What is linear in the aggregates is added, as is, in an answer of `next`, each
    value's own decayed count.
    """

    def __init__(self, target: Target, layout: Layout, size: ModelSize) -> None:
        super().__init__()
        self.target, width = target, size.d_model
        self.wide = nn.Linear(len(layout.aggregate_names), target.outputs)
        self.first = nn.Linear(target_features(layout, size), width)
        self.dropout = nn.Dropout(size.dropout)
        self.last = nn.Linear(width, target.outputs)
        self.own_count = _OwnCount(target, layout, size) if target.kind == "next" else None

    def forward(self, known_BQK: Tensor, summary_BQA: Tensor, counts_BQHR: Tensor) -> Tensor:
        inner_BQD = self.dropout(F.silu(self.first(known_BQK)))
        answer: Tensor = self.wide(summary_BQA) + self.last(inner_BQD)
        if self.own_count is not None:
            answer = answer + self.own_count(inner_BQD, counts_BQHR)
        return answer.squeeze(-1) if self.target.kind == "binary" else answer


class _OwnCount(nn.Module):
    """What each value's own decayed count adds to its answer: how much it counts is for the value and the sequence to say."""

    def __init__(self, target: Target, layout: Layout, size: ModelSize) -> None:
        super().__init__()
        first = field_rows(layout)[target.field].start + FIRST_VALUE
        self.values = slice(first, first + target.values)
        self.by_sequence = nn.Linear(size.d_model, len(layout.half_life_days))
        self.by_value_HV = nn.Parameter(torch.zeros(len(layout.half_life_days), target.values))

    def forward(self, inner_BQD: Tensor, counts_BQHR: Tensor) -> Tensor:
        weight_BQHV = self.by_sequence(inner_BQD)[..., None] + self.by_value_HV
        added: Tensor = (weight_BQHV * counts_BQHR[..., self.values]).sum(dim=-2)
        return added


def signed_log(values: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return values.sign() * values.abs().log1p()


def standardise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Deviations from the mean, cut at `_MOST_DEVIATIONS`: beyond what training saw there is nothing to trust."""
    deviations = (values - mean) / std
    # What is not finite is a defect upstream: it becomes NaN here, so that the loss shows it, and is not cut.
    return deviations.clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS) + 0 * deviations


def entry(name: str) -> str:
    """The key of a field or target in a ModuleDict, where plain names such as `items` or `type` are taken."""
    return f"of_{name}"


def number_features(layout: Layout, size: ModelSize) -> int:
    """How many numbers of an event are projected into its vector."""
    return (3 + size.numeric_bins) * len(layout.numeric) + _TIME_FEATURES


def target_features(layout: Layout, size: ModelSize) -> int:
    """K: how many numbers an answer reads: of the sequence, the aggregates and their bins, and the decayed_counts."""
    summaries = (1 + size.numeric_bins) * len(layout.aggregate_names)
    return size.d_model + summaries + len(layout.half_life_days) * counted_rows(layout)


def _time_features(elapsed: Tensor) -> Tensor:
    """(…) microseconds -> (…, 8): log of minutes and days, and a coarse periodic encoding of the log."""
    days = elapsed.double() / MICROS_PER_DAY
    log_days = days.clamp_min(0).log1p().float()
    log_minutes = (days * 1440).clamp_min(0).log1p().float() / 8
    phases = [wave(log_minutes * 2**k) for k in range(3) for wave in (torch.sin, torch.cos)]
    return torch.stack([log_days, log_minutes, *phases], dim=-1)


def _rotation(position_BS: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Of rotary positions (RoFormer, arXiv 2104.09864), what `_rotate` multiplies by, (B, S, 1, E) each."""
    speed = 1000.0 ** (-torch.arange(0, width, 2, device=position_BS.device) / width)
    angle = position_BS[:, :, None, None] * speed
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotate(x_BSHE: Tensor, by_itself: Tensor, by_the_other: Tensor) -> Tensor:
    """Each half, times the cosines, and the other half, times the sines."""
    left, right = x_BSHE.chunk(2, dim=-1)
    return torch.addcmul(x_BSHE * by_itself, torch.cat([right, left], dim=-1), by_the_other)


def inner_width(width: int) -> int:
    """Gated feed-forward: two thirds of four times the width, in multiples of 16."""
    return 16 * math.ceil(width * 8 / 3 / 16)
