"""Batches of blocks from the Parquet files of one pinned Delta version, read by petastorm.

Each rank reads files of its own, every block once an epoch. Row groups and the blocks in them are shuffled
by (seed, epoch). Memory: one row group a rank, which is a file of at most `snapshot.blocks_per_file` blocks, and a name
for each of its files. Time is linear in the blocks.
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

# Some blocks, column -> (blocks, length) array, to a (blocks,) mask of those to be read.
Wanted = Callable[[Block], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class BlockFiles:
    """The files of one rank.

    Attributes:
        urls: `file:` URLs (or what petastorm's file system resolvers know), sorted.
        blocks: rows in them together.
    """

    urls: tuple[str, ...]
    blocks: int


def files_of_rank(urls: Sequence[str], rank: int, ranks: int) -> BlockFiles:
    """Deal the files out to the ranks, largest first to the rank that has least.

    Raises:
        ModelError: fewer files than ranks; some rank would have nothing to read.
    """
    if len(urls) < ranks:
        raise ModelError(
            f"{len(urls)} snapshot files cannot feed {ranks} ranks: set snapshot.files to at least {ranks} and "
            "run the stage 'snapshot' again. Where it is so many already, those with questions are fewer: take fewer "
            "world_size"
        )
    sizes = sorted(((_rows(url), url) for url in urls), key=lambda pair: (-pair[0], pair[1]))
    hands: list[tuple[int, list[str]]] = [(0, []) for _ in range(ranks)]
    for rows, url in sizes:
        least = min(range(ranks), key=lambda r: (hands[r][0], r))
        hands[least] = (hands[least][0] + rows, [*hands[least][1], url])
    return BlockFiles(tuple(sorted(hands[rank][1])), hands[rank][0])


def some_files(urls: Sequence[str], blocks: int, least: int) -> list[str]:
    """Files of about so many blocks, drawn by a hash of their names: what a sample of the customers is.

    Args:
        urls: of the files; customers lie in them by a hash.
        blocks: are enough: the last file that is taken goes beyond.
        least: how many files are taken anyway.
    """
    drawn = sorted(urls, key=lambda url: hashlib.sha256(url.rsplit("/", 1)[-1].encode()).digest())
    held = 0
    for number, url in enumerate(drawn):
        if held >= blocks and number >= least:
            return sorted(drawn[:number])
        held += _rows(url)
    return sorted(drawn)


def block_batches(
    files: BlockFiles,
    layout: Layout,
    micro_batch_size: int,
    seed: int | None,
    epoch: int = 0,
    wanted: Wanted | None = None,
) -> Iterator[Block]:
    """Every block of the rank once, in batches (the last may be smaller).

    Args:
        files: of this rank.
        layout: the columns to read and their lengths.
        micro_batch_size: blocks a batch.
        seed: shuffles row groups and blocks with the epoch's number; None keeps the order of the files.
        epoch: number of the epoch.
        wanted: leaves the other blocks out.

    Yields:
        column -> (blocks, length) array, wide ones as (blocks, queries, inner).
    """
    rng = np.random.default_rng(None if seed is None else [seed, epoch])
    rest: Block | None = None  # fewer than a batch
    for group in _row_groups(files, layout, seed, epoch):
        rows = len(group["window"])
        order = np.arange(rows) if seed is None else rng.permutation(rows)
        if wanted is not None:
            order = order[wanted(group)[order]]
        if rest is not None:
            missing = micro_batch_size - len(rest["window"])
            rest = _joined(rest, _rows_of(group, order[:missing]))
            order = order[missing:]
            if len(rest["window"]) < micro_batch_size:
                continue
            yield rest
        # A batch at a time: a second copy of the group would double what a rank holds.
        whole = len(order) - len(order) % micro_batch_size
        for first in range(0, whole, micro_batch_size):
            yield _rows_of(group, order[first : first + micro_batch_size])
        rest = _rows_of(group, order[whole:]) if whole < len(order) else None
    if rest is not None:
        yield rest


def _rows_of(blocks: Block, rows: npt.NDArray[np.intp]) -> Block:
    return {name: values[rows] for name, values in blocks.items()}


def _joined(first: Block, second: Block) -> Block:
    return {name: np.concatenate([values, second[name]]) for name, values in first.items()}


def count_blocks(files: BlockFiles, layout: Layout, wanted: Wanted, columns: Sequence[str]) -> int:
    """How many blocks of the rank are wanted; reads only the columns that `wanted` looks at."""
    return sum(int(wanted(arrays).sum()) for arrays in column_groups(files, layout, columns))


def column_groups(files: BlockFiles, layout: Layout, columns: Sequence[str]) -> Iterator[Block]:
    """Some columns of each row group of the rank, (blocks, length) each, in the order of the files."""
    return (arrays for _, arrays in _columns_of(files, layout, columns))


@dataclass(frozen=True)
class Place:
    """Where a block lies: a file of the rank by its URL, a row group in it, and a row in that (both from 0)."""

    url: str
    group: int
    row: int


def places_of(files: BlockFiles, layout: Layout, blocks: Block) -> list[Place]:
    """Where the blocks of a batch lie: one more look through the rank's files for the same whole numbers."""
    names = [name for name, (dtype, _) in layout.columns.items() if dtype.startswith("int")]

    def marks(arrays: Block) -> list[bytes]:
        return [
            b"".join(row.tobytes() for row in rows)
            for rows in zip(*(arrays[name] for name in names), strict=True)
        ]

    sought = set(marks(blocks))
    return [
        Place(url, group, row)
        for (url, group), arrays in _columns_of(files, layout, names)
        for row, mark in enumerate(marks(arrays))
        if mark in sought
    ]


def _columns_of(
    files: BlockFiles, layout: Layout, columns: Sequence[str]
) -> Iterator[tuple[tuple[str, int], Block]]:
    """(URL, row group) and some columns of each row group, in the order of the files."""
    for url in files.urls:
        file = pq.ParquetFile(_path(url))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, list(columns))
            yield (
                (url, group),
                {
                    name: table[name]
                    .combine_chunks()
                    .flatten()
                    .to_numpy()
                    .reshape(-1, layout.columns[name][1])
                    for name in columns
                },
            )


def _row_groups(files: BlockFiles, layout: Layout, seed: int | None, epoch: int) -> Iterator[Block]:
    from petastorm import make_batch_reader  # heavy; the scoring path imports this package without it

    names = list(layout.columns)
    reader = make_batch_reader(
        [unquote(url) for url in files.urls],  # petastorm takes a URL's path as it is written
        schema_fields=[f"^{name}$" for name in names],
        # Decoding is cheap beside the model: on few cores a pool only adds copies.
        reader_pool_type="dummy",
        num_epochs=1,
        shuffle_row_groups=seed is not None,
        seed=None if seed is None else seed + epoch,
    )
    try:
        for group in reader:
            yield unfold(layout, {name: np.asarray(getattr(group, name)) for name in names})
    finally:
        # petastorm prints when it closes; stdout belongs to the run's summary line.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            reader.stop()
            reader.join()


@functools.cache
def _rows(url: str) -> int:
    """Of a file, which is never written again."""
    return int(pq.ParquetFile(_path(url)).metadata.num_rows)


def _path(url: str) -> str:
    return unquote(urlparse(url).path)
