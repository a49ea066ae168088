"""Attention masks and rotary positions of a packed block, and two implementations of attention under them.

An event attends to the events of its own window up to and including itself. A query attends to the events of its
window before `query_index` and to itself. No other slot attends to a query. Both implementations give the same
result:

- `DenseAttention` computes all pairs of slots in a block under a mask: one call of one shape, as GPUs and compilers
  prefer.
- `WindowedAttention` gathers windows of similar length and attends within each. The cost grows with the length of the
  windows, not with the block. On CPUs it is faster for blocks of more than a few hundred events
  (benchmarks/RESULTS.md).

Shapes: B blocks, T event slots, Q query slots, S = T + Q, H heads, E head dimension; n windows of up to L events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Maps queries, keys and values, (B, S, H, E) each, to the attention output, (B, S, H, E).
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# Blocks of at most this many events use dense attention on CPUs too.
_MAX_DENSE_EVENTS = 256
# Windows shorter than this share one group, to limit the number of calls.
_MIN_GROUP_LENGTH = 64


def select_attention(batch: Mapping[str, Tensor], visible_BQT: Tensor) -> Attention:
    """Choose the implementation that suits the device and the block size."""
    window = batch["window"]
    if window.shape[1] <= _MAX_DENSE_EVENTS or window.is_cuda or torch.compiler.is_compiling():
        return DenseAttention(window, visible_BQT)
    return WindowedAttention(window, visible_BQT)


def positions(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, S) positions: an event's slot in the block; for a query, the position of the next event."""
    index = batch["query_index"].long()
    slots = torch.arange(batch["window"].shape[1], device=index.device)
    return torch.cat([slots.expand(len(index), -1), index], dim=1)


def rotary_factors(position_BS: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of rotary positions (RoFormer, arXiv 2104.09864), (B, S, 1, E) each."""
    frequency = 1000.0 ** (-torch.arange(0, head_dim, 2, device=position_BS.device) / head_dim)
    angle = position_BS[:, :, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary(x_BSHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys: x * cos + swap_halves(x) * sin."""
    left, right = x_BSHE.chunk(2, dim=-1)
    return torch.addcmul(x_BSHE * cos, torch.cat([right, left], dim=-1), sin)


def query_event_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, Q, T) bool: True where the query attends to the event."""
    window = batch["window"]
    slots = torch.arange(window.shape[1], device=window.device)
    is_before: Tensor = slots < batch["query_index"][:, :, None]
    return is_before & (batch["query_window"][:, :, None] == window[:, None, :])


def window_starts(window: Tensor) -> Tensor:
    """(B, T) bool: True at the first slot of each window and of each run of empty slots."""
    starts = torch.ones_like(window, dtype=torch.bool)
    starts[:, 1:] = window[:, 1:] != window[:, :-1]
    return starts


def attention_mask(window: Tensor, visible_BQT: Tensor) -> Tensor:
    """(B, S, S) bool, True where the row's slot attends to the column's slot."""
    n_blocks, n_slots = window.shape
    slots = torch.arange(n_slots, device=window.device)
    causal = slots[:, None] >= slots[None, :]
    event_to_event = causal & (window[:, :, None] == window[:, None, :])
    event_to_query = torch.zeros(
        n_blocks, n_slots, visible_BQT.shape[1], dtype=torch.bool, device=window.device
    )
    event_rows = torch.cat([event_to_event, event_to_query], dim=2)
    return torch.cat([event_rows, _query_rows(visible_BQT)], dim=1)


class DenseAttention:
    """Attention over all pairs of slots of a block.

    Args:
        window: (B, T) window number of each event slot; 0 for an empty slot.
        visible_BQT: `query_event_mask`.
    """

    def __init__(self, window: Tensor, visible_BQT: Tensor) -> None:
        self._mask = attention_mask(window, visible_BQT)[:, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _scaled_dot_product(query, key, value, attn_mask=self._mask)


class WindowedAttention:
    """Attention within windows of similar length, and separately for queries; empty event slots get zeros.

    Args:
        window: (B, T) window number of each event slot; 0 for an empty slot. A window's slots are contiguous.
        visible_BQT: `query_event_mask`.
    """

    def __init__(self, window: Tensor, visible_BQT: Tensor) -> None:
        self._query_mask = _query_rows(visible_BQT)[:, None]
        self._block_events, n_slots = window.shape[1], window.numel()
        start = window_starts(window).flatten().nonzero().squeeze(1)
        length = start.diff(append=start.new_tensor([n_slots]))
        in_use = window.flatten()[start] > 0
        start, length = start[in_use], length[in_use]
        # Group by powers of two: padding at most doubles a window, except for windows below `_MIN_GROUP_LENGTH`.
        group = length.clamp_min(_MIN_GROUP_LENGTH).double().log2().ceil()
        self._group_shapes: list[tuple[int, int]] = []
        gathered, row_count = [start[:0]], 0
        # Maps each event slot to its row in the gathered output; -1 for an empty slot.
        output_row = torch.full((n_slots,), -1)
        for number in torch.unique(group):
            starts, lengths = start[group == number], length[group == number]
            offset = torch.arange(int(lengths.max()))
            # Rows beyond a window's end are computed as padding and never read.
            slot = (starts[:, None] + offset).clamp_max(n_slots - 1)
            in_window = offset < lengths[:, None]
            output_row[slot[in_window]] = row_count + in_window.flatten().nonzero().squeeze(1)
            gathered.append(slot.flatten())
            self._group_shapes.append((len(starts), len(offset)))
            row_count += slot.numel()
        # Empty slots read the row of zeros that `__call__` appends.
        self._output_row = torch.where(output_row < 0, row_count, output_row)
        event_slot = torch.cat(gathered)
        # Convert from event slots (B * T) to slots of events and queries (B * S).
        self._gathered = event_slot + event_slot // self._block_events * visible_BQT.shape[1]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n_blocks, _, n_heads, head_dim = query.shape
        query_output = _scaled_dot_product(
            query[:, self._block_events :], key, value, attn_mask=self._query_mask
        )
        parts = [x.flatten(0, 1).flatten(1).index_select(0, self._gathered) for x in (query, key, value)]
        outputs, first = [], 0
        for count, longest in self._group_shapes:
            end = first + count * longest
            group_qkv = (x[first:end].view(count, longest, n_heads, head_dim) for x in parts)
            outputs.append(_scaled_dot_product(*group_qkv, is_causal=True).reshape(count * longest, -1))
            first = end
        padded = torch.cat([*outputs, query_output.new_zeros(1, n_heads * head_dim)])
        event_output = padded.index_select(0, self._output_row)
        return torch.cat(
            [event_output.view(n_blocks, self._block_events, n_heads, head_dim), query_output], dim=1
        )


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, **options: Tensor | bool) -> Tensor:
    """`scaled_dot_product_attention` for inputs of shape (B, S, H, E)."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, **options).transpose(1, 2)  # type: ignore[arg-type]


def _query_rows(visible_BQT: Tensor) -> Tensor:
    """(B, Q, S) bool: the mask rows of queries, which attend to their visible events and to themselves."""
    n_queries = visible_BQT.shape[1]
    itself = torch.eye(n_queries, dtype=torch.bool, device=visible_BQT.device)
    return torch.cat([visible_BQT, itself.expand(len(visible_BQT), -1, -1)], dim=2)
