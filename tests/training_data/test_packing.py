"""Packing: nothing lost, nothing doubled, nobody mixed up, little wasted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lam_spark.sequences.tokens import MISSING, PADDING, UNKNOWN
from lam_spark.training_data.aggregates import aggregates
from lam_spark.training_data.layout import Layout, Target
from lam_spark.training_data.packing import Block, Customer, cut_windows, pack_queries
from tests.support.tiny import DAY, START, blocks_of, customer, layout

SHAPES = [layout(), layout(block_events=9, queries_per_block=3), layout(block_events=8, queries_per_block=1)]
# A customer: days of the events (several a day), days of the queries.
PEOPLE = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=60).map(sorted),
        st.lists(st.integers(0, 42), max_size=9).map(sorted),
    ),
    min_size=1,
    max_size=6,
)


def people(shape: Layout, drawn: list[Any]) -> list[Customer]:
    """Customers whose events' amounts and queries' rows are numbers that nothing else has."""
    made = []
    for number, (days, asked) in enumerate(drawn):
        one = customer(
            shape,
            [START + day * DAY for day in days],
            [START + day * DAY for day in asked],
            seed=number,
            amount=[1000 * number + i for i in range(len(days))],
        )
        one.queries["query_row"] = np.arange(1000 * number, 1000 * number + len(asked), dtype=np.int32)
        made.append(one)
    return made


def queries_in(block: Block) -> list[tuple[int, list[int]]]:
    """(query's number, numbers of the events that it sees) of every query in a block."""
    found = []
    for slot in np.flatnonzero(block["query_row"] >= 0):
        mine = block["window"] == block["query_window"][slot]
        seen = mine & (np.arange(len(mine)) < block["query_index"][slot])
        found.append((int(block["query_row"][slot]), block["event_amount"][seen].astype(int).tolist()))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@given(drawn=PEOPLE)
def test_each_event_is_new_once_and_each_query_asked_once(shape: Layout, drawn: list[Any]) -> None:
    customers = people(shape, drawn)
    blocks = blocks_of(shape, customers)
    new = sorted(int(n) for b in blocks for n in b["event_amount"][b["is_new"] == 1])
    assert new == sorted(int(n) for one in customers for n in one.events["amount"])
    asked = sorted(row for block in blocks for row, _ in queries_in(block))
    assert asked == sorted(int(row) for one in customers for row in one.queries["query_row"])


@pytest.mark.parametrize("shape", SHAPES)
@given(drawn=PEOPLE)
def test_a_query_sees_the_latest_of_its_own_customers_events_before_it(
    shape: Layout, drawn: list[Any]
) -> None:
    customers = people(shape, drawn)
    for block in blocks_of(shape, customers):
        for row, seen in queries_in(block):
            one, query = customers[row // 1000], row % 1000
            earlier = one.events["event_time"] < one.queries["query_time"][query]
            before = one.events["amount"][earlier].astype(int).tolist()
            assert seen == before[len(before) - len(seen) :]
            assert len(seen) >= min(len(before), shape.block_events // 2)


@pytest.mark.parametrize("shape", SHAPES)
@given(drawn=PEOPLE)
def test_every_column_has_its_shape_and_every_segment_one_customer(shape: Layout, drawn: list[Any]) -> None:
    customers = people(shape, drawn)
    for block in blocks_of(shape, customers):
        for name, (dtype, length) in shape.columns.items():
            assert (block[name].dtype, block[name].shape) == (np.dtype(dtype), (length,)), name
        assert set(block) == set(shape.columns)
        used = block["window"] > 0
        assert (block["is_new"][~used] == 0).all()
        assert (block["query_window"][block["query_row"] < 0] == 0).all()
        for number in np.unique(block["window"][used]):
            slots = np.flatnonzero(block["window"] == number)
            assert (np.diff(slots) == 1).all()  # one run: windows do not interleave
            owners = set(block["event_amount"][slots].astype(int) // 1000)
            owners |= set(block["query_row"][block["query_window"] == number] // 1000)
            assert len(owners) == 1
            assert (np.diff(block["event_time"][slots]) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@given(drawn=PEOPLE)
def test_a_block_carries_for_the_one_segment_that_does_not_begin_at_the_beginning(
    shape: Layout, drawn: list[Any]
) -> None:
    customers = people(shape, drawn)
    first = [one.events["event_time"][0] if len(one.events["event_time"]) else None for one in customers]
    for block in blocks_of(shape, customers):
        late = set()
        for number in set(block["window"]) - {0}:
            slots = np.flatnonzero(block["window"] == number)
            owner = int(block["event_amount"][slots[0]]) // 1000
            if block["event_amount"][slots[0]] % 1000:  # not the customer's event number 0
                late.add((number, block["event_time"][slots[0]]))
            else:
                assert block["event_time"][slots[0]] == first[owner]
        assert len(late) <= 1
        assert late == ({(block["initial_window"][0], block["initial_time"][0])} if late else set())
        assert bool(block["initial_counts"].any()) == bool(late)


@pytest.mark.parametrize("shape", SHAPES)
@given(drawn=PEOPLE)
def test_a_query_keeps_its_values_its_label_and_its_aggregates(shape: Layout, drawn: list[Any]) -> None:
    customers = people(shape, drawn)
    summaries = [aggregates(shape, one.events, one.queries) for one in customers]
    for block in blocks_of(shape, customers):
        rows = block["aggregates"].reshape(shape.queries_per_block, -1)
        for slot in np.flatnonzero(block["query_row"] >= 0):
            number, query = divmod(int(block["query_row"][slot]), 1000)
            for name in ("query_time", "query_item", "query_amount", "query_split", "label_reply"):
                assert block[name][slot] == customers[number].queries[name][query], name
            np.testing.assert_array_equal(rows[slot], summaries[number][query])


@example(17, 0, 7, 16)
@given(st.integers(0, 70), st.integers(0, 20), st.integers(0, 40), st.integers(2, 17))
def test_later_events_do_not_move_the_window_of_a_query(
    upto: int, more: int, even_more: int, block_events: int
) -> None:
    """How much history a query sees must not tell how much is still to come."""
    asked = np.array([upto])
    starts = []
    for events in (upto + more, upto + more + even_more):
        starts += [s.start for s in cut_windows(events, asked, block_events, 4) if len(s.queries)]
    assert starts[0] == starts[1]


@example(8176, 256, 6, 16)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40), st.integers(2, 17))
def test_events_that_are_cut_off_do_not_move_the_window_of_a_query(
    older: int, further: int, more: int, block_events: int
) -> None:
    """They are cut off because others came after the query: where its window starts would tell how many."""
    held = block_events + further  # before the query
    starts = []
    for cut in (0, older):
        upto = older + held - cut
        windows = cut_windows(upto + more, np.array([upto]), block_events, 4, cut)
        starts += [s.start + cut for s in windows if len(s.queries)]
        covered = [n for s in windows for n in range(s.new_from, s.end)]
        assert covered == list(range(upto + more))
    assert starts[0] == starts[1]


def test_more_queries_than_slots_share_the_same_history() -> None:
    shape = layout(queries_per_block=2)
    days = [START + day * DAY for day in range(5)]
    blocks = blocks_of(shape, [customer(shape, days, [START + 9 * DAY] * 5, amount=range(5))])
    seen = [query for block in blocks for query in queries_in(block)]
    assert sorted(seen) == [(row, [0, 1, 2, 3, 4]) for row in range(5)]
    assert sum(int(block["is_new"].sum()) for block in blocks) == 5


def test_a_customer_without_events_can_be_asked() -> None:
    shape = layout()
    (block,) = blocks_of(shape, [customer(shape, [], [START, START + DAY])])
    assert queries_in(block) == [(0, []), (1, [])]
    assert (block["window"] == 0).all()


@pytest.mark.parametrize(("events", "windows"), [(15, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_a_window_is_cut_only_where_the_events_outgrow_the_block(events: int, windows: int) -> None:
    times = [START + i * DAY for i in range(events)]
    blocks = blocks_of(layout(), [customer(layout(), times)])
    assert sum(len(np.unique(b["window"][b["window"] > 0])) for b in blocks) == windows


def test_scoring_packs_only_what_is_asked_and_marks_nothing_as_new() -> None:
    shape = layout()
    long_ago = customer(shape, [START + i * DAY for i in range(40)], [START + 40 * DAY])
    silent = customer(shape, [START])
    blocks = list(pack_queries(shape, [long_ago, silent]))
    assert len(blocks) == 1
    assert (blocks[0]["is_new"] == 0).all()
    assert len(queries_in(blocks[0])) == 1


@pytest.mark.parametrize("lengths", [(12, 10, 4, 6), (10, 12, 4, 6), (10, 12, 6, 4)])
def test_a_segment_goes_where_it_leaves_least_room(lengths: tuple[int, ...]) -> None:
    shape = layout()
    blocks = blocks_of(shape, [customer(shape, [START + i * DAY for i in range(n)]) for n in lengths])
    assert [int((block["window"] > 0).sum()) for block in blocks] == [16, 16]


def test_blocks_are_more_than_nine_tenths_full() -> None:
    shape = layout(block_events=256, queries_per_block=16)
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.lognormal(4.5, 1.0, 400).astype(int), 1, 2000)
    customers = [customer(shape, START + np.arange(n) * DAY, seed=i) for i, n in enumerate(lengths)]
    blocks = blocks_of(shape, customers)
    filled = sum(int((block["window"] > 0).sum()) for block in blocks)
    assert filled / (len(blocks) * shape.block_events) > 0.9


def test_a_query_is_asked_of_whom_the_last_event_before_it_described() -> None:
    """However long ago, beyond the block too; what the query says itself goes first, and nothing later is known."""
    shape = layout(who_fields=("item", "amount"))
    days = [0, *range(10, 50)]
    one = customer(
        shape,
        [START + day * DAY for day in days],
        [START + day * DAY for day in (0, 5, 45, 46, 60)],
        item=[7] + [MISSING] * 39 + [UNKNOWN],
        amount=[2.5] + [np.nan] * 40,
        query_item=[MISSING, MISSING, PADDING, 4, MISSING],
    )
    one.queries["query_amount"] = np.array([np.nan, np.nan, np.nan, 0, np.nan], np.float32)
    asked = {name: one.queries[name].copy() for name in ("query_item", "query_amount")}
    blocks = blocks_of(shape, [one])
    assert len(blocks) > 1  # the last queries do not see the first event
    found = {
        int(row): (int(block["query_item"][slot]), float(block["query_amount"][slot]))
        for block in blocks
        for slot, row in enumerate(block["query_row"])
        if row >= 0
    }
    assert found[0][0] == MISSING  # an event of that instant is not seen
    assert np.isnan(found[0][1])
    assert [found[row] for row in (1, 2, 3, 4)] == [(7, 2.5), (7, 2.5), (4, 0.0), (UNKNOWN, 2.5)]
    for name, values in asked.items():
        np.testing.assert_array_equal(one.queries[name], values)  # the customer's own stay as they are


def test_fields_of_other_roles_are_as_the_query_says_them() -> None:
    one = customer(layout(), [START], [START + DAY], item=[7], query_item=[MISSING])
    assert blocks_of(layout(), [one])[0]["query_item"][0] == MISSING


def test_nobody_without_events_is_described() -> None:
    shape = layout(who_fields=("item", "amount"))
    one = customer(shape, [], [START], query_item=[MISSING])
    assert blocks_of(shape, [one])[0]["query_item"][0] == MISSING


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"window_days": (7, 91)}, True),
        ({"half_life_days": (7.0,)}, True),
        ({"who": ("item",)}, True),
        ({"categorical": ("item", "action")}, True),  # the aggregates are in the fields' order
        ({"targets": (Target("reply"), Target("buy", "value"))}, True),
        ({"sizes": (7, 12)}, False),
        ({"value_embedding_dims": (0, 4)}, False),
    ],
)
def test_a_snapshot_is_known_by_what_decides_its_blocks(changes: dict[str, Any], other: bool) -> None:
    assert (layout(**changes).packing != layout().packing) == other


def test_the_order_of_the_targets_does_not_decide_what_a_block_holds() -> None:
    targets = (Target("reply"), Target("buy", "value"))
    assert layout(targets=targets).packing == layout(targets=targets[::-1]).packing
