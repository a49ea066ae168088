"""Summary aggregates of what a customer did before a query: recency, frequency and money by window.

Published comparisons find that sequence embeddings alone lose to aggregates, so the heads see both. The same
code serves training and scoring. One cumulative sum a customer: linear in events, whatever the windows.
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

_NEVER_DAYS = 3650.0


@dataclass(frozen=True)
class TruncatedHistory:
    """What is known of the events that a customer's arrays no longer hold; they lie before those held.

    Attributes:
        events: how many there are.
        first_time: of the customer's very first event, microseconds UTC.
    """

    events: int = 0
    first_time: int = 0


NOTHING_TRUNCATED = TruncatedHistory()


def first_known(
    layout: Layout, times: npt.NDArray[np.int64], at: npt.NDArray[np.int64], older: TruncatedHistory
) -> npt.NDArray[np.intp]:
    """For each instant, the number of the first event that may count then: 0 where the arrays hold all events.

    Where they do not, how far back they reach depends on how much happened after the instant: whatever is counted
    from their start on would tell the future. So what lies within `layout.reach` counts, and nothing before it.

    Args:
        layout: says the reach.
        times: (n,) microseconds of the customer's events, ascending.
        at: (q,) instants, microseconds.
        older: of the events before these.
    """
    if not older.events:
        return np.zeros(len(at), np.intp)
    return np.searchsorted(times, at - layout.reach, side="left")


def signed_log(values: Float) -> Float:
    """sign(x) log(1 + |x|): keeps zero, order and sign, tames tails."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def aggregates(
    layout: Layout, events: Arrays, queries: Arrays, older: TruncatedHistory = NOTHING_TRUNCATED
) -> npt.NDArray[np.float32]:
    """Aggregates of one customer's queries.

    Args:
        layout: names and windows.
        events: `event_time` (n,) int64 microseconds ascending, and a (n,) array a field.
        queries: `query_time` (q,) int64 and a (q,) array a categorical field.
        older: events before these. Where there are some, only the last `layout.reach` before a query counts, but for
            how many events came before it and since when. The callers leave out queries from which `events` do not
            reach back so far (`columns.answerable`); one that lies before all of them gets zeros.

    Returns:
        (q, len(layout.aggregate_names)) float32. Counts and sums are signed logs, recencies log days. Only
        events with `event_time < query_time` count.
    """
    times = np.asarray(events["event_time"], dtype=np.int64)
    asked = np.asarray(queries["query_time"], dtype=np.int64)
    upto = np.searchsorted(times, asked, side="left")  # events before the query
    known = first_known(layout, times, asked, older)
    running = _running_sums(layout, events, times)
    blocks = [_history(times, asked, upto, older), _recency(layout, events, times, asked, known)]
    counts = len(layout.counted_ids)
    in_window = []
    for days in layout.window_days:
        since = np.searchsorted(times, asked - days * MICROS_PER_DAY, side="left")
        in_window.append(signed_log(running[upto] - running[np.minimum(since, upto)]))
    blocks += [part[:, :counts] for part in in_window]
    blocks += [part[:, counts : 2 * counts] for part in in_window]
    blocks += [part[:, 2 * counts :] for part in in_window]
    blocks.append(_same_value(layout, events, queries, known, upto))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _running_sums(layout: Layout, events: Arrays, times: npt.NDArray[np.int64]) -> Float:
    """(n + 1, K): sums over the first i events of: counted events, their moments, numeric fields."""
    counted = np.asarray(events[layout.count_by])
    ids = np.asarray(layout.counted_ids, dtype=counted.dtype)
    is_value = counted[:, None] == ids[None, :]
    moments = np.zeros(is_value.shape)
    for column in range(len(ids)):
        where = np.flatnonzero(is_value[:, column])
        if len(where):
            moments[where[np.concatenate([[True], np.diff(times[where]) > 0])], column] = 1.0
    numbers = [np.nan_to_num(np.asarray(events[name], dtype=np.float64)) for name in layout.numeric]
    columns = np.concatenate(
        [is_value, moments, np.stack(numbers, 1)] if numbers else [is_value, moments], axis=1
    )
    return np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, axis=0)])


def _history(
    times: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    upto: npt.NDArray[np.intp],
    older: TruncatedHistory,
) -> Float:
    if not len(times):
        return np.zeros((len(asked), 2))
    first = older.first_time if older.events else times[0]
    known = np.where(upto > 0, (asked - first) / MICROS_PER_DAY, 0.0)
    before = np.where(upto > 0, upto + older.events, 0)
    return np.stack([np.log1p(before), np.log1p(np.maximum(known, 0.0))], axis=1)


def _recency(
    layout: Layout,
    events: Arrays,
    times: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    known: npt.NDArray[np.intp],
) -> Float:
    """Log days since the last known event of each counted value; ten years where there is none."""
    columns = []
    for value in layout.counted_ids:
        where = np.flatnonzero(np.asarray(events[layout.count_by]) == value)
        at = times[where]
        last = np.searchsorted(at, asked, side="left") - 1
        days = np.full(len(asked), _NEVER_DAYS)
        found = np.searchsorted(where, known, side="left") <= last
        days[found] = (asked[found] - at[last[found]]) / MICROS_PER_DAY
        columns.append(np.log1p(days))
    return np.stack(columns, axis=1) if columns else np.zeros((len(asked), 0))


def _same_value(
    layout: Layout,
    events: Arrays,
    queries: Arrays,
    known: npt.NDArray[np.intp],
    upto: npt.NDArray[np.intp],
) -> Float:
    """Log count of known earlier events that share the query's value, a categorical field; 0 where it has none."""
    columns = []
    for name in layout.categorical:
        wanted = np.asarray(queries[f"query_{name}"])
        happened = np.asarray(events[name])
        count = np.zeros(len(wanted))
        for value in np.unique(wanted[wanted >= FIRST_VALUE]):
            rows = wanted == value
            running = np.concatenate([[0], np.cumsum(happened == value)])
            count[rows] = running[upto[rows]] - running[known[rows]]
        columns.append(np.log1p(count))
    return np.stack(columns, axis=1)
