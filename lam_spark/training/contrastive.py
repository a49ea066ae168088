"""Whose slice is it? A contrastive term between slices of customers' histories (CoLES, Babaev et al. 2022, 2002.08232).

Histories are cut in two, so that neither part sees the other; the state at the end of a slice should be nearer to
those of the same customer's slices than to anybody else's. The loss is the supervised contrastive one (Khosla et al.
2020, 2004.11362). Half of a batch's blocks are cut, so that the other half still learns from whole histories, and one
forward pass serves both.

Shapes: B blocks, T event slots, S slices, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lam_spark.model.attention import window_begins
from lam_spark.model.transformer import Batch, Predictions

# Of the cosines: what is a little nearer should weigh more.
_TEMPERATURE = 0.1


def cut_histories(batch: Batch, end: int) -> Batch:
    """The batch with the windows of every other block cut in two, each between two moments of its middle half.

    Where is drawn from torch's generator. A window without such a place stays whole. Events from `end` on
    (microseconds) are taken out: a slice that held them would learn from the period that judges.
    """
    time = batch["event_time"]
    window = torch.where(time < end, batch["window"], 0)
    rows, slots = window.shape
    order = torch.arange(slots, device=window.device).expand(rows, -1)
    begins = window_begins(window)
    moment = begins.clone()
    moment[:, 1:] |= time[:, 1:] != time[:, :-1]
    first = torch.where(begins, order, 0).cummax(dim=1).values
    length = torch.zeros_like(order).scatter_add(1, first, torch.ones_like(order)).gather(1, first)
    # A place of its own for each window; the cut is at the first moment from there on.
    share = torch.rand(rows, slots, device="cpu").to(window.device).gather(1, first) / 2 + 0.25
    wanted = first + (share * length).long()
    late = moment & (order >= wanted) & ~begins
    after = torch.where(late, 1, 0).cumsum(dim=1)
    second = (after - after.gather(1, first) > 0) & (window > 0)
    offset = int(torch.randint(2, (1,)))
    second = second & ((torch.arange(rows, device=window.device) % 2 == offset)[:, None] | (rows == 1))
    cut = torch.where(window > 0, 2 * window - 1 + second.to(window.dtype), 0).to(window.dtype)
    asked = batch["query_window"]
    # A query stays with the events that lie just before it.
    index = (batch["query_index"].long() - 1).clamp_min(0)
    with_events = torch.where(asked > 0, cut.gather(1, index), 0).to(asked.dtype)
    return {**batch, "window": cut, "query_window": with_events}


def ends_of_slices(batch: Batch) -> tuple[Tensor, Tensor]:
    """(S,) flat slots of the slices' last events, and (S,) whose they are."""
    window = batch["window"]
    last = torch.ones_like(window, dtype=torch.bool)
    last[:, :-1] = window[:, 1:] != window[:, :-1]
    slots = (last & (window > 0)).flatten().nonzero().squeeze(1)
    return slots, batch["owner"].flatten()[slots]


def pairs_of_owners(owner: Tensor) -> Tensor:
    """(S, S) bool: two slices of one customer."""
    alike: Tensor = owner[:, None] == owner[None, :]
    return alike & ~torch.eye(len(owner), dtype=torch.bool, device=owner.device)


def count_anchors(batch: Batch) -> float:
    """Slices that have another one of their customer in the batch: known from the data alone."""
    return float(pairs_of_owners(ends_of_slices(batch)[1]).any(dim=1).sum())


def contrastive_loss(batch: Batch, predictions: Predictions) -> Tensor:
    """Sum over the anchors of the loss (nats)."""
    slots, owner = ends_of_slices(batch)
    alike = pairs_of_owners(owner)
    anchors = alike.any(dim=1)
    hidden_SD = F.normalize(predictions.event_hidden_BTD.flatten(0, 1)[slots].float(), dim=-1)
    cosine = hidden_SD @ hidden_SD.T / _TEMPERATURE
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    log_share = cosine - cosine.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    each = -(log_share * alike).sum(dim=1) / alike.sum(dim=1).clamp_min(1)
    # The zero keeps a batch without anchors a part of the graph.
    return each[anchors].sum() + hidden_SD.sum() * 0
