"""What decayed_counts were before a window begins: faded counts of the events that its block does not hold.

A block holds the latest events; how often somebody did a thing over a year is in those before. An exponential fades
the same wherever it is cut, so one set of counts stands for any number of them. Linear in events, whatever their
number and the number of windows; but where a customer's oldest events are cut off, each window counts anew what lies
within reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.training_data.aggregates import NOTHING_TRUNCATED, TruncatedHistory, first_known
from lam_spark.training_data.layout import HOURS_OF_DAY, MICROS_PER_DAY, Layout

_MOST_COUNT = float(np.finfo(np.float16).max)


def initial_counts(
    layout: Layout,
    events: Mapping[str, npt.NDArray[Any]],
    starts: Iterable[int],
    older: TruncatedHistory = NOTHING_TRUNCATED,
) -> dict[int, npt.NDArray[np.float32]]:
    """The decayed_counts of one customer before some of the events.

    Args:
        layout: fields and half-lives.
        events: `event_time` (n,) int64 microseconds ascending, `hour_of_week` and a (n,) array a categorical field.
        starts: numbers of events, 0 to n - 1.
        older: of the events before these; where there are some, only what `first_known` lets count does.

    Returns:
        start -> (half-lives, `Layout.initial_count_rows`): what the events before it count at its time, to a 2,000th.
    """
    found: dict[int, npt.NDArray[np.float32]] = {}
    wanted = sorted(set(starts))
    if not wanted:  # most customers: all that they did fits into a block
        return found
    half_lives = np.asarray(layout.half_life_days)[:, None] * MICROS_PER_DAY
    times, rows, width = events["event_time"], _rows(layout, events), layout.initial_count_rows
    counts, before, at = np.zeros((len(half_lives), width)), 0, int(times[wanted[0]])
    known = first_known(layout, times, times[wanted], older)
    for start, first in zip(wanted, known, strict=True):
        if first:
            counts, before, at = np.zeros_like(counts), int(first), int(times[start])
        time, new = int(times[start]), slice(before, start)
        counts *= np.exp2((at - time) / half_lives)
        weights = np.exp2((times[new] - time) / half_lives)
        for number, weight in enumerate(weights):
            each = np.repeat(weight, rows.shape[1])
            # One more than are initial: what is not counted.
            counts[number] += np.bincount(rows[new].ravel(), each, width + 1)[:width]
        # A logarithm is taken of them: half precision does, and a third of the snapshot's bytes for them goes.
        found[start] = counts.clip(max=_MOST_COUNT).astype(np.float16).astype(np.float32)
        before, at = start, time
    return found


def _rows(layout: Layout, events: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """(n, fields + 1): the row of each field's id, or the one after the last; that of the hour."""
    last, columns = layout.initial_count_rows, []
    for name, place in layout.initial_count_slices.items():
        row = events[name] + place.start
        columns.append(np.where(row < place.stop, row, last))
    columns.append(events["hour_of_week"] % HOURS_OF_DAY + last - HOURS_OF_DAY)
    rows: npt.NDArray[np.int64] = np.stack(columns, axis=1).astype(np.int64)
    return rows
