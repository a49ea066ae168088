"""Who sees whom in a block, and attention among those who do.

Events see their window's events up to themselves; queries see their window's events before `query_index`, and
themselves; nothing else sees a query. There are two ways, which give the same:

- `Dense` computes all pairs of a block's slots and hides most: one call of one shape, as GPUs and compilers like it.
- `ByHistory` gathers windows of like length and lets events attend within them: what it costs grows with the
  histories' lengths and not with the block's. On CPUs it is faster from blocks of some hundred events on
  (docs/benchmarks.md).

Shapes: B blocks, T event slots, Q query slots, S = T + Q, H heads, E width of a head; n windows of up to L events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# (B, S, H, E) queries, keys and values -> what each slot takes from those that it sees, (B, S, H, E).
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# Blocks of up to so many events are computed densely on CPUs too.
_DENSE_EVENTS = 256
# Shorter windows are gathered as if they were as long.
_SHORT = 64


def attention_of(batch: Mapping[str, Tensor], seen_BQT: Tensor) -> Attention:
    """The way that suits the device and the size of the batch's blocks."""
    window = batch["window"]
    if window.shape[1] <= _DENSE_EVENTS or window.is_cuda or torch.compiler.is_compiling():
        return Dense(window, seen_BQT)
    return ByHistory(window, seen_BQT)


def positions(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, S): of events in their block; of queries, that of the event that would come next."""
    index = batch["query_index"].long()
    order = torch.arange(batch["window"].shape[1], device=index.device)
    return torch.cat([order.expand(len(index), -1), index], dim=1)


def seen_events(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, Q, T) bool: the events that each query sees."""
    window = batch["window"]
    order = torch.arange(window.shape[1], device=window.device)
    before: Tensor = order < batch["query_index"][:, :, None]
    return before & (batch["query_window"][:, :, None] == window[:, None, :])


def window_begins(window: Tensor) -> Tensor:
    """(B, T) bool: the slots where another window begins than in the slot before, each block's first among them."""
    begins = torch.ones_like(window, dtype=torch.bool)
    begins[:, 1:] = window[:, 1:] != window[:, :-1]
    return begins


def visibility(window: Tensor, seen_BQT: Tensor) -> Tensor:
    """(B, S, S) bool, True where the row's slot sees the column's."""
    rows, slots = window.shape
    order = torch.arange(slots, device=window.device)
    causal = order[:, None] >= order[None, :]
    sees_event = causal & (window[:, :, None] == window[:, None, :])
    nothing = torch.zeros(rows, slots, seen_BQT.shape[1], dtype=torch.bool, device=window.device)
    return torch.cat([torch.cat([sees_event, nothing], dim=2), _with_themselves(seen_BQT)], dim=1)


class Dense:
    """All pairs at once.

    Args:
        window: (B, T), whose event a slot holds; 0: none.
        seen_BQT: `seen_events`.
    """

    def __init__(self, window: Tensor, seen_BQT: Tensor) -> None:
        self._mask = visibility(window, seen_BQT)[:, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attention(query, key, value, attn_mask=self._mask)


class ByHistory:
    """Windows of like length together, and queries by themselves; empty event slots get zeros.

    Args:
        window: (B, T), whose event a slot holds; 0: none. A window's slots lie together.
        seen_BQT: `seen_events`.
    """

    def __init__(self, window: Tensor, seen_BQT: Tensor) -> None:
        self._seen = _with_themselves(seen_BQT)[:, None]
        self._events, slots = window.shape[1], window.numel()
        first = window_begins(window).flatten().nonzero().squeeze(1)
        length = first.diff(append=first.new_tensor([slots]))
        held = window.flatten()[first] > 0
        first, length = first[held], length[held]
        # The longest of a group is at most twice as long as the shortest, or short.
        group = length.clamp_min(_SHORT).double().log2().ceil()
        self._shapes: list[tuple[int, int]] = []
        gathered, count = [first[:0]], 0
        # Of each event slot, the row of its own among the gathered ones; of an empty one, the row after them.
        row = torch.full((slots,), -1)
        for number in torch.unique(group):
            firsts, lengths = first[group == number], length[group == number]
            step = torch.arange(int(lengths.max()))
            # What lies behind a window's end is computed too, and nobody's.
            slot = (firsts[:, None] + step).clamp_max(slots - 1)
            own = step < lengths[:, None]
            row[slot[own]] = count + own.flatten().nonzero().squeeze(1)
            gathered.append(slot.flatten())
            self._shapes.append((len(firsts), len(step)))
            count += slot.numel()
        self._row = torch.where(row < 0, count, row)
        gathered_slot = torch.cat(gathered)
        # Counted among the slots of events and queries.
        self._gathered = gathered_slot + gathered_slot // self._events * seen_BQT.shape[1]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        blocks, _, heads, inner = query.shape
        asked = _attention(query[:, self._events :], key, value, attn_mask=self._seen)
        parts = [x.flatten(0, 1).flatten(1).index_select(0, self._gathered) for x in (query, key, value)]
        mixed, start = [], 0
        for count, longest in self._shapes:
            end = start + count * longest
            own = (x[start:end].view(count, longest, heads, inner) for x in parts)
            mixed.append(_attention(*own, is_causal=True).reshape(count * longest, -1))
            start = end
        rows = torch.cat([*mixed, asked.new_zeros(1, heads * inner)]).index_select(0, self._row)
        return torch.cat([rows.view(blocks, self._events, heads, inner), asked], dim=1)


def _attention(query: Tensor, key: Tensor, value: Tensor, **options: Tensor | bool) -> Tensor:
    """(B, S, H, E), heads apart."""
    apart = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*apart, **options).transpose(1, 2)  # type: ignore[arg-type]


def _with_themselves(seen_BQT: Tensor) -> Tensor:
    """(B, Q, S) bool: of queries, the events that they see and they themselves."""
    queries = seen_BQT.shape[1]
    itself = torch.eye(queries, dtype=torch.bool, device=seen_BQT.device)
    return torch.cat([seen_BQT, itself.expand(len(seen_BQT), -1, -1)], dim=2)
