"""Small layouts, customers, blocks and models that the unit tests share.

Block files have the format of the snapshot: one list column per block column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lam_spark.model.artifact import as_batch
from lam_spark.model.transformer import Batch, LargeActionModel, ModelSize, Normaliser
from lam_spark.training_data.layout import MICROS_PER_DAY, SPLIT_IDS, Layout, Target
from lam_spark.training_data.packing import Block, Customer, Packer, prepare, unfold

DAY = MICROS_PER_DAY
HOUR = DAY // 24
START = 17_000 * DAY  # 2016-07-18

LAYOUT = Layout(
    categorical=("action", "item"),
    sizes=(6, 9),
    numeric=("amount",),
    count_by="action",
    counted_ids=(3, 4, 5),
    window_days=(7, 30),
    block_events=16,
    queries_per_block=4,
    targets=(Target("reply"),),
)
SIZE = ModelSize(d_model=16, n_layers=2, n_heads=2, dropout=0.0)


def layout(**changes: Any) -> Layout:
    """`LAYOUT` with some values changed."""
    return dataclasses.replace(LAYOUT, **changes)


def customer(
    shape: Layout,
    times: Sequence[int],
    query_times: Sequence[int] = (),
    seed: int = 0,
    split: str | Sequence[str] = "train",
    labels: Sequence[float | Sequence[float]] | None = None,
    delays: Sequence[int] | int = 0,
    **fields: Sequence[float],
) -> Customer:
    """A customer with events known at `times` and queries at `query_times` (microseconds); other fields are random.

    `delays` is how long before they were known the events happened.
    """
    rng = np.random.default_rng(seed)
    known_at = np.asarray(times, np.int64)
    events: dict[str, Any] = {
        "known_at": known_at,
        "event_time": known_at - np.asarray(delays, np.int64),
        "hour_of_week": rng.integers(0, 168, len(times)).astype(np.int32),
    }
    n_queries = len(query_times)
    splits = [split] * n_queries if isinstance(split, str) else list(split)
    queries: dict[str, Any] = {
        "query_time": np.asarray(query_times, np.int64),
        "query_hour_of_week": rng.integers(0, 168, n_queries).astype(np.int32),
        "query_split": np.asarray([SPLIT_IDS[name] for name in splits], np.int32),
        "query_row": np.arange(n_queries, dtype=np.int32),
    }
    for name, size in zip(shape.categorical, shape.sizes, strict=True):
        events[name] = np.asarray(fields.get(name, rng.integers(1, size, len(times))), np.int32)
        random_ids = rng.integers(1, size, n_queries)
        queries[f"query_{name}"] = np.asarray(fields.get(f"query_{name}", random_ids), np.int32)
    for name in shape.numeric:
        events[name] = np.asarray(fields.get(name, rng.normal(size=len(times)) * 5), np.float32)
        queries[f"query_{name}"] = rng.normal(size=n_queries).astype(np.float32)
    for target in shape.targets:
        label_shape = (n_queries, target.values) if target.kind == "next" else n_queries
        values = rng.integers(0, 2, label_shape) if labels is None else labels
        queries[f"label_{target.name}"] = np.asarray(values, np.float32)
    return Customer(events, queries, customer_index=seed + 1)


def blocks_of(shape: Layout, customers: Iterable[Customer]) -> list[Block]:
    """All windows of the customers, packed into blocks."""
    packer = Packer(shape)
    blocks: list[Block] = []
    for one in customers:
        prepared = prepare(shape, one)
        for window in prepared.windows:
            blocks += packer.add_window(prepared, window, with_loss=True)
    return blocks + list(packer.flush())


def stack(shape: Layout, blocks: Sequence[Block]) -> Block:
    """Blocks as the loader yields them: one unfolded array per column."""
    return unfold(shape, {name: np.stack([block[name] for block in blocks]) for name in blocks[0]})


def batch_of(shape: Layout, customers: Iterable[Customer]) -> Batch:
    """The customers' packed blocks as tensors."""
    return as_batch(stack(shape, blocks_of(shape, customers)))


def normaliser(shape: Layout) -> Normaliser:
    """A normaliser that leaves inputs unchanged, with two bins."""
    return Normaliser.neutral(shape, (0.0, 1.0, 2.0))


def random_model(shape: Layout = LAYOUT, seed: int = 0, size: ModelSize = SIZE) -> LargeActionModel:
    """A model in evaluation mode with noise on every weight; a new model starts as the identity."""
    torch.manual_seed(seed)
    model = LargeActionModel(shape, size, normaliser(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write_blocks(path: Path, shape: Layout, blocks: Sequence[Block], rows_per_group: int = 4) -> str:
    """Write blocks to a Parquet file and return its `file:` URL."""
    types = {"int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32()}
    arrays = {
        name: pa.array([block[name].tolist() for block in blocks], pa.list_(types[dtype]))
        for name, (dtype, _) in shape.columns.items()
    }
    pq.write_table(pa.table(arrays), path, row_group_size=rows_per_group)
    return path.as_uri()
