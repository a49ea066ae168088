"""Packing: no event or query is lost, duplicated or assigned to another customer, and blocks are well filled."""

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
# Per customer: days of the events (possibly several a day) and days of the queries.
HISTORIES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=60).map(sorted),
        st.lists(st.integers(0, 42), max_size=9).map(sorted),
    ),
    min_size=1,
    max_size=6,
)


def numbered_customers(shape: Layout, histories: list[Any]) -> list[Customer]:
    """Customers whose event amounts and query rows are unique numbers: 1000 * customer + index."""
    customers = []
    for number, (event_days, query_days) in enumerate(histories):
        one = customer(
            shape,
            [START + day * DAY for day in event_days],
            [START + day * DAY for day in query_days],
            seed=number,
            amount=[1000 * number + i for i in range(len(event_days))],
        )
        rows = np.arange(1000 * number, 1000 * number + len(query_days), dtype=np.int32)
        one.queries["query_row"] = rows
        customers.append(one)
    return customers


def queries_in(block: Block) -> list[tuple[int, list[int]]]:
    """(query row, amounts of the visible events) of every query in a block."""
    queries = []
    for slot in np.flatnonzero(block["query_row"] >= 0):
        in_window = block["window"] == block["query_window"][slot]
        visible = in_window & (np.arange(len(in_window)) < block["query_index"][slot])
        queries.append((int(block["query_row"][slot]), block["event_amount"][visible].astype(int).tolist()))
    return queries


@pytest.mark.parametrize("shape", SHAPES)
@given(histories=HISTORIES)
def test_each_event_is_new_once_and_each_query_occurs_once(shape: Layout, histories: list[Any]) -> None:
    customers = numbered_customers(shape, histories)
    blocks = blocks_of(shape, customers)
    new = sorted(int(n) for b in blocks for n in b["event_amount"][b["is_new"] == 1])
    assert new == sorted(int(n) for one in customers for n in one.events["amount"])
    rows = sorted(row for block in blocks for row, _ in queries_in(block))
    assert rows == sorted(int(row) for one in customers for row in one.queries["query_row"])


@pytest.mark.parametrize("shape", SHAPES)
@given(histories=HISTORIES)
def test_a_query_sees_the_latest_events_of_its_own_customer_before_it(
    shape: Layout, histories: list[Any]
) -> None:
    customers = numbered_customers(shape, histories)
    for block in blocks_of(shape, customers):
        for row, visible in queries_in(block):
            one, query = customers[row // 1000], row % 1000
            is_earlier = one.events["known_at"] < one.queries["query_time"][query]
            earlier = one.events["amount"][is_earlier].astype(int).tolist()
            assert visible == earlier[len(earlier) - len(visible) :]
            assert len(visible) >= min(len(earlier), shape.block_events // 2)


@pytest.mark.parametrize("shape", SHAPES)
@given(histories=HISTORIES)
def test_every_column_has_its_shape_and_every_window_one_customer(
    shape: Layout, histories: list[Any]
) -> None:
    customers = numbered_customers(shape, histories)
    for block in blocks_of(shape, customers):
        for name, (dtype, length) in shape.columns.items():
            assert (block[name].dtype, block[name].shape) == (np.dtype(dtype), (length,)), name
        assert set(block) == set(shape.columns)
        in_use = block["window"] > 0
        assert (block["is_new"][~in_use] == 0).all()
        assert (block["query_window"][block["query_row"] < 0] == 0).all()
        for number in np.unique(block["window"][in_use]):
            slots = np.flatnonzero(block["window"] == number)
            assert (np.diff(slots) == 1).all()  # contiguous slots
            numbers = set(block["event_amount"][slots].astype(int) // 1000)
            numbers |= set(block["query_row"][block["query_window"] == number] // 1000)
            assert len(numbers) == 1
            assert (np.diff(block["known_at"][slots]) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@given(histories=HISTORIES)
def test_a_block_has_the_initial_counts_of_its_only_window_that_starts_later(
    shape: Layout, histories: list[Any]
) -> None:
    customers = numbered_customers(shape, histories)
    first_times = [one.events["known_at"][0] if len(one.events["known_at"]) else None for one in customers]
    for block in blocks_of(shape, customers):
        later_windows = set()
        for number in set(block["window"]) - {0}:
            first_slot = np.flatnonzero(block["window"] == number)[0]
            customer_number, event_number = divmod(int(block["event_amount"][first_slot]), 1000)
            if event_number:
                later_windows.add((number, block["known_at"][first_slot]))
            else:
                assert block["known_at"][first_slot] == first_times[customer_number]
        assert len(later_windows) <= 1
        initial = (block["initial_window"][0], block["initial_time"][0])
        assert later_windows == ({initial} if later_windows else set())
        assert bool(block["initial_counts"].any()) == bool(later_windows)


@pytest.mark.parametrize("shape", SHAPES)
@given(histories=HISTORIES)
def test_a_query_keeps_its_values_label_and_aggregates(shape: Layout, histories: list[Any]) -> None:
    customers = numbered_customers(shape, histories)
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
    visible: int, later: int, more_later: int, block_events: int
) -> None:
    """The length of the history that a query sees must not depend on later events."""
    starts = []
    for events in (visible + later, visible + later + more_later):
        windows = cut_windows(events, np.array([visible]), block_events, 4)
        starts += [window.start for window in windows if len(window.queries)]
    assert starts[0] == starts[1]


@example(8176, 256, 6, 16)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40), st.integers(2, 17))
def test_truncated_events_do_not_move_the_window_of_a_query(
    truncated: int, further: int, later: int, block_events: int
) -> None:
    """Truncation depends on later events, which the start of a query's window must not reveal."""
    kept = block_events + further  # events before the query
    starts = []
    for truncated_events in (0, truncated):
        visible = truncated + kept - truncated_events
        windows = cut_windows(visible + later, np.array([visible]), block_events, 4, truncated_events)
        starts += [window.start + truncated_events for window in windows if len(window.queries)]
        new_events = [n for window in windows for n in range(window.new_from, window.end)]
        assert new_events == list(range(visible + later))
    assert starts[0] == starts[1]


def test_more_queries_than_slots_share_the_same_history() -> None:
    shape = layout(queries_per_block=2)
    days = [START + day * DAY for day in range(5)]
    blocks = blocks_of(shape, [customer(shape, days, [START + 9 * DAY] * 5, amount=range(5))])
    queries = [query for block in blocks for query in queries_in(block)]
    assert sorted(queries) == [(row, [0, 1, 2, 3, 4]) for row in range(5)]
    assert sum(int(block["is_new"].sum()) for block in blocks) == 5


def test_a_customer_without_events_can_have_queries() -> None:
    shape = layout()
    (block,) = blocks_of(shape, [customer(shape, [], [START, START + DAY])])
    assert queries_in(block) == [(0, []), (1, [])]
    assert (block["window"] == 0).all()


@pytest.mark.parametrize(("events", "windows"), [(15, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_a_history_is_cut_only_if_it_is_longer_than_a_block(events: int, windows: int) -> None:
    times = [START + i * DAY for i in range(events)]
    blocks = blocks_of(layout(), [customer(layout(), times)])
    assert sum(len(np.unique(b["window"][b["window"] > 0])) for b in blocks) == windows


def test_scoring_packs_only_windows_with_queries_and_marks_no_event_as_new() -> None:
    shape = layout()
    long_history = customer(shape, [START + i * DAY for i in range(40)], [START + 40 * DAY])
    without_queries = customer(shape, [START])
    blocks = list(pack_queries(shape, [long_history, without_queries]))
    assert len(blocks) == 1
    assert (blocks[0]["is_new"] == 0).all()
    assert len(queries_in(blocks[0])) == 1


@pytest.mark.parametrize("lengths", [(12, 10, 4, 6), (10, 12, 4, 6), (10, 12, 6, 4)])
def test_a_window_goes_to_the_block_with_the_least_room(lengths: tuple[int, ...]) -> None:
    shape = layout()
    blocks = blocks_of(shape, [customer(shape, [START + i * DAY for i in range(n)]) for n in lengths])
    assert [int((block["window"] > 0).sum()) for block in blocks] == [16, 16]


def test_blocks_are_more_than_90_percent_full() -> None:
    shape = layout(block_events=256, queries_per_block=16)
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.lognormal(4.5, 1.0, 400).astype(int), 1, 2000)
    customers = [customer(shape, START + np.arange(n) * DAY, seed=i) for i, n in enumerate(lengths)]
    blocks = blocks_of(shape, customers)
    used_slots = sum(int((block["window"] > 0).sum()) for block in blocks)
    assert used_slots / (len(blocks) * shape.block_events) > 0.9


def test_a_query_without_who_values_gets_those_of_the_last_event_that_set_them() -> None:
    """The event may precede the block; the query's own value has priority, and later events have no effect."""
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
    original = {name: one.queries[name].copy() for name in ("query_item", "query_amount")}
    blocks = blocks_of(shape, [one])
    assert len(blocks) > 1  # the last queries do not see the first event
    packed = {
        int(row): (int(block["query_item"][slot]), float(block["query_amount"][slot]))
        for block in blocks
        for slot, row in enumerate(block["query_row"])
        if row >= 0
    }
    assert packed[0][0] == MISSING  # an event at the query's own time is not seen
    assert np.isnan(packed[0][1])
    assert [packed[row] for row in (1, 2, 3, 4)] == [(7, 2.5), (7, 2.5), (4, 0.0), (UNKNOWN, 2.5)]
    for name, values in original.items():
        np.testing.assert_array_equal(one.queries[name], values)  # the input is not modified


def test_query_fields_of_other_roles_are_unchanged() -> None:
    one = customer(layout(), [START], [START + DAY], item=[7], query_item=[MISSING])
    assert blocks_of(layout(), [one])[0]["query_item"][0] == MISSING


def test_who_values_stay_missing_without_events() -> None:
    shape = layout(who_fields=("item", "amount"))
    one = customer(shape, [], [START], query_item=[MISSING])
    assert blocks_of(shape, [one])[0]["query_item"][0] == MISSING


@pytest.mark.parametrize(
    ("changes", "is_different"),
    [
        ({"window_days": (7, 91)}, True),
        ({"half_life_days": (7.0,)}, True),
        ({"who_fields": ("item",)}, True),
        ({"categorical": ("item", "action")}, True),  # the aggregates follow the order of the fields
        ({"targets": (Target("reply"), Target("buy", "value"))}, True),
        ({"sizes": (7, 12)}, False),
        ({"value_embedding_dims": (0, 4)}, False),
    ],
)
def test_the_packing_digest_changes_with_what_determines_the_blocks(
    changes: dict[str, Any], is_different: bool
) -> None:
    assert (layout(**changes).packing_digest != layout().packing_digest) == is_different


def test_the_packing_digest_does_not_depend_on_the_order_of_the_targets() -> None:
    targets = (Target("reply"), Target("buy", "value"))
    assert layout(targets=targets).packing_digest == layout(targets=targets[::-1]).packing_digest
