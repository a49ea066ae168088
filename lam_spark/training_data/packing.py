"""Packs customers' windows into blocks of one shape, wasting little; pure numpy.

A long sequence is cut into windows that overlap by half, so that every query sees at least half a block of
history (or all there is). Windows go to the open block that they fill best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.sequences.tokens import MISSING, PADDING
from lam_spark.training_data.aggregates import NOTHING_TRUNCATED, TruncatedHistory, aggregates, first_known
from lam_spark.training_data.decayed_counts import initial_counts
from lam_spark.training_data.layout import Layout

Array = npt.NDArray[Any]
Block = dict[str, Array]
_OPEN_BLOCKS = 32


@dataclass(frozen=True)
class Customer:
    """One customer's events and queries.

    Attributes:
        events: `event_time`, `hour_of_week` and every modelled field, arrays (n,) in order.
        queries: the columns of `Layout.query_columns` but window, index and aggregates, arrays (q,); a label of
            a `next` target (q, values).
        older: of the events before these.
        owner: a number that tells customers apart in training; two may share one, rarely.
    """

    events: dict[str, Array]
    queries: dict[str, Array]
    older: TruncatedHistory = NOTHING_TRUNCATED
    owner: int = 0


@dataclass(frozen=True)
class Window:
    """A slice of one customer's events and the queries that are asked in it.

    Attributes:
        start, end: events [start, end).
        new_from: events before this one belong to an earlier, overlapping window too.
        queries: rows of the customer's queries.
        upto: for each of them, how many of the customer's events it may see.
    """

    start: int
    end: int
    new_from: int
    queries: npt.NDArray[np.intp]
    upto: npt.NDArray[np.intp]


def cut_windows(
    events: int, upto: npt.NDArray[np.intp], block_events: int, most_queries: int, older: int = 0
) -> list[Window]:
    """Windows over `events` events that together cover each event as new once and each query once.

    The windows lie on a grid that starts at the customer's very first event, `older` events before these: how much
    history a query sees must not tell how much is still to come. One that does not begin at the first of `events` holds
    more than half of `block_events`.
    """
    half = max(1, block_events // 2)
    windows = []
    new_from = 0
    first_border = block_events - older % half
    for number, border in enumerate(range(first_border, max(events, 1) + block_events, half)):
        if number and new_from >= events:
            break
        end, start = min(events, border), max(0, border - block_events)
        here = (upto <= end) & ((upto > new_from) | (number == 0))
        rows = np.flatnonzero(here)
        # More queries than a block has slots for: the same events again, with none of them new.
        for first in range(0, max(len(rows), 1), most_queries):
            chosen = rows[first : first + most_queries]
            fresh = new_from if first == 0 else end
            windows.append(Window(start, end, fresh, chosen, upto[chosen]))
        new_from = end
    return windows


@dataclass(frozen=True)
class Prepared:
    """A customer ready to pack.

    Attributes:
        windows: of the customer's events.
        summary: aggregates of every query, (q, A).
        initial: a window's start -> decayed_counts of the events before it (`initial_counts`); none of a start at 0.
    """

    customer: Customer
    windows: list[Window]
    summary: Array
    initial: dict[int, npt.NDArray[np.float32]]


def prepare(layout: Layout, customer: Customer) -> Prepared:
    """Cut a customer into windows, compute the aggregates of the queries and the decayed_counts from before the windows, and
    let the queries say who asks (`Layout.who`).
    """
    times, asked = customer.events["event_time"], customer.queries["query_time"]
    upto = np.searchsorted(times, asked, side="left")
    older = customer.older
    windows = cut_windows(len(times), upto, layout.block_events, layout.queries_per_block, older.events)
    summary = aggregates(layout, customer.events, customer.queries, older)
    initial = initial_counts(layout, customer.events, (s.start for s in windows if s.start), older)
    first = first_known(layout, times, asked, older)
    known = {f"query_{name}": _who(customer, name, first, upto) for name in layout.who}
    asking = dataclasses.replace(customer, queries={**customer.queries, **known})
    return Prepared(asking, windows, summary, initial)


def _who(customer: Customer, name: str, first: npt.NDArray[np.intp], upto: npt.NDArray[np.intp]) -> Array:
    """What each query says of the field; where it says nothing, what the last known event did that said something.

    A block may begin long after the event that told who the customer is.
    """
    happened, asked = customer.events[name], customer.queries[f"query_{name}"]
    last = np.maximum.accumulate(np.where(_said(happened), np.arange(len(happened)), -1))
    last = np.concatenate([[-1], last])[upto]
    taken = ~_said(asked) & (last >= first)
    filled = asked.copy()
    filled[taken] = happened[last[taken]]
    return filled


def _said(values: Array) -> npt.NDArray[np.bool_]:
    given: npt.NDArray[np.bool_] = (
        ~np.isnan(values) if values.dtype.kind == "f" else (values != PADDING) & (values != MISSING)
    )
    return given


class Packer:
    """Fills blocks with windows; `place` gives back a block when too many are open."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._open: list[tuple[int, int, int, Block]] = []  # events, queries, windows used; the block

    def flush(self) -> Iterator[Block]:
        """Give the blocks that are still open."""
        for *_, block in self._open:
            yield block
        self._open = []

    def place(self, prepared: Prepared, window: Window, with_loss: bool) -> Iterator[Block]:
        """Put one window into the open block that it fills best.

        Args:
            prepared: whose window it is.
            window: what to place.
            with_loss: False marks no event as new (scoring needs no next-event loss).
        """
        layout = self.layout
        events, queries = window.end - window.start, len(window.queries)
        best, room = -1, layout.block_events + 1
        for number, (used, asked, _, _) in enumerate(self._open):
            left = layout.block_events - used
            if events <= left < room and queries <= layout.queries_per_block - asked:
                best, room = number, left
        if best < 0:
            if len(self._open) >= _OPEN_BLOCKS:
                fullest = max(range(len(self._open)), key=lambda i: self._open[i][0])
                yield self._open.pop(fullest)[3]
            self._open.append((0, 0, 0, empty_block(layout)))
            best = len(self._open) - 1
        used, asked, windows, block = self._open[best]
        fill_block(layout, block, (used, asked, windows + 1), prepared, window, with_loss)
        self._open[best] = (used + events, asked + queries, windows + 1, block)


def empty_block(layout: Layout) -> Block:
    """A block of empty slots."""
    block: Block = {name: np.zeros(length, dtype) for name, (dtype, length) in layout.columns.items()}
    block["query_row"] = np.full(layout.queries_per_block, -1, np.int32)
    for target in layout.targets:
        block[f"label_{target.name}"][:] = np.nan
    return block


def fill_block(
    layout: Layout,
    block: Block,
    place: tuple[int, int, int],
    prepared: Prepared,
    window: Window,
    with_loss: bool,
) -> None:
    """Write one window at `place` = (first event slot, first query slot, window number)."""
    slot, query_slot, number = place
    customer = prepared.customer
    rows = slice(window.start, window.end)
    to = slice(slot, slot + window.end - window.start)
    block["window"][to] = number
    block["owner"][to] = customer.owner
    block["is_new"][to] = np.arange(window.start, window.end) >= window.new_from if with_loss else 0
    for name in ("event_time", "hour_of_week"):
        block[name][to] = customer.events[name][rows]
    for name in (*layout.categorical, *layout.numeric):
        block[f"event_{name}"][to] = customer.events[name][rows]
    if window.start:  # there is no other such window in the block: see `cut_windows`
        block["initial_window"][:] = number
        block["initial_time"][:] = customer.events["event_time"][window.start]
        block["initial_counts"][:] = prepared.initial[window.start].ravel()
    asked = slice(query_slot, query_slot + len(window.queries))
    block["query_window"][asked] = number
    block["query_index"][asked] = slot + window.upto - window.start
    asks = {**customer.queries, "aggregates": prepared.summary}
    for name in layout.query_columns:
        if name not in ("query_window", "query_index"):
            column = block[name]
            if name in layout.wide:
                column = column.reshape(layout.queries_per_block, -1)  # a view
            column[asked] = asks[name][window.queries]


def unfold(layout: Layout, blocks: Block) -> Block:
    """Columns of several blocks, (B, length) each, as the model reads them: the wide ones as (B, Q, inner)."""
    shape = (len(blocks["window"]), layout.queries_per_block, -1)
    return {name: values.reshape(shape) if name in layout.wide else values for name, values in blocks.items()}


def pack_queries(layout: Layout, customers: Iterable[Customer]) -> Iterator[Block]:
    """Pack the windows that hold queries, for scoring; holds `_OPEN_BLOCKS` blocks at most."""
    packer = Packer(layout)
    for customer in customers:
        prepared = prepare(layout, customer)
        for window in prepared.windows:
            if len(window.queries):
                yield from packer.place(prepared, window, with_loss=False)
    yield from packer.flush()
