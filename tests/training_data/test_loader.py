"""Reading block files: every block once per epoch, for any world size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from lam_spark.errors import ModelError
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.loader import (
    BlockFiles,
    block_batches,
    count_blocks,
    files_of_rank,
    locate_blocks,
    sample_files,
)
from lam_spark.training_data.packing import Block, empty_block
from tests.support.tiny import layout, write_blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

SHAPE = layout(block_events=4, queries_per_block=2)
BLOCKS_PER_FILE = (7, 5, 9)  # row groups of 3: the last of a file is smaller


def numbered_block(shape: Layout, number: int) -> Block:
    """A block with unique values in distinguishable columns."""
    block = empty_block(shape)
    block["known_at"][:] = number
    block["query_time"][:] = number
    block["event_amount"][:] = [number, np.nan, 0, -1]
    block["aggregates"][:] = np.arange(len(block["aggregates"])) + 100 * number
    return block


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of 7, 5 and 9 blocks, numbered from 0 across the files."""
    folder = tmp_path_factory.mktemp("blocks")
    file_urls, first = [], 0
    for number, count in enumerate(BLOCKS_PER_FILE):
        blocks = [numbered_block(SHAPE, n) for n in range(first, first + count)]
        file_urls.append(write_blocks(folder / f"part-{number}.parquet", SHAPE, blocks, rows_per_group=3))
        first += count
    return file_urls


def batches(files: BlockFiles, seed: int | None = 1, epoch: int = 0, size: int = 4) -> list[list[int]]:
    """Numbers of the blocks, by batch."""
    blocks = block_batches(files, SHAPE, size, seed=seed, epoch=epoch)
    return [batch["known_at"][:, 0].tolist() for batch in blocks]


def flat(parts: Sequence[Sequence[int]]) -> list[int]:
    return [number for part in parts for number in part]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 5])
def test_all_ranks_together_read_every_block_once(urls: list[str], world_size: int, seed: int | None) -> None:
    files_by_rank = [files_of_rank(urls, rank, world_size) for rank in range(world_size)]
    numbers_by_rank = [flat(batches(files, seed)) for files in files_by_rank]
    assert [len(numbers) for numbers in numbers_by_rank] == [files.blocks for files in files_by_rank]
    assert sorted(flat(numbers_by_rank)) == list(range(sum(BLOCKS_PER_FILE)))


def test_the_files_are_distributed_evenly(urls: list[str]) -> None:
    assert sorted(files_of_rank(urls, rank, 2).blocks for rank in range(2)) == [9, 12]
    assert files_of_rank(urls[::-1], 0, 2) == files_of_rank(urls, 0, 2)  # independent of their order


def test_each_seed_and_epoch_has_its_own_order(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    first, repeated, second, other = (
        flat(batches(files, seed, epoch)) for seed, epoch in ((1, 1), (1, 1), (1, 2), (2, 1))
    )
    assert first == repeated
    assert first != list(range(21))
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def test_the_blocks_of_a_row_group_are_reshuffled_each_epoch(tmp_path: Path) -> None:
    url = write_blocks(tmp_path / "one.parquet", SHAPE, [numbered_block(SHAPE, n) for n in range(12)], 12)
    files = files_of_rank([url], 0, 1)
    orders = {tuple(flat(batches(files, 1, epoch))) for epoch in (1, 2, 3)}
    assert len(orders) == 3


def test_without_a_seed_the_order_is_that_of_the_files(urls: list[str]) -> None:
    assert flat(batches(files_of_rank(urls, 0, 1), seed=None)) == list(range(21))


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 4, 4, 4, 1]), (7, [7, 7, 7]), (50, [21])])
def test_all_batches_but_the_last_are_complete(urls: list[str], size: int, sizes: list[int]) -> None:
    assert [len(part) for part in batches(files_of_rank(urls, 0, 1), size=size)] == sizes


@pytest.mark.parametrize("seed", [None, 3])
def test_a_filter_skips_blocks_and_batches_stay_complete(urls: list[str], seed: int | None) -> None:
    def has_odd_number(block: Block) -> npt.NDArray[np.bool_]:
        is_odd: npt.NDArray[np.bool_] = block["known_at"][:, 0] % 2 == 1
        return is_odd

    files = files_of_rank(urls, 0, 1)
    assert count_blocks(files, SHAPE, has_odd_number, ["known_at"]) == 10
    filtered = block_batches(files, SHAPE, 4, seed, block_filter=has_odd_number)
    numbers = [batch["known_at"][:, 0].tolist() for batch in filtered]
    assert [len(part) for part in numbers] == [4, 4, 2]
    assert sorted(flat(numbers)) == list(range(1, 21, 2))


def test_a_block_is_read_as_it_was_written(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    for batch in block_batches(files, SHAPE, 4, seed=3):
        for row, number in enumerate(batch["known_at"][:, 0].tolist()):
            expected = numbered_block(SHAPE, number)
            for name, (dtype, _) in SHAPE.columns.items():
                assert batch[name].dtype == np.dtype(dtype), name
                np.testing.assert_array_equal(batch[name][row].ravel(), expected[name], err_msg=name)
        assert batch["aggregates"].shape[1:] == (2, len(SHAPE.aggregate_names))


def test_the_blocks_of_a_batch_are_located_in_the_files(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    first = [0, *np.cumsum(BLOCKS_PER_FILE)]
    located = 0
    for batch in block_batches(files, SHAPE, 4, seed=3):
        locations = locate_blocks(files, SHAPE, batch)
        numbers = [first[urls.index(one.url)] + 3 * one.group + one.row for one in locations]
        assert numbers == sorted(batch["known_at"][:, 0].tolist())
        located += len(numbers)
    assert located == 21


def test_reading_prints_nothing_to_stdout(urls: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    batches(files_of_rank(urls, 0, 1))
    assert capfd.readouterr().out == ""
    unfinished = block_batches(files_of_rank(urls, 0, 1), SHAPE, 1, seed=None)
    next(unfinished)
    print("other output while a file is read")
    assert capfd.readouterr().out == "other output while a file is read\n"
    unfinished.close()
    assert capfd.readouterr().out == ""


def test_files_are_sampled_by_their_names(urls: list[str]) -> None:
    blocks = {url: files_of_rank([url], 0, 1).blocks for url in urls}
    total = sum(blocks.values())
    assert sample_files(urls, total, 1) == sorted(urls)
    for limit in range(1, total):
        sample = sample_files(urls[::-1], limit, 1)
        assert set(sample) <= set(sample_files(urls, limit + 1, 1))
        sampled_blocks = sum(blocks[url] for url in sample)
        assert sampled_blocks >= limit
        assert sampled_blocks - max(blocks[url] for url in sample) < limit
    assert [len(sample_files(urls, 1, min_files)) for min_files in (1, 2, 99)] == [1, 2, len(urls)]


def test_fewer_files_than_ranks_are_refused(urls: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        files_of_rank(urls, 0, 4)
    assert str(caught.value) == (
        "expected at least 4 snapshot files for a training.world_size of 4, got 3: set snapshot.files to at least 4 "
        "and run the stage 'snapshot' again. If it is set already, fewer files contain queries: reduce "
        "training.world_size"
    )


def test_a_folder_with_a_space_is_read(tmp_path: Path) -> None:
    """Spark returns URLs with escaped spaces, and the path of a workspace may contain one."""
    folder = tmp_path / "my workspace"
    folder.mkdir()
    url = write_blocks(folder / "one.parquet", SHAPE, [numbered_block(SHAPE, n) for n in range(2)])
    assert "%20" in url
    assert flat(batches(files_of_rank([url], 0, 1), seed=None)) == [0, 1]
