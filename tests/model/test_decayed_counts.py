"""The faded counts that the answers know: by hand, against a slow count, and of nothing that a query does not see."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lam_spark.model.attention import query_event_mask
from lam_spark.model.decayed_counts import DecayedCounts, counter_slices, num_counters
from lam_spark.model.transformer import Batch
from lam_spark.training_data.decayed_counts import initial_counts
from lam_spark.training_data.layout import HOURS_OF_DAY, Layout, Target
from lam_spark.training_data.packing import Customer
from tests.support.tiny import DAY, LAYOUT, START, batch_of, customer, layout, random_model

HALF_LIVES = (2.0, 30.0)


def habits_of(shape: Layout, batch: Batch) -> Tensor:
    """The decayed_counts of a batch's queries, each of what it sees."""
    counts: Tensor = DecayedCounts(shape)(batch, query_event_mask(batch))
    return counts


def test_an_event_counts_less_the_longer_ago() -> None:
    one = customer(LAYOUT, [START, START + 10 * DAY, START + 15 * DAY], [START + 20 * DAY], item=[3, 4, 3])
    batch = batch_of(LAYOUT, [one])
    seen = torch.zeros(1, LAYOUT.queries_per_block, LAYOUT.block_events, dtype=torch.bool)
    seen[0, 0, :2] = True  # the third is not seen
    counts = DecayedCounts(layout(half_life_days=(10.0,)))(batch, seen)
    assert counts.shape == (1, LAYOUT.queries_per_block, 1, num_counters(LAYOUT))
    first = counter_slices(LAYOUT)["item"].start
    expected = [math.log1p(0.25), math.log1p(0.5)]
    assert counts[0, 0, 0, first + 3 : first + 5].tolist() == pytest.approx(expected, rel=1e-5)
    assert not counts[0, 1:].any()


def test_all_fields_and_hours_are_counted_as_a_slow_count_does() -> None:
    rng = np.random.default_rng(3)
    people = []
    for seed in range(6):
        times = START + np.sort(rng.integers(0, 90 * DAY, 5))
        asked = START + np.sort(rng.integers(0, 120 * DAY, 3))
        people.append(customer(LAYOUT, times.tolist(), asked.tolist(), seed=seed))
    shape = layout(half_life_days=HALF_LIVES)
    batch = batch_of(shape, people)
    counts = habits_of(shape, batch).numpy()
    columns = {name: batch[f"event_{name}"].numpy() for name in LAYOUT.categorical}
    hour = batch["hour_of_week"].numpy() % HOURS_OF_DAY
    rows, end = counter_slices(LAYOUT), num_counters(LAYOUT)
    asked = batch["query_window"].numpy()
    assert (asked > 0).sum() > 5
    for block, query in zip(*np.nonzero(asked), strict=True):
        slow = np.zeros((len(HALF_LIVES), end))
        for slot in range(int(batch["query_index"][block, query])):
            if batch["window"][block, slot] != asked[block, query]:
                continue
            ago = float(batch["query_time"][block, query] - batch["event_time"][block, slot]) / DAY
            places = [rows[name].start + values[block, slot] for name, values in columns.items()]
            for number, days in enumerate(HALF_LIVES):
                slow[number, [*places, end - HOURS_OF_DAY + hour[block, slot]]] += 0.5 ** (ago / days)
        np.testing.assert_allclose(counts[block, query], np.log1p(slow), rtol=1e-3, atol=1e-5)


def test_rare_values_of_a_large_field_are_not_counted() -> None:
    shape = dataclasses.replace(LAYOUT, sizes=tuple(500 for _ in LAYOUT.categorical))
    assert num_counters(shape) == 64 * len(shape.categorical) + HOURS_OF_DAY
    one = customer(shape, [START, START + DAY], [START + 2 * DAY], action=[63, 64], item=[7, 8])
    seen = torch.zeros(1, shape.queries_per_block, shape.block_events, dtype=torch.bool)
    seen[0, 0, :2] = True
    counts = DecayedCounts(dataclasses.replace(shape, half_life_days=(10.0,)))(batch_of(shape, [one]), seen)[
        0, 0, 0
    ]
    rows = counter_slices(shape)
    assert counts[rows["action"]].nonzero().flatten().tolist() == [63]
    assert counts[rows["item"]].nonzero().flatten().tolist() == [7, 8]


def test_who_somebody_is_is_no_habit_unless_a_target_asks_for_it() -> None:
    shape = dataclasses.replace(LAYOUT, who_fields=("item",))
    assert list(counter_slices(shape)) == ["action"]
    assert num_counters(shape) == LAYOUT.sizes[0] + HOURS_OF_DAY
    batch = batch_of(shape, [customer(shape, [START], [START + DAY], action=[4])])
    counts = habits_of(dataclasses.replace(shape, half_life_days=(10.0,)), batch)
    assert counts[0, 0, 0, : LAYOUT.sizes[0]].nonzero().flatten().tolist() == [4]
    asked = dataclasses.replace(shape, targets=(Target("items", "next", "item", 4),))
    assert counter_slices(asked)["item"] == slice(LAYOUT.sizes[0], LAYOUT.sizes[0] + 7)


def test_what_a_target_asks_for_is_counted_however_rare() -> None:
    sizes = tuple(500 for _ in LAYOUT.categorical)
    shape = dataclasses.replace(LAYOUT, sizes=sizes, targets=(Target("items", "next", "item", 200),))
    rows = counter_slices(shape)["item"]
    assert rows.stop - rows.start == 203


@pytest.mark.parametrize("shape", [LAYOUT, dataclasses.replace(LAYOUT, queries_per_block=1)])
def test_the_answers_know_of_them(shape: Layout) -> None:
    """An answer changes with a half-life alone: everything else that goes in is the same."""
    one = customer(shape, [START, START + DAY], [START + 9 * DAY])
    batch, model = batch_of(shape, [one]), random_model(shape)
    before = model(batch)
    model.decayed_counts.half_life_days *= 2
    after = model(batch)
    assert torch.equal(before.query_hidden_BQD, after.query_hidden_BQD)
    assert not torch.equal(before.targets["reply"][0, 0], after.targets["reply"][0, 0])


def habits_by_row(shape: Layout, people: list[Customer]) -> dict[int, Tensor]:
    """`query_row` -> the decayed_counts of that query."""
    batch = batch_of(shape, people)
    asked = batch["query_row"] >= 0
    return dict(zip(batch["query_row"][asked].tolist(), habits_of(shape, batch)[asked], strict=True))


@pytest.mark.parametrize("events", [3, 16, 17, 100])
def test_a_short_block_knows_the_habits_of_the_whole_history(events: int) -> None:
    """Whatever a block holds, the counts are those of all that happened before; other customers share the blocks."""
    rng = np.random.default_rng(events)
    people = []
    for seed in range(3):
        times = START + np.sort(rng.integers(0, 400 * DAY, events)) // 7 * 7
        asked = START + np.sort(rng.integers(0, 450 * DAY, 9))
        one = customer(LAYOUT, times.tolist(), asked.tolist(), seed=seed)
        rows = np.arange(9, dtype=np.int32) + 100 * seed
        people.append(dataclasses.replace(one, queries={**one.queries, "query_row": rows}))
    short = habits_by_row(layout(half_life_days=HALF_LIVES), people)
    whole = habits_by_row(layout(half_life_days=HALF_LIVES, block_events=512, queries_per_block=64), people)
    assert len(short) == 27
    assert set(short) == set(whole)
    for row, counts in short.items():
        np.testing.assert_allclose(counts, whole[row], rtol=1e-3, atol=1e-6)


def test_a_vocabulary_that_grows_leaves_the_carried_counts_where_they_are() -> None:
    """The snapshot is of a day's vocabulary, and the training perhaps of the next day's."""
    times = [START + day * DAY for day in range(40)]
    one = customer(LAYOUT, times, [START + 50 * DAY])
    block = batch_of(LAYOUT, [one])
    grown = layout(sizes=tuple(size + 2 for size in LAYOUT.sizes))
    assert grown.columns == LAYOUT.columns
    before, after = habits_of(LAYOUT, block), habits_of(grown, block)
    for name, rows in counter_slices(LAYOUT).items():
        wider = counter_slices(grown)[name]
        torch.testing.assert_close(after[..., wider.start : wider.stop - 2], before[..., rows])
        assert not after[..., wider.stop - 2 : wider.stop].any()
    torch.testing.assert_close(after[..., -HOURS_OF_DAY:], before[..., -HOURS_OF_DAY:])


def test_more_than_half_precision_holds_is_as_much_as_it_holds() -> None:
    shape, events = layout(sizes=(6, 9)), 70_000
    one = customer(shape, [START] * events, action=[3] * events)
    counts = initial_counts(shape, one.events, [events - 1])[events - 1]
    assert counts[:, 3].tolist() == [65_504.0] * len(shape.half_life_days)
    assert np.isfinite(counts).all()


def test_habits_of_long_before_1970_are_those_of_any_time() -> None:
    """A fade since the epoch would be more than a number holds."""
    counts = []
    for start in (START, -150 * 365 * DAY):
        times = [start + day * DAY for day in range(40)]
        one = customer(LAYOUT, times, [start + 50 * DAY])
        counts.append(initial_counts(LAYOUT, one.events, [20, 39]))
    for row in (20, 39):
        assert counts[0][row].any()
        # The hours that these days begin at are not the same.
        np.testing.assert_allclose(counts[0][row][:, :-HOURS_OF_DAY], counts[1][row][:, :-HOURS_OF_DAY])
