"""What is learned: the next moment of every window, and the answers to the queries.

Shapes: B blocks, T event slots, Q query slots, K targets, N moments that have a next one, M events in next moments.

Losses are sums with their counts, so that ranks and batches of any size add up to the same gradient as one
process over everything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lam_spark.model.attention import window_begins
from lam_spark.model.transformer import Batch, LargeActionModel, Predictions, entry, signed_log, standardise
from lam_spark.model.value import median_error, value_loss
from lam_spark.training_data.layout import MICROS_PER_DAY, SPLIT_IDS, Target

# Padding-like scale of time: a moment less than a minute after the last is as good as at once.
_MINUTE_IN_DAYS = 1 / 1440


@dataclass(frozen=True)
class Loss:
    """Sums over what was asked, and how much that was.

    Attributes:
        next_sum: over moments, the mean loss of a next moment's fields, numbers and time (nats).
        next_count: moments that have a next one.
        target_sums: (K,) a target, over its labelled queries (nats).
        target_counts: (K,) labelled queries a target.
    """

    next_sum: Tensor
    next_count: Tensor
    target_sums: Tensor
    target_counts: Tensor


@dataclass(frozen=True)
class Period:
    """Which part of the data a pass may learn from or is judged on.

    Attributes:
        start, end: next moments in [start, end), microseconds UTC.
        splits: names of the queries' splits.
    """

    start: int
    end: int
    splits: Collection[str]


def loss_of(
    model: LargeActionModel, batch: Batch, period: Period, with_next: bool, with_targets: bool
) -> Loss:
    """One forward pass and its losses."""
    return losses(model, batch, model(batch, with_targets), period, with_next, with_targets)


def losses(
    model: LargeActionModel,
    batch: Batch,
    predictions: Predictions,
    period: Period,
    with_next: bool,
    with_targets: bool,
) -> Loss:
    """The losses of a forward pass; a part that is not asked for costs nothing and is zero."""
    zero = predictions.event_hidden_BTD.new_zeros(())
    next_sum, next_count = next_group_loss(model, batch, predictions, period) if with_next else (zero, zero)
    none = zero.new_zeros(len(model.layout.targets))
    target_sums, target_counts = (
        target_loss(model, batch, predictions, period) if with_targets else (none, none)
    )
    return Loss(next_sum, next_count, target_sums, target_counts)


def loss_counts(batch: Batch, period: Period, targets: Sequence[Target], with_targets: bool) -> Tensor:
    """(1 + K,) float, on the host: moments that have a next one, and labelled queries a target.

    What a batch has to teach is known from the data alone, before the model is asked.
    """
    group_source, counted = next_groups(batch, period)
    allowed = in_splits(batch, period.splits) & with_targets
    moments = torch.unique(group_source[counted]).numel()
    asked = [int(_asked(target, batch, allowed).sum()) for target in targets]
    return torch.tensor([float(moments), *asked])


def next_group_loss(
    model: LargeActionModel, batch: Batch, predictions: Predictions, period: Period
) -> tuple[Tensor, Tensor]:
    """Predict the set of events of the next moment from the last event of the moment before.

    Each event of a moment of k weighs 1 / k: with k = 1 this is the next-event cross-entropy.

    Returns:
        Sum over moments and number of moments.
    """
    group_source, counted = next_groups(batch, period)
    if not bool(counted.any()):
        hidden = predictions.event_hidden_BTD
        return hidden.sum() * 0, hidden.new_zeros(())
    source_M = group_source[counted]
    sources_N, row_M, size_N = torch.unique(source_M, return_inverse=True, return_counts=True)
    weight_M = 1.0 / size_N[row_M]
    hidden_ND = predictions.event_hidden_BTD.flatten(0, 1)[sources_N]
    layout = model.layout
    total = hidden_ND.new_zeros(())
    for name in layout.categorical:
        log_p_NV = F.log_softmax(model.next_value[entry(name)](hidden_ND), dim=-1)
        happened_M = batch[f"event_{name}"].flatten()[counted].long()
        total = total - (log_p_NV[row_M, happened_M] * weight_M).sum() / len(layout.categorical)
    time = batch["event_time"].flatten()
    first_M = time[counted]
    days_M = (first_M - time[source_M]).double() / MICROS_PER_DAY
    mean_N, log_std_N = model.next_days(hidden_ND).unbind(-1)
    log_std_N = log_std_N.clamp(-3, 3)
    surprise_M = ((days_M + _MINUTE_IN_DAYS).log().float() - mean_N[row_M]) / log_std_N[row_M].exp()
    total = total + ((0.5 * surprise_M.square() + log_std_N[row_M]) * weight_M).sum() * 0.1
    if layout.numeric:
        numbers_MF = torch.stack([batch[f"event_{name}"].flatten()[counted] for name in layout.numeric], -1)
        known_MF = ~numbers_MF.isnan()
        logs_MF = signed_log(torch.where(known_MF, numbers_MF, 0.0))
        wanted_MF = standardise(logs_MF, model.numeric_mean, model.numeric_std)
        missed_MF = F.smooth_l1_loss(model.next_number(hidden_ND)[row_M], wanted_MF, reduction="none")
        total = total + ((missed_MF * known_MF).sum(-1) * weight_M).sum() / len(layout.numeric)
    return total, torch.tensor(float(len(sources_N)), device=total.device)


def next_groups(batch: Batch, period: Period) -> tuple[Tensor, Tensor]:
    """Where each event is predicted from.

    Returns:
        (B * T,) flat slot of the last event of the moment before (garbage where not counted), and (B * T,)
        bool, True for events that count: in a moment with one before it, new here, and in the period.
    """
    window, time = batch["window"], batch["event_time"]
    rows, slots = window.shape
    order = torch.arange(slots, device=window.device).expand(rows, -1)
    starts = window_begins(window)
    starts[:, 1:] |= time[:, 1:] != time[:, :-1]
    first = torch.where(starts, order, 0).cummax(dim=1).values
    source = first - 1
    same = (source >= 0) & (window.gather(1, source.clamp_min(0)) == window)
    counted = same & (window > 0) & (batch["is_new"] > 0) & (time >= period.start) & (time < period.end)
    base = torch.arange(rows, device=window.device)[:, None] * slots
    return (source.clamp_min(0) + base).flatten(), counted.flatten()


def target_loss(
    model: LargeActionModel, batch: Batch, predictions: Predictions, period: Period
) -> tuple[Tensor, Tensor]:
    """Losses of the labelled queries of the period's splits: (K,) sums and counts a target.

    `binary`: cross-entropy; `value`: likelihood of how much, and how far the median is off in usual amounts; `next`:
    mean cross-entropy of the values asked for.
    """
    allowed = in_splits(batch, period.splits)
    sums, counts = [], []
    for target in model.layout.targets:
        answers, labels = labelled_predictions(target, batch, predictions, allowed)
        if target.kind == "value":
            missed = median_error(answers, labels) / model.usual_amount[target.name]
            losses = value_loss(answers, labels) + missed
        else:
            losses = F.binary_cross_entropy_with_logits(answers, labels, reduction="none")
        # The zero keeps a batch without such a query a part of the graph.
        sums.append(losses.sum() / target.values + answers.sum() * 0)
        counts.append(torch.tensor(float(len(labels)), device=labels.device))
    return torch.stack(sums), torch.stack(counts)


def labelled_predictions(
    target: Target, batch: Batch, predictions: Predictions, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Answers, (n,) or (n, outputs) float32, and labels, (n,) or (n, values), of the queries that ask this.

    Args:
        target: which question.
        batch: with its labels.
        predictions: of the batch.
        allowed: (B, Q) bool, queries that may be looked at.
    """
    asked = _asked(target, batch, allowed)
    return predictions.answers[target.name][asked].float(), batch[f"label_{target.name}"][asked]


def _asked(target: Target, batch: Batch, allowed: Tensor) -> Tensor:
    """(B, Q) bool: the allowed queries that ask this."""
    label = batch[f"label_{target.name}"]
    return allowed & ~(label.isnan().any(dim=-1) if target.kind == "next" else label.isnan())


def in_splits(batch: Batch, splits: Collection[str]) -> Tensor:
    """(B, Q) bool: queries of these splits."""
    numbers = torch.tensor([SPLIT_IDS[name] for name in splits], device=batch["query_split"].device)
    return torch.isin(batch["query_split"], numbers)
