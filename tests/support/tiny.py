"""Small layouts, customers, blocks and models that the unit tests share.

Block files are written the way the snapshot writes them: one list column a block column.
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
    """`LAYOUT` with some of its values changed."""
    return dataclasses.replace(LAYOUT, **changes)


def customer(
    shape: Layout,
    times: Sequence[int],
    asked: Sequence[int] = (),
    seed: int = 0,
    split: str | Sequence[str] = "train",
    labels: Sequence[float | Sequence[float]] | None = None,
    **fields: Sequence[float],
) -> Customer:
    """A customer with events at `times` and queries at `asked` (microseconds); fields not given are random."""
    rng = np.random.default_rng(seed)
    events: dict[str, Any] = {
        "event_time": np.asarray(times, np.int64),
        "hour_of_week": rng.integers(0, 168, len(times)).astype(np.int32),
    }
    splits = [split] * len(asked) if isinstance(split, str) else list(split)
    queries: dict[str, Any] = {
        "query_time": np.asarray(asked, np.int64),
        "query_hour_of_week": rng.integers(0, 168, len(asked)).astype(np.int32),
        "query_split": np.asarray([SPLIT_IDS[name] for name in splits], np.int32),
        "query_row": np.arange(len(asked), dtype=np.int32),
    }
    for name, size in zip(shape.categorical, shape.sizes, strict=True):
        events[name] = np.asarray(fields.get(name, rng.integers(1, size, len(times))), np.int32)
        drawn = rng.integers(1, size, len(asked))
        queries[f"query_{name}"] = np.asarray(fields.get(f"query_{name}", drawn), np.int32)
    for name in shape.numeric:
        events[name] = np.asarray(fields.get(name, rng.normal(size=len(times)) * 5), np.float32)
        queries[f"query_{name}"] = rng.normal(size=len(asked)).astype(np.float32)
    for target in shape.targets:
        wanted = (len(asked), target.values) if target.kind == "next" else len(asked)
        given = rng.integers(0, 2, wanted) if labels is None else labels
        queries[f"label_{target.name}"] = np.asarray(given, np.float32)
    return Customer(events, queries, owner=seed + 1)


def blocks_of(shape: Layout, customers: Iterable[Customer]) -> list[Block]:
    """All windows of the customers, packed together."""
    packer = Packer(shape)
    blocks: list[Block] = []
    for one in customers:
        prepared = prepare(shape, one)
        for window in prepared.windows:
            blocks += packer.place(prepared, window, with_loss=True)
    return blocks + list(packer.flush())


def stack(shape: Layout, blocks: Sequence[Block]) -> Block:
    """Blocks as the loader gives them: one array a column, the wide ones (B, Q, inner)."""
    return unfold(shape, {name: np.stack([block[name] for block in blocks]) for name in blocks[0]})


def batch_of(shape: Layout, customers: Iterable[Customer]) -> Batch:
    """The customers' packed blocks as tensors."""
    return as_batch(stack(shape, blocks_of(shape, customers)))


def normaliser(shape: Layout) -> Normaliser:
    """One that changes nothing, with two bins."""
    return Normaliser.neutral(shape, (0.0, 1.0, 2.0))


def lively_model(shape: Layout = LAYOUT, seed: int = 0, size: ModelSize = SIZE) -> LargeActionModel:
    """A model in evaluation mode whose every weight matters: a fresh one starts as the identity."""
    torch.manual_seed(seed)
    model = LargeActionModel(shape, size, normaliser(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write_blocks(path: Path, shape: Layout, blocks: Sequence[Block], rows_per_group: int = 4) -> str:
    """Write a Parquet file of blocks; its `file:` URL."""
    kinds = {"int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32()}
    arrays = {
        name: pa.array([block[name].tolist() for block in blocks], pa.list_(kinds[dtype]))
        for name, (dtype, _) in shape.columns.items()
    }
    pq.write_table(pa.table(arrays), path, row_group_size=rows_per_group)
    return path.as_uri()
