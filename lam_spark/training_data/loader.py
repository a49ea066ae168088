"""Batches of blocks from the Parquet files of one pinned Delta version, read by petastorm.

Each rank reads its own files, every block once per epoch. Row groups and the blocks within them are shuffled by
(seed, epoch). Memory: one row group per rank, which is a file of at most `snapshot.blocks_per_file` blocks, and the
names of its files. Cost: linear in blocks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlparse

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from lam_spark.errors import ModelError
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, unfold

# Maps columns of blocks, (blocks, length) each, to a (blocks,) mask of the blocks to read.
BlockFilter = Callable[[Block], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class BlockFiles:
    """Files of one rank.

    Attributes:
        urls: `file:` URLs (or others that petastorm's file system resolvers support), sorted.
        blocks: total number of blocks in them.
    """

    urls: tuple[str, ...]
    blocks: int


def files_of_rank(urls: Sequence[str], rank: int, world_size: int) -> BlockFiles:
    """Return the files of one rank: largest first, each file goes to the rank with the fewest blocks.

    Raises:
        ModelError: there are fewer files than ranks, so some rank would have nothing to read.
    """
    if len(urls) < world_size:
        raise ModelError(
            f"expected at least {world_size} snapshot files for a training.world_size of {world_size}, got "
            f"{len(urls)}: set snapshot.files to at least {world_size} and run the stage 'snapshot' again. If it is "
            "set already, fewer files contain queries: reduce training.world_size"
        )
    sizes = sorted(((_block_count(url), url) for url in urls), key=lambda pair: (-pair[0], pair[1]))
    shares: list[tuple[int, list[str]]] = [(0, []) for _ in range(world_size)]
    for blocks, url in sizes:
        smallest = min(range(world_size), key=lambda r: (shares[r][0], r))
        shares[smallest] = (shares[smallest][0] + blocks, [*shares[smallest][1], url])
    return BlockFiles(tuple(sorted(shares[rank][1])), shares[rank][0])


def sample_files(urls: Sequence[str], blocks: int, min_files: int) -> list[str]:
    """Sample files in order of a hash of their names, which samples customers.

    Args:
        urls: files; customers are distributed over them by a hash.
        blocks: number of blocks to reach; the last file may exceed it.
        min_files: minimum number of files.
    """
    shuffled = sorted(urls, key=lambda url: hashlib.sha256(url.rsplit("/", 1)[-1].encode()).digest())
    sampled_blocks = 0
    for number, url in enumerate(shuffled):
        if sampled_blocks >= blocks and number >= min_files:
            return sorted(shuffled[:number])
        sampled_blocks += _block_count(url)
    return sorted(shuffled)


def block_batches(
    files: BlockFiles,
    layout: Layout,
    micro_batch_size: int,
    seed: int | None,
    epoch: int = 0,
    block_filter: BlockFilter | None = None,
) -> Iterator[Block]:
    """Read every block of the rank once, in batches (the last may be smaller).

    Args:
        files: files of this rank.
        layout: columns to read and their lengths.
        micro_batch_size: blocks per batch.
        seed: shuffles row groups and blocks together with the epoch; None keeps the order of the files.
        epoch: number of the epoch.
        block_filter: selects the blocks to read; None reads all.

    Yields:
        column -> (blocks, length) array, or (blocks, queries, numbers) for `Layout.values_per_query`.
    """
    rng = np.random.default_rng(None if seed is None else [seed, epoch])
    rest: Block | None = None  # less than a batch
    for group in _row_groups(files, layout, seed, epoch):
        n_blocks = len(group["window"])
        order = np.arange(n_blocks) if seed is None else rng.permutation(n_blocks)
        if block_filter is not None:
            order = order[block_filter(group)[order]]
        if rest is not None:
            n_missing = micro_batch_size - len(rest["window"])
            rest = _concatenate(rest, _take(group, order[:n_missing]))
            order = order[n_missing:]
            if len(rest["window"]) < micro_batch_size:
                continue
            yield rest
        # Copy one batch at a time: a second copy of the row group would double the memory.
        n_complete = len(order) - len(order) % micro_batch_size
        for first in range(0, n_complete, micro_batch_size):
            yield _take(group, order[first : first + micro_batch_size])
        rest = _take(group, order[n_complete:]) if n_complete < len(order) else None
    if rest is not None:
        yield rest


def _take(blocks: Block, rows: npt.NDArray[np.intp]) -> Block:
    return {name: values[rows] for name, values in blocks.items()}


def _concatenate(first: Block, second: Block) -> Block:
    return {name: np.concatenate([values, second[name]]) for name, values in first.items()}


def count_blocks(files: BlockFiles, layout: Layout, block_filter: BlockFilter, columns: Sequence[str]) -> int:
    """Count the blocks of the rank that the filter selects; reads only the columns that the filter needs."""
    return sum(int(block_filter(arrays).sum()) for arrays in column_groups(files, layout, columns))


def column_groups(files: BlockFiles, layout: Layout, columns: Sequence[str]) -> Iterator[Block]:
    """Read some columns of each row group of the rank, (blocks, length) each, in the order of the files."""
    return (arrays for _, arrays in _located_groups(files, layout, columns))


@dataclass(frozen=True)
class BlockLocation:
    """Location of a block: file URL, row group in the file and row in the group (both from 0)."""

    url: str
    group: int
    row: int


def locate_blocks(files: BlockFiles, layout: Layout, blocks: Block) -> list[BlockLocation]:
    """Find the blocks of a batch in the rank's files by reading all their integer columns again."""
    names = [name for name, (dtype, _) in layout.columns.items() if dtype.startswith("int")]

    def block_keys(arrays: Block) -> list[bytes]:
        columns = (arrays[name] for name in names)
        return [b"".join(row.tobytes() for row in rows) for rows in zip(*columns, strict=True)]

    wanted_keys = set(block_keys(blocks))
    return [
        BlockLocation(url, group, row)
        for (url, group), arrays in _located_groups(files, layout, names)
        for row, key in enumerate(block_keys(arrays))
        if key in wanted_keys
    ]


def _located_groups(
    files: BlockFiles, layout: Layout, columns: Sequence[str]
) -> Iterator[tuple[tuple[str, int], Block]]:
    """Yield (URL, row group) and some columns of each row group, in the order of the files."""
    for url in files.urls:
        file = pq.ParquetFile(_path(url))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, list(columns))
            arrays = {
                name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, layout.columns[name][1])
                for name in columns
            }
            yield (url, group), arrays


def _row_groups(files: BlockFiles, layout: Layout, seed: int | None, epoch: int) -> Iterator[Block]:
    from petastorm import make_batch_reader  # slow to import, and scoring does not need it

    names = list(layout.columns)
    reader = make_batch_reader(
        [unquote(url) for url in files.urls],  # petastorm does not unquote URLs
        schema_fields=[f"^{name}$" for name in names],
        # Decoding is cheap compared with the model; on few cores a pool only adds copies.
        reader_pool_type="dummy",
        num_epochs=1,
        shuffle_row_groups=seed is not None,
        seed=None if seed is None else seed + epoch,
    )
    try:
        for group in reader:
            yield unfold(layout, {name: np.asarray(getattr(group, name)) for name in names})
    finally:
        # petastorm prints when it closes; stdout is reserved for the summary line of the run.
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            reader.stop()
            reader.join()


@functools.cache
def _block_count(url: str) -> int:
    """Number of blocks in a file; cached because files are immutable."""
    return int(pq.ParquetFile(_path(url)).metadata.num_rows)


def _path(url: str) -> str:
    return unquote(urlparse(url).path)
