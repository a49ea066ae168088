"""Reading block files: every block once an epoch, whatever the number of ranks."""

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
BLOCKS_A_FILE = (7, 5, 9)  # row groups of 3: the last of a file is smaller


def numbered_block(shape: Layout, number: int) -> Block:
    """A block that can be told from all others, and whose columns can be told apart."""
    block = empty_block(shape)
    block["event_time"][:] = number
    block["query_time"][:] = number
    block["event_amount"][:] = [number, np.nan, 0, -1]
    block["aggregates"][:] = np.arange(len(block["aggregates"])) + 100 * number
    return block


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of 7, 5 and 9 blocks, numbered through."""
    folder = tmp_path_factory.mktemp("blocks")
    made, first = [], 0
    for number, count in enumerate(BLOCKS_A_FILE):
        blocks = [numbered_block(SHAPE, n) for n in range(first, first + count)]
        made.append(write_blocks(folder / f"part-{number}.parquet", SHAPE, blocks, rows_per_group=3))
        first += count
    return made


def batches(files: BlockFiles, seed: int | None = 1, epoch: int = 0, size: int = 4) -> list[list[int]]:
    """Numbers of the blocks, batch by batch."""
    found = block_batches(files, SHAPE, size, seed=seed, epoch=epoch)
    return [batch["event_time"][:, 0].tolist() for batch in found]


def flat(parts: Sequence[Sequence[int]]) -> list[int]:
    return [number for part in parts for number in part]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 5])
def test_the_ranks_together_read_every_block_once(urls: list[str], ranks: int, seed: int | None) -> None:
    hands = [files_of_rank(urls, rank, ranks) for rank in range(ranks)]
    read = [flat(batches(hand, seed)) for hand in hands]
    assert [len(numbers) for numbers in read] == [hand.blocks for hand in hands]
    assert sorted(flat(read)) == list(range(sum(BLOCKS_A_FILE)))


def test_the_files_are_dealt_out_evenly(urls: list[str]) -> None:
    assert sorted(files_of_rank(urls, rank, 2).blocks for rank in range(2)) == [9, 12]
    assert files_of_rank(urls[::-1], 0, 2) == files_of_rank(urls, 0, 2)  # whatever their order


def test_a_seed_gives_each_epoch_an_order_of_its_own(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    first, again, second, other = (
        flat(batches(files, seed, epoch)) for seed, epoch in ((1, 1), (1, 1), (1, 2), (2, 1))
    )
    assert first == again
    assert first != list(range(21))
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def test_the_blocks_of_a_row_group_are_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    url = write_blocks(tmp_path / "one.parquet", SHAPE, [numbered_block(SHAPE, n) for n in range(12)], 12)
    files = files_of_rank([url], 0, 1)
    orders = {tuple(flat(batches(files, 1, epoch))) for epoch in (1, 2, 3)}
    assert len(orders) == 3


def test_without_a_seed_the_order_is_that_of_the_files(urls: list[str]) -> None:
    assert flat(batches(files_of_rank(urls, 0, 1), seed=None)) == list(range(21))


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 4, 4, 4, 1]), (7, [7, 7, 7]), (50, [21])])
def test_batches_are_whole_and_the_rest_is_kept(urls: list[str], size: int, sizes: list[int]) -> None:
    assert [len(part) for part in batches(files_of_rank(urls, 0, 1), size=size)] == sizes


@pytest.mark.parametrize("seed", [None, 3])
def test_what_is_not_wanted_is_left_out_and_the_batches_are_still_whole(
    urls: list[str], seed: int | None
) -> None:
    def odd(block: Block) -> npt.NDArray[np.bool_]:
        wanted: npt.NDArray[np.bool_] = block["event_time"][:, 0] % 2 == 1
        return wanted

    files = files_of_rank(urls, 0, 1)
    assert count_blocks(files, SHAPE, odd, ["event_time"]) == 10
    read = [
        batch["event_time"][:, 0].tolist() for batch in block_batches(files, SHAPE, 4, seed, block_filter=odd)
    ]
    assert [len(part) for part in read] == [4, 4, 2]
    assert sorted(flat(read)) == list(range(1, 21, 2))


def test_a_block_comes_back_as_it_was_written(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    for batch in block_batches(files, SHAPE, 4, seed=3):
        for row, number in enumerate(batch["event_time"][:, 0].tolist()):
            written = numbered_block(SHAPE, number)
            for name, (dtype, _) in SHAPE.columns.items():
                assert batch[name].dtype == np.dtype(dtype), name
                np.testing.assert_array_equal(batch[name][row].ravel(), written[name], err_msg=name)
        assert batch["aggregates"].shape[1:] == (2, len(SHAPE.aggregate_names))


def test_the_blocks_of_a_batch_are_found_again_in_the_files(urls: list[str]) -> None:
    files = files_of_rank(urls, 0, 1)
    first = [0, *np.cumsum(BLOCKS_A_FILE)]
    found = 0
    for batch in block_batches(files, SHAPE, 4, seed=3):
        places = locate_blocks(files, SHAPE, batch)
        numbers = [first[urls.index(place.url)] + 3 * place.group + place.row for place in places]
        assert numbers == sorted(batch["event_time"][:, 0].tolist())
        found += len(numbers)
    assert found == 21


def test_reading_says_nothing_on_stdout(urls: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    batches(files_of_rank(urls, 0, 1))
    assert capfd.readouterr().out == ""
    begun = block_batches(files_of_rank(urls, 0, 1), SHAPE, 1, seed=None)
    next(begun)
    print("what others say while a file is read")
    assert capfd.readouterr().out == "what others say while a file is read\n"
    begun.close()
    assert capfd.readouterr().out == ""


def test_some_files_are_drawn_by_their_names(urls: list[str]) -> None:
    blocks = {url: files_of_rank([url], 0, 1).blocks for url in urls}
    every = sum(blocks.values())
    assert sample_files(urls, every, 1) == sorted(urls)
    for most in range(1, every):
        drawn = sample_files(urls[::-1], most, 1)
        assert set(drawn) <= set(sample_files(urls, most + 1, 1))
        held = sum(blocks[url] for url in drawn)
        assert held >= most
        assert held - max(blocks[url] for url in drawn) < most
    assert [len(sample_files(urls, 1, least)) for least in (1, 2, 99)] == [1, 2, len(urls)]


def test_fewer_files_than_ranks_are_refused(urls: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        files_of_rank(urls, 0, 4)
    assert str(caught.value) == (
        "3 snapshot files cannot feed 4 ranks: set snapshot.files to at least 4 and run the stage 'snapshot' again. "
        "Where it is so many already, those with questions are fewer: take fewer ranks"
    )


def test_a_folder_with_a_space_is_read(tmp_path: Path) -> None:
    """Spark gives the files' URLs with the space escaped; a workspace may be called so."""
    folder = tmp_path / "our workspace"
    folder.mkdir()
    url = write_blocks(folder / "one.parquet", SHAPE, [numbered_block(SHAPE, n) for n in range(2)])
    assert "%20" in url
    assert flat(batches(files_of_rank([url], 0, 1), seed=None)) == [0, 1]
