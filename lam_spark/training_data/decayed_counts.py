"""Initial counts: decayed counts of the events before a window, which its block does not hold.

A block holds the latest events; how often a customer did something over a year depends on the earlier ones. The decay
is exponential, so the counts at one time summarise any number of earlier events. Cost: linear in events, independent
of the number of windows. For a truncated history, each window recounts the events within `Layout.lookback`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.training_data.aggregates import NOTHING_TRUNCATED, TruncatedHistory, first_counted_event
from lam_spark.training_data.layout import HOURS_OF_DAY, MICROS_PER_DAY, Layout

_MAX_COUNT = float(np.finfo(np.float16).max)


def initial_counts(
    layout: Layout,
    events: Mapping[str, npt.NDArray[Any]],
    starts: Iterable[int],
    truncated: TruncatedHistory = NOTHING_TRUNCATED,
) -> dict[int, npt.NDArray[np.float32]]:
    """Compute one customer's decayed counts at the start of windows.

    Args:
        layout: fields and half-lives.
        events: `known_at` (n,) int64 microseconds ascending, `hour_of_week` and one (n,) array per categorical field.
        starts: indices of the windows' first events, 0 to n - 1.
        truncated: summary of the events before these. If there are any, counts start at `first_counted_event`.

    Returns:
        start -> (half-lives, `Layout.num_initial_counters`): counts of the events before it, decayed to its time, with
        a relative error of at most 1/2000.
    """
    counts_at: dict[int, npt.NDArray[np.float32]] = {}
    ordered_starts = sorted(set(starts))
    if not ordered_starts:  # common case: the whole history fits into one block
        return counts_at
    half_lives = np.asarray(layout.half_life_days)[:, None] * MICROS_PER_DAY
    times, counters, n_counters = events["known_at"], _counters(layout, events), layout.num_initial_counters
    counts = np.zeros((len(half_lives), n_counters))
    counted_until, counts_time = 0, int(times[ordered_starts[0]])
    first_counted = first_counted_event(layout, times, times[ordered_starts], truncated)
    for start, first in zip(ordered_starts, first_counted, strict=True):
        time = int(times[start])
        if first:
            counts, counted_until, counts_time = np.zeros_like(counts), int(first), time
        added = slice(counted_until, start)
        counts *= np.exp2((counts_time - time) / half_lives)
        weights = np.exp2((times[added] - time) / half_lives)
        for number, weight in enumerate(weights):
            per_counter = np.repeat(weight, counters.shape[1])
            # The extra last counter collects the ids that are not counted.
            sums = np.bincount(counters[added].ravel(), per_counter, n_counters + 1)
            counts[number] += sums[:n_counters]
        # The model takes their logarithm, so half precision suffices; it saves a third of their bytes on disk.
        counts_at[start] = counts.clip(max=_MAX_COUNT).astype(np.float16).astype(np.float32)
        counted_until, counts_time = start, time
    return counts_at


def _counters(layout: Layout, events: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """(n, fields + 1): counter of each field's id (the one after the last if not counted), and of the hour."""
    n_counters, columns = layout.num_initial_counters, []
    for name, part in layout.initial_count_slices.items():
        counter = events[name] + part.start
        columns.append(np.where(counter < part.stop, counter, n_counters))
    columns.append(events["hour_of_week"] % HOURS_OF_DAY + n_counters - HOURS_OF_DAY)
    counters: npt.NDArray[np.int64] = np.stack(columns, axis=1).astype(np.int64)
    return counters
