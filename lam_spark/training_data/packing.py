"""Packs windows of customers' events into blocks of one shape with little padding; pure NumPy.

A history longer than a block is cut into windows that overlap by half, so that every query sees at least half a block
of events (or the whole history). Each window goes to the open block with the least room that still fits it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.sequences.tokens import MISSING, PADDING
from lam_spark.training_data.aggregates import (
    NOTHING_TRUNCATED,
    TruncatedHistory,
    aggregates,
    first_counted_event,
)
from lam_spark.training_data.decayed_counts import initial_counts
from lam_spark.training_data.layout import Layout

Array = npt.NDArray[Any]
Block = dict[str, Array]
_MAX_OPEN_BLOCKS = 32
_MICROS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Customer:
    """Events and queries of one customer.

    Attributes:
        events: `known_at` and `event_time` (microseconds), `hour_of_week` and every modelled field, arrays (n,) in the
            order of `known_at`.
        queries: the columns of `Layout.query_columns` except window, index and aggregates, arrays (q,); the label of a
            `next` target is (q, values).
        truncated: summary of the events before these.
        customer_index: number that distinguishes customers in training; collisions are rare.
    """

    events: dict[str, Array]
    queries: dict[str, Array]
    truncated: TruncatedHistory = NOTHING_TRUNCATED
    customer_index: int = 0


@dataclass(frozen=True)
class Window:
    """A slice of one customer's events, and the queries that see it.

    Attributes:
        start, end: the events [start, end).
        new_from: index of the first event that no earlier window contains.
        queries: indices of the customer's queries.
        visible_events: number of the customer's events before each of these queries.
    """

    start: int
    end: int
    new_from: int
    queries: npt.NDArray[np.intp]
    visible_events: npt.NDArray[np.intp]


def cut_windows(
    n_events: int,
    visible_events: npt.NDArray[np.intp],
    block_events: int,
    max_queries: int,
    truncated_events: int = 0,
) -> list[Window]:
    """Cut a history into windows that contain each event as new once and each query once.

    Window borders are on a grid that starts at the customer's first event, including truncated ones: the length of the
    history that a query sees must not depend on later events. A window that does not start at event 0 has more than
    half of `block_events` events.

    Args:
        n_events: number of events.
        visible_events: (q,) number of events before each query.
        block_events: maximum number of events in a window.
        max_queries: maximum number of queries in a window.
        truncated_events: number of events before these.
    """
    half = max(1, block_events // 2)
    windows = []
    new_from = 0
    first_border = block_events - truncated_events % half
    for number, border in enumerate(range(first_border, max(n_events, 1) + block_events, half)):
        if number and new_from >= n_events:
            break
        end, start = min(n_events, border), max(0, border - block_events)
        in_window = (visible_events <= end) & ((visible_events > new_from) | (number == 0))
        queries = np.flatnonzero(in_window)
        # More queries than a block has slots for: repeat the window without new events.
        for first in range(0, max(len(queries), 1), max_queries):
            part = queries[first : first + max_queries]
            windows.append(Window(start, end, new_from if first == 0 else end, part, visible_events[part]))
        new_from = end
    return windows


@dataclass(frozen=True)
class PreparedCustomer:
    """A customer ready to pack.

    Attributes:
        customer: the customer, with completed query fields.
        windows: windows of the customer's events.
        aggregates: aggregates of every query, (q, A).
        initial: start of a window -> decayed counts of the events before it (`initial_counts`); no entry for start 0.
    """

    customer: Customer
    windows: list[Window]
    aggregates: Array
    initial: dict[int, npt.NDArray[np.float32]]


def prepare(layout: Layout, customer: Customer) -> PreparedCustomer:
    """Cut a customer into windows and compute the model's inputs that a single window does not determine.

    These are the aggregates of the queries, the decayed counts at the start of each window, and the queries' missing
    values of `Layout.who_fields`.
    """
    times, query_times = customer.events["known_at"], customer.queries["query_time"]
    visible_events = np.searchsorted(times, query_times, side="left")
    truncated = customer.truncated
    windows = cut_windows(
        len(times), visible_events, layout.block_events, layout.queries_per_block, truncated.events
    )
    starts = (window.start for window in windows if window.start)
    first_counted = first_counted_event(layout, times, query_times, truncated)
    who_values = {
        f"query_{name}": _fill_from_events(customer, name, first_counted, visible_events)
        for name in layout.who_fields
    }
    return PreparedCustomer(
        dataclasses.replace(customer, queries={**customer.queries, **who_values}),
        windows,
        aggregates(layout, customer.events, customer.queries, truncated),
        initial_counts(layout, customer.events, starts, truncated),
    )


def _fill_from_events(
    customer: Customer,
    name: str,
    first_counted: npt.NDArray[np.intp],
    visible_events: npt.NDArray[np.intp],
) -> Array:
    """(q,): each query's value of the field; if missing, that of the last counted event with a value.

    The query's block may start long after that event.
    """
    event_values, query_values = customer.events[name], customer.queries[f"query_{name}"]
    indices = np.where(_has_value(event_values), np.arange(len(event_values)), -1)
    last = np.concatenate([[-1], np.maximum.accumulate(indices)])[visible_events]
    fill = ~_has_value(query_values) & (last >= first_counted)
    filled = query_values.copy()
    filled[fill] = event_values[last[fill]]
    return filled


def _has_value(values: Array) -> npt.NDArray[np.bool_]:
    is_set: npt.NDArray[np.bool_] = (
        ~np.isnan(values) if values.dtype.kind == "f" else (values != PADDING) & (values != MISSING)
    )
    return is_set


class Packer:
    """Fills blocks with windows and returns a block when too many are open."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._open: list[
            tuple[int, int, int, Block]
        ] = []  # events, queries and windows in the block; the block

    def flush(self) -> Iterator[Block]:
        """Yield the blocks that are still open."""
        for *_, block in self._open:
            yield block
        self._open = []

    def add_window(self, prepared: PreparedCustomer, window: Window, with_loss: bool) -> Iterator[Block]:
        """Add one window to the open block with the least room for it; yield a block if one is closed.

        Args:
            prepared: the customer of the window.
            window: the window to add.
            with_loss: False marks no event as new (scoring has no next-event loss).
        """
        layout = self.layout
        n_events, n_queries = window.end - window.start, len(window.queries)
        best, least_room = -1, layout.block_events + 1
        for number, (used_events, used_queries, _, _) in enumerate(self._open):
            room = layout.block_events - used_events
            if n_events <= room < least_room and n_queries <= layout.queries_per_block - used_queries:
                best, least_room = number, room
        if best < 0:
            if len(self._open) >= _MAX_OPEN_BLOCKS:
                fullest = max(range(len(self._open)), key=lambda i: self._open[i][0])
                yield self._open.pop(fullest)[3]
            self._open.append((0, 0, 0, empty_block(layout)))
            best = len(self._open) - 1
        used_events, used_queries, n_windows, block = self._open[best]
        offsets = (used_events, used_queries, n_windows + 1)
        write_window(layout, block, offsets, prepared, window, with_loss)
        self._open[best] = (used_events + n_events, used_queries + n_queries, n_windows + 1, block)


def empty_block(layout: Layout) -> Block:
    """Create a block of empty slots."""
    block: Block = {name: np.zeros(length, dtype) for name, (dtype, length) in layout.columns.items()}
    block["query_row"] = np.full(layout.queries_per_block, -1, np.int32)
    for target in layout.targets:
        block[f"label_{target.name}"][:] = np.nan
    return block


def write_window(
    layout: Layout,
    block: Block,
    offsets: tuple[int, int, int],
    prepared: PreparedCustomer,
    window: Window,
    with_loss: bool,
) -> None:
    """Write one window into a block at `offsets` = (first event slot, first query slot, window number)."""
    first_slot, first_query_slot, number = offsets
    customer = prepared.customer
    rows = slice(window.start, window.end)
    slots = slice(first_slot, first_slot + window.end - window.start)
    block["window"][slots] = number
    block["customer_index"][slots] = customer.customer_index
    block["is_new"][slots] = np.arange(window.start, window.end) >= window.new_from if with_loss else 0
    for name in ("known_at", "hour_of_week"):
        block[name][slots] = customer.events[name][rows]
    block["log_delay_hours"][slots] = _log_delay_hours(customer.events, rows)
    for name in (*layout.categorical, *layout.numeric):
        block[f"event_{name}"][slots] = customer.events[name][rows]
    if window.start:  # at most one such window per block: see `cut_windows`
        block["initial_window"][:] = number
        block["initial_time"][:] = customer.events["known_at"][window.start]
        block["initial_counts"][:] = prepared.initial[window.start].ravel()
    query_slots = slice(first_query_slot, first_query_slot + len(window.queries))
    block["query_window"][query_slots] = number
    block["query_index"][query_slots] = first_slot + window.visible_events - window.start
    query_values = {**customer.queries, "aggregates": prepared.aggregates}
    for name in layout.query_columns:
        if name not in ("query_window", "query_index"):
            column = block[name]
            if name in layout.values_per_query:
                column = column.reshape(layout.queries_per_block, -1)  # a view
            column[query_slots] = query_values[name][window.queries]


def _log_delay_hours(events: Mapping[str, Array], rows: slice) -> npt.NDArray[np.float32]:
    """log(1 + hours from `event_time` to `known_at`), (n,); exactly 0 for an event that is known when it happens."""
    delay = events["known_at"][rows] - events["event_time"][rows]
    return np.asarray(np.log1p(delay / _MICROS_PER_HOUR), np.float32)


def unfold(layout: Layout, blocks: Block) -> Block:
    """Reshape the columns of B blocks, (B, length) each, to the model's input.

    Columns with several numbers per query (`Layout.values_per_query`) become (B, Q, numbers); others are unchanged.
    """
    shape = (len(blocks["window"]), layout.queries_per_block, -1)
    return {
        name: values.reshape(shape) if name in layout.values_per_query else values
        for name, values in blocks.items()
    }


def pack_queries(layout: Layout, customers: Iterable[Customer]) -> Iterator[Block]:
    """Pack the windows that contain queries, for scoring; holds at most `_MAX_OPEN_BLOCKS` blocks in memory."""
    packer = Packer(layout)
    for customer in customers:
        prepared = prepare(layout, customer)
        for window in prepared.windows:
            if len(window.queries):
                yield from packer.add_window(prepared, window, with_loss=False)
    yield from packer.flush()
