"""Made-up customers, blocks and their files for the benchmarks of training, always the same."""

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
_ASKED = np.array([100, 180, 220, 280], dtype=np.int64) * MICROS_PER_DAY
_SPLITS = np.array([1, 1, 2, 2], np.int32)
# Of `item`: each event's follows from the last one's.
_CHAIN = 40
_FILES = 2


def customer(
    layout: Layout,
    rng: np.random.Generator,
    times: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    splits: npt.NDArray[np.int32],
) -> Customer:
    """One whose next `item` follows from the last one, and who replies to what was just looked at."""
    events, queries = len(times), len(asked)
    sizes = dict(zip(layout.categorical, layout.sizes, strict=True))
    fields = {name: rng.integers(3, size, events).astype(np.int32) for name, size in sizes.items()}
    chain = min(_CHAIN, sizes["item"] - 3)
    fields["item"] = (3 + np.cumsum(rng.integers(1, 4, events)) % chain).astype(np.int32)
    before = np.searchsorted(times, asked) - 1
    return Customer(
        {
            "event_time": times,
            "hour_of_week": (times // 3_600_000_000 % 168).astype(np.int32),
            **fields,
            **{name: rng.gamma(2, 5, events).astype(np.float32) for name in layout.numeric},
        },
        {
            "query_time": asked,
            "query_hour_of_week": np.zeros(queries, np.int32),
            "query_split": splits,
            "query_row": np.full(queries, -1, np.int32),
            **{f"query_{name}": np.full(queries, 3, np.int32) for name in layout.categorical},
            **{f"query_{name}": np.full(queries, np.nan, np.float32) for name in layout.numeric},
            "label_reply": (fields["item"][before.clip(0)] % 2).astype(np.float32),
        },
    )


def customers(layout: Layout, rng: np.random.Generator) -> Iterator[Customer]:
    """Customers without end, of 60 to 500 events and four queries."""
    while True:
        times = np.sort(rng.integers(0, DAYS * MICROS_PER_DAY, int(rng.integers(60, 500))))
        yield customer(layout, rng, times, _ASKED, _SPLITS)


def blocks(layout: Layout, count: int) -> list[Block]:
    """So many full blocks."""
    packer, made = Packer(layout), list[Block]()
    for each in customers(layout, np.random.default_rng(0)):
        prepared = prepare(layout, each)
        for window in prepared.windows:
            made += packer.add_window(prepared, window, with_loss=True)
        if len(made) >= count:
            return made[:count]
    raise AssertionError  # there is no last customer


def write(folder: Path, made: Sequence[Block], times: int = 1) -> tuple[str, ...]:
    """Parquet files of the blocks as the snapshot writes them, two at least; each block `times` times.

    A file is one row group of at most `snapshot.blocks_per_file` blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most, paths = SnapshotConfig().blocks_per_file, list[Path]()
    for part in range(_FILES):
        table = pa.table({name: [block[name] for block in made[part::_FILES]] for name in made[0]})
        all_of_it = pa.concat_tables([table] * times)
        for first in range(0, len(all_of_it), most):
            paths.append(folder / f"{len(paths)}.parquet")
            pq.write_table(all_of_it.slice(first, most), paths[-1], row_group_size=most, compression="zstd")
    return tuple(f"file://{path}" for path in paths)
