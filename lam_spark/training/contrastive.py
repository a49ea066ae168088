"""Contrastive loss between slices of customers' histories (CoLES, Babaev et al. 2022, arXiv 2002.08232).

A history is cut in two so that neither slice sees the other. The hidden state at the end of a slice should be closer to
the other slice of the same customer than to slices of other customers. The loss is the supervised contrastive loss
(Khosla et al. 2020, arXiv 2004.11362). Only half of a batch's blocks are cut: the other half trains on whole histories,
and one forward pass serves both losses.

Shapes: B blocks, T event slots, S slices, D d_model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lam_spark.model.attention import window_starts
from lam_spark.model.transformer import Batch, Predictions

# Temperature of the cosines: lower values weigh small differences more.
_TEMPERATURE = 0.1


def cut_histories(batch: Batch, end: int) -> Batch:
    """Cut the windows of every other block in two, between two timestamp groups in the middle half of the window.

    The cut and the parity of the blocks are drawn from torch's generator. A window without a possible cut stays whole.

    Args:
        batch: (B, ...) columns of blocks.
        end: events known from this time on (microseconds) are removed, so that no slice holds events of the validation
        period.

    Returns:
        The batch with new columns `window` and `query_window`; the other columns are shared.
    """
    time = batch["known_at"]
    window = torch.where(time < end, batch["window"], 0)
    rows, slots = window.shape
    order = torch.arange(slots, device=window.device).expand(rows, -1)
    begins = window_starts(window)
    group_begins = begins.clone()
    group_begins[:, 1:] |= time[:, 1:] != time[:, :-1]
    first = torch.where(begins, order, 0).cummax(dim=1).values
    length = torch.zeros_like(order).scatter_add(1, first, torch.ones_like(order)).gather(1, first)
    # One random position per window; the cut is at the first timestamp group from there on.
    share = torch.rand(rows, slots, device="cpu").to(window.device).gather(1, first) / 2 + 0.25
    position = first + (share * length).long()
    late = group_begins & (order >= position) & ~begins
    after = torch.where(late, 1, 0).cumsum(dim=1)
    second = (after - after.gather(1, first) > 0) & (window > 0)
    offset = int(torch.randint(2, (1,)))
    second = second & ((torch.arange(rows, device=window.device) % 2 == offset)[:, None] | (rows == 1))
    cut = torch.where(window > 0, 2 * window - 1 + second.to(window.dtype), 0).to(window.dtype)
    query_window = batch["query_window"]
    # A query joins the slice of the event just before it.
    index = (batch["query_index"].long() - 1).clamp_min(0)
    query_cut = torch.where(query_window > 0, cut.gather(1, index), 0).to(query_window.dtype)
    return {**batch, "window": cut, "query_window": query_cut}


def slice_ends(batch: Batch) -> tuple[Tensor, Tensor]:
    """(S,) flat slot of each slice's last event, and (S,) its customer."""
    window = batch["window"]
    last = torch.ones_like(window, dtype=torch.bool)
    last[:, :-1] = window[:, 1:] != window[:, :-1]
    slots = (last & (window > 0)).flatten().nonzero().squeeze(1)
    return slots, batch["customer_index"].flatten()[slots]


def same_customer_pairs(owner: Tensor) -> Tensor:
    """(S, S) bool: two different slices of the same customer."""
    pairs: Tensor = owner[:, None] == owner[None, :]
    return pairs & ~torch.eye(len(owner), dtype=torch.bool, device=owner.device)


def count_anchors(batch: Batch) -> float:
    """Number of slices with another slice of the same customer in the batch."""
    return float(same_customer_pairs(slice_ends(batch)[1]).any(dim=1).sum())


def contrastive_loss(batch: Batch, predictions: Predictions) -> Tensor:
    """Sum of the contrastive loss over the anchors (nats)."""
    slots, owner = slice_ends(batch)
    pairs = same_customer_pairs(owner)
    anchors = pairs.any(dim=1)
    hidden_SD = F.normalize(predictions.event_hidden_BTD.flatten(0, 1)[slots].float(), dim=-1)
    cosine = hidden_SD @ hidden_SD.T / _TEMPERATURE
    diagonal = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    log_share = cosine - cosine.masked_fill(diagonal, -torch.inf).logsumexp(dim=1, keepdim=True)
    loss_S = -(log_share * pairs).sum(dim=1) / pairs.sum(dim=1).clamp_min(1)
    # Adding zero keeps a batch without anchors in the autograd graph.
    return loss_S[anchors].sum() + hidden_SD.sum() * 0
