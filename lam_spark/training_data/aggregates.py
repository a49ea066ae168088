"""Summary aggregates of a customer's events before a query: recency, frequency and amounts by time window.

Time is the instant at which an event is known: what became known after a query is invisible to it, whenever it
happened. Published comparisons find that sequence embeddings alone are worse than aggregates, so the target heads read
both. The same code serves training and scoring. Cost: cumulative sums per customer, linear in events for any number of
windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training_data.layout import MICROS_PER_DAY, Layout

Float = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

# Recency of a value that never occurred, in days.
_NEVER_DAYS = 3650.0


@dataclass(frozen=True)
class TruncatedHistory:
    """Summary of the earliest events of a customer, which the customer's arrays no longer hold.

    Attributes:
        events: number of these events.
        first_time: first instant at which an event of the customer was known, microseconds UTC.
    """

    events: int = 0
    first_time: int = 0


NOTHING_TRUNCATED = TruncatedHistory()


def first_counted_event(
    layout: Layout, times: npt.NDArray[np.int64], at: npt.NDArray[np.int64], truncated: TruncatedHistory
) -> npt.NDArray[np.intp]:
    """Return, for each instant, the index of the first event that counts; 0 if the history is complete.

    In a truncated history, the first event in the arrays depends on how many events follow the instant. Counting from
    there would leak the future, so only events within `layout.lookback` count.

    Args:
        layout: gives the lookback.
        times: (n,) instants at which the events were known, microseconds, ascending.
        at: (q,) instants in microseconds.
        truncated: summary of the events before these.
    """
    if not truncated.events:
        return np.zeros(len(at), np.intp)
    return np.searchsorted(times, at - layout.lookback, side="left")


def signed_log(values: Float) -> Float:
    """sign(x) log(1 + |x|): keeps zero, order and sign, compresses tails."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def aggregates(
    layout: Layout, events: Arrays, queries: Arrays, truncated: TruncatedHistory = NOTHING_TRUNCATED
) -> npt.NDArray[np.float32]:
    """Compute the aggregates of one customer's queries.

    Args:
        layout: names and time windows.
        events: `known_at` (n,) int64 microseconds ascending, `event_time` (n,) int64, and one (n,) array per field.
        queries: `query_time` (q,) int64 microseconds and one (q,) array per categorical field.
        truncated: summary of the events before these. If there are any, only the last `layout.lookback` before a query
            counts, except for the number of events and the time since the first one. Callers leave out queries whose
            lookback begins before `events`; a query before all of them gets zeros.

    Returns:
        (q, len(layout.aggregate_names)) float32. Counts and sums are signed logs, recencies are log days. Only events
        with `known_at < query_time` count.
    """
    times = np.asarray(events["known_at"], dtype=np.int64)
    query_times = np.asarray(queries["query_time"], dtype=np.int64)
    events_before = np.searchsorted(times, query_times, side="left")
    first_counted = first_counted_event(layout, times, query_times, truncated)
    cumulative = _cumulative_sums(layout, events)
    parts = [
        _history(times, query_times, events_before, truncated),
        _recency(layout, events, times, query_times, first_counted),
    ]
    n_ids = len(layout.counted_ids)
    by_window = []
    for days in layout.window_days:
        start = np.searchsorted(times, query_times - days * MICROS_PER_DAY, side="left")
        sums = cumulative[events_before] - cumulative[np.minimum(start, events_before)]
        by_window.append(signed_log(sums))
    parts += [part[:, :n_ids] for part in by_window]
    parts += [part[:, n_ids : 2 * n_ids] for part in by_window]
    parts += [part[:, 2 * n_ids :] for part in by_window]
    parts.append(_same_value(layout, events, queries, first_counted, events_before))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _cumulative_sums(layout: Layout, events: Arrays) -> Float:
    """(n + 1, columns): sums over the first i events: events by id, timestamp groups by id, numeric fields.

    A timestamp group (a basket) happened at one time and was known at one time.
    """
    times, known_at = (np.asarray(events[name], dtype=np.int64) for name in ("event_time", "known_at"))
    field_ids = np.asarray(events[layout.count_by])
    counted_ids = np.asarray(layout.counted_ids, dtype=field_ids.dtype)
    is_id = field_ids[:, None] == counted_ids[None, :]
    starts_group = np.zeros(is_id.shape)
    for column in range(len(counted_ids)):
        rows = np.flatnonzero(is_id[:, column])
        if len(rows):
            differs = (np.diff(times[rows]) != 0) | (np.diff(known_at[rows]) != 0)
            starts_group[rows[np.concatenate([[True], differs])], column] = 1.0
    numbers = [np.nan_to_num(np.asarray(events[name], dtype=np.float64)) for name in layout.numeric]
    columns = [is_id, starts_group, np.stack(numbers, 1)] if numbers else [is_id, starts_group]
    summands = np.concatenate(columns, axis=1)
    return np.concatenate([np.zeros((1, summands.shape[1])), np.cumsum(summands, axis=0)])


def _history(
    times: npt.NDArray[np.int64],
    query_times: npt.NDArray[np.int64],
    events_before: npt.NDArray[np.intp],
    truncated: TruncatedHistory,
) -> Float:
    """(q, 2): log number of all events before the query, and log days since the customer's first event."""
    if not len(times):
        return np.zeros((len(query_times), 2))
    first_time = truncated.first_time if truncated.events else times[0]
    days = np.where(events_before > 0, (query_times - first_time) / MICROS_PER_DAY, 0.0)
    count = np.where(events_before > 0, events_before + truncated.events, 0)
    return np.stack([np.log1p(count), np.log1p(np.maximum(days, 0.0))], axis=1)


def _recency(
    layout: Layout,
    events: Arrays,
    times: npt.NDArray[np.int64],
    query_times: npt.NDArray[np.int64],
    first_counted: npt.NDArray[np.intp],
) -> Float:
    """(q, ids): log days since the last counted event of each id; `_NEVER_DAYS` if there is none."""
    columns = []
    for value in layout.counted_ids:
        rows = np.flatnonzero(np.asarray(events[layout.count_by]) == value)
        row_times = times[rows]
        last = np.searchsorted(row_times, query_times, side="left") - 1
        days = np.full(len(query_times), _NEVER_DAYS)
        occurred = np.searchsorted(rows, first_counted, side="left") <= last
        days[occurred] = (query_times[occurred] - row_times[last[occurred]]) / MICROS_PER_DAY
        columns.append(np.log1p(days))
    return np.stack(columns, axis=1) if columns else np.zeros((len(query_times), 0))


def _same_value(
    layout: Layout,
    events: Arrays,
    queries: Arrays,
    first_counted: npt.NDArray[np.intp],
    events_before: npt.NDArray[np.intp],
) -> Float:
    """(q, fields): log number of counted events with the query's value; 0 for a query without a value."""
    columns = []
    for name in layout.categorical:
        query_ids = np.asarray(queries[f"query_{name}"])
        event_ids = np.asarray(events[name])
        count = np.zeros(len(query_ids))
        for value in np.unique(query_ids[query_ids >= FIRST_VALUE]):
            rows = query_ids == value
            cumulative = np.concatenate([[0], np.cumsum(event_ids == value)])
            count[rows] = cumulative[events_before[rows]] - cumulative[first_counted[rows]]
        columns.append(np.log1p(count))
    return np.stack(columns, axis=1)
