"""Training losses: the next timestamp group of every window, and the targets of labelled queries.

Shapes: B blocks, T event slots, Q query slots, K targets, N timestamp groups that have a next one, M events in next
timestamp groups.

Losses are returned as sums and counts, so that any split into processes and batches gives the same total gradient as
one process with all data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lam_spark.model.attention import window_starts
from lam_spark.model.transformer import (
    Batch,
    LargeActionModel,
    Predictions,
    module_key,
    signed_log,
    standardise,
)
from lam_spark.model.value import median_error, value_loss
from lam_spark.training_data.layout import MICROS_PER_DAY, SPLIT_IDS, Target

# Added to gaps in time before the logarithm: a gap below a minute counts as none.
_MINUTE_IN_DAYS = 1 / 1440


@dataclass(frozen=True)
class Loss:
    """Sums and counts of the losses of one batch.

    Attributes:
        next_sum: sum over timestamp groups of the mean loss of the next group's fields, numbers and time (nats).
        next_count: number of timestamp groups that have a next one.
        target_sums: (K,) sums over the labelled queries (nats).
        target_counts: (K,) number of labelled queries.
    """

    next_sum: Tensor
    next_count: Tensor
    target_sums: Tensor
    target_counts: Tensor


@dataclass(frozen=True)
class Period:
    """Part of the data that a phase trains on or is validated on.

    Attributes:
        start, end: next timestamp groups known in [start, end), microseconds UTC.
        splits: names of the queries' splits.
    """

    start: int
    end: int
    splits: Collection[str]


def loss_of(
    model: LargeActionModel, batch: Batch, period: Period, with_next: bool, with_targets: bool
) -> Loss:
    """Run one forward pass and compute its losses."""
    return losses(model, batch, model(batch, with_targets), period, with_next, with_targets)


def losses(
    model: LargeActionModel,
    batch: Batch,
    predictions: Predictions,
    period: Period,
    with_next: bool,
    with_targets: bool,
) -> Loss:
    """Losses of a forward pass; a part that is switched off is zero and costs nothing."""
    zero = predictions.event_hidden_BTD.new_zeros(())
    next_sum, next_count = next_group_loss(model, batch, predictions, period) if with_next else (zero, zero)
    none = zero.new_zeros(len(model.layout.targets))
    target_sums, target_counts = (
        target_loss(model, batch, predictions, period) if with_targets else (none, none)
    )
    return Loss(next_sum, next_count, target_sums, target_counts)


def loss_counts(batch: Batch, period: Period, targets: Sequence[Target], with_targets: bool) -> Tensor:
    """(1 + K,) float32 on the CPU: `next_count` and `target_counts`, from the data alone, before the forward pass."""
    group_source, counted = next_groups(batch, period)
    allowed = in_splits(batch, period.splits) & with_targets
    groups = torch.unique(group_source[counted]).numel()
    labelled = [int(_labelled(target, batch, allowed).sum()) for target in targets]
    return torch.tensor([float(groups), *labelled])


def next_group_loss(
    model: LargeActionModel, batch: Batch, predictions: Predictions, period: Period
) -> tuple[Tensor, Tensor]:
    """Loss of predicting the events of the next timestamp group from the last event of the group before.

    Each event of a group of k events has weight 1 / k: with k = 1 this is the next-event cross-entropy.

    Returns:
        Sum over the timestamp groups, and their number.
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
        log_p_NV = F.log_softmax(model.next_value[module_key(name)](hidden_ND), dim=-1)
        label_M = batch[f"event_{name}"].flatten()[counted].long()
        total = total - (log_p_NV[row_M, label_M] * weight_M).sum() / len(layout.categorical)
    time = batch["known_at"].flatten()
    time_M = time[counted]
    days_M = (time_M - time[source_M]).double() / MICROS_PER_DAY
    mean_N, log_std_N = model.next_days(hidden_ND).unbind(-1)
    log_std_N = log_std_N.clamp(-3, 3)
    z_M = ((days_M + _MINUTE_IN_DAYS).log().float() - mean_N[row_M]) / log_std_N[row_M].exp()
    total = total + ((0.5 * z_M.square() + log_std_N[row_M]) * weight_M).sum() * 0.1
    if layout.numeric:
        numbers_MF = torch.stack([batch[f"event_{name}"].flatten()[counted] for name in layout.numeric], -1)
        known_MF = ~numbers_MF.isnan()
        logs_MF = signed_log(torch.where(known_MF, numbers_MF, 0.0))
        labels_MF = standardise(logs_MF, model.numeric_mean, model.numeric_std)
        error_MF = F.smooth_l1_loss(model.next_number(hidden_ND)[row_M], labels_MF, reduction="none")
        total = total + ((error_MF * known_MF).sum(-1) * weight_M).sum() / len(layout.numeric)
    return total, torch.tensor(float(len(sources_N)), device=total.device)


def next_groups(batch: Batch, period: Period) -> tuple[Tensor, Tensor]:
    """Slot from which each event is predicted.

    Returns:
        (B * T,) flat slot of the last event of the timestamp group before (undefined where not counted), and (B * T,)
        bool, True for events that count: new here, in the period, and in a group that has one before it.
    """
    window, time = batch["window"], batch["known_at"]
    rows, slots = window.shape
    order = torch.arange(slots, device=window.device).expand(rows, -1)
    begins = window_starts(window)
    begins[:, 1:] |= time[:, 1:] != time[:, :-1]
    first = torch.where(begins, order, 0).cummax(dim=1).values
    source = first - 1
    same = (source >= 0) & (window.gather(1, source.clamp_min(0)) == window)
    counted = same & (window > 0) & (batch["is_new"] > 0) & (time >= period.start) & (time < period.end)
    base = torch.arange(rows, device=window.device)[:, None] * slots
    return (source.clamp_min(0) + base).flatten(), counted.flatten()


def target_loss(
    model: LargeActionModel, batch: Batch, predictions: Predictions, period: Period
) -> tuple[Tensor, Tensor]:
    """Losses of the labelled queries of the period's splits: (K,) sums and (K,) counts.

    `binary`: cross-entropy. `value`: negative log-likelihood of the amount, plus the error of the median in units of
    the usual amount. `next`: mean cross-entropy over the target's values.
    """
    allowed = in_splits(batch, period.splits)
    sums, counts = [], []
    for target in model.layout.targets:
        outputs, labels = labelled_predictions(target, batch, predictions, allowed)
        if target.kind == "value":
            error = median_error(outputs, labels) / model.typical_amount[target.name]
            losses = value_loss(outputs, labels) + error
        else:
            losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        # Adding zero keeps a batch without labelled queries in the autograd graph.
        sums.append(losses.sum() / target.values + outputs.sum() * 0)
        counts.append(torch.tensor(float(len(labels)), device=labels.device))
    return torch.stack(sums), torch.stack(counts)


def labelled_predictions(
    target: Target, batch: Batch, predictions: Predictions, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Predictions and labels of the examples of one target.

    Args:
        target: the target.
        batch: batch with labels.
        predictions: predictions for the batch.
        allowed: (B, Q) bool, queries to consider.

    Returns:
        (n,) or (n, outputs) float32 predictions, and (n,) or (n, values) labels.
    """
    labelled = _labelled(target, batch, allowed)
    return predictions.targets[target.name][labelled].float(), batch[f"label_{target.name}"][labelled]


def _labelled(target: Target, batch: Batch, allowed: Tensor) -> Tensor:
    """(B, Q) bool: the allowed queries that have a label of the target."""
    label = batch[f"label_{target.name}"]
    return allowed & ~(label.isnan().any(dim=-1) if target.kind == "next" else label.isnan())


def in_splits(batch: Batch, splits: Collection[str]) -> Tensor:
    """(B, Q) bool: queries of these splits."""
    split_ids = torch.tensor([SPLIT_IDS[name] for name in splits], device=batch["query_split"].device)
    return torch.isin(batch["query_split"], split_ids)
