"""Synthetic customers, blocks and block files for the training benchmarks; the same on every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lam_spark.config import SnapshotConfig
from lam_spark.training_data.layout import MICROS_PER_DAY, Layout
from lam_spark.training_data.packing import Block, Customer, Packer, prepare

DAYS = 300
_QUERY_TIMES = np.array([100, 180, 220, 280], dtype=np.int64) * MICROS_PER_DAY
_SPLITS = np.array([1, 1, 2, 2], np.int32)
# Values of `item` in the cycle in which each event's item follows from the previous one.
_CYCLE = 40
_FILES = 2


def make_customer(
    layout: Layout,
    rng: np.random.Generator,
    times: npt.NDArray[np.int64],
    query_times: npt.NDArray[np.int64],
    splits: npt.NDArray[np.int32],
) -> Customer:
    """Customer whose next `item` follows from the last one; the label is the parity of the last item.

    Args:
        layout: fields and shapes.
        rng: draws all other values.
        times: of the events, ascending (microseconds UTC).
        query_times: of the queries, ascending (microseconds UTC).
        splits: of the queries.
    """
    events, queries = len(times), len(query_times)
    fields = {
        name: rng.integers(3, size, events).astype(np.int32)
        for name, size in zip(layout.categorical, layout.sizes, strict=True)
    }
    cycle = min(_CYCLE, dict(zip(layout.categorical, layout.sizes, strict=True))["item"] - 3)
    fields["item"] = (3 + np.cumsum(rng.integers(1, 4, events)) % cycle).astype(np.int32)
    last_event = np.searchsorted(times, query_times) - 1
    return Customer(
        {
            "event_time": times,
            "known_at": times,
            "hour_of_week": (times // 3_600_000_000 % 168).astype(np.int32),
            **fields,
            **{name: rng.gamma(2, 5, events).astype(np.float32) for name in layout.numeric},
        },
        {
            "query_time": query_times,
            "query_hour_of_week": np.zeros(queries, np.int32),
            "query_split": splits,
            "query_row": np.full(queries, -1, np.int32),
            **{f"query_{name}": np.full(queries, 3, np.int32) for name in layout.categorical},
            **{f"query_{name}": np.full(queries, np.nan, np.float32) for name in layout.numeric},
            "label_reply": (fields["item"][last_event.clip(0)] % 2).astype(np.float32),
        },
    )


def customers(layout: Layout, rng: np.random.Generator) -> Iterator[Customer]:
    """Endless customers of 60 to 499 events and four queries."""
    while True:
        times = np.sort(rng.integers(0, DAYS * MICROS_PER_DAY, int(rng.integers(60, 500))))
        yield make_customer(layout, rng, times, _QUERY_TIMES, _SPLITS)


def make_blocks(layout: Layout, count: int) -> list[Block]:
    """`count` full blocks."""
    packer, blocks = Packer(layout), list[Block]()
    for customer in customers(layout, np.random.default_rng(0)):
        prepared = prepare(layout, customer)
        for window in prepared.windows:
            blocks += packer.add_window(prepared, window, with_loss=True)
        if len(blocks) >= count:
            return blocks[:count]
    raise AssertionError("the iterator of customers is endless")


def write_blocks(folder: Path, blocks: Sequence[Block], times: int = 1) -> tuple[str, ...]:
    """Write blocks as the snapshot does: at least two files, one row group a file, `blocks_per_file` at most.

    Args:
        folder: to write into.
        blocks: to write.
        times: how often each block is written.

    Returns:
        `file:` URLs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file_blocks, paths = SnapshotConfig().blocks_per_file, list[Path]()
    for part in range(_FILES):
        table = pa.table({name: [block[name] for block in blocks[part::_FILES]] for name in blocks[0]})
        repeated = pa.concat_tables([table] * times)
        for first in range(0, len(repeated), file_blocks):
            paths.append(folder / f"{len(paths)}.parquet")
            rows = repeated.slice(first, file_blocks)
            pq.write_table(rows, paths[-1], row_group_size=file_blocks, compression="zstd")
    return tuple(f"file://{path}" for path in paths)
