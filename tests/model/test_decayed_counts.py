"""Decayed counts: computed by hand, compared with a slow count, and limited to the events that a query sees."""

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


def counts_of(shape: Layout, batch: Batch) -> Tensor:
    """Decayed counts of a batch's queries."""
    counts: Tensor = DecayedCounts(shape)(batch, query_event_mask(batch))
    return counts


def test_an_event_counts_less_with_its_age() -> None:
    one = customer(LAYOUT, [START, START + 10 * DAY, START + 15 * DAY], [START + 20 * DAY], item=[3, 4, 3])
    batch = batch_of(LAYOUT, [one])
    visible = torch.zeros(1, LAYOUT.queries_per_block, LAYOUT.block_events, dtype=torch.bool)
    visible[0, 0, :2] = True  # the third event is hidden
    counts = DecayedCounts(layout(half_life_days=(10.0,)))(batch, visible)
    assert counts.shape == (1, LAYOUT.queries_per_block, 1, num_counters(LAYOUT))
    first = counter_slices(LAYOUT)["item"].start
    expected = [math.log1p(0.25), math.log1p(0.5)]
    assert counts[0, 0, 0, first + 3 : first + 5].tolist() == pytest.approx(expected, rel=1e-5)
    assert not counts[0, 1:].any()


def test_counts_of_all_fields_and_hours_equal_a_slow_count() -> None:
    rng = np.random.default_rng(3)
    customers = []
    for seed in range(6):
        times = START + np.sort(rng.integers(0, 90 * DAY, 5))
        query_times = START + np.sort(rng.integers(0, 120 * DAY, 3))
        customers.append(customer(LAYOUT, times.tolist(), query_times.tolist(), seed=seed))
    shape = layout(half_life_days=HALF_LIVES)
    batch = batch_of(shape, customers)
    counts = counts_of(shape, batch).numpy()
    columns = {name: batch[f"event_{name}"].numpy() for name in LAYOUT.categorical}
    hour = batch["hour_of_week"].numpy() % HOURS_OF_DAY
    slices, total = counter_slices(LAYOUT), num_counters(LAYOUT)
    query_window = batch["query_window"].numpy()
    assert (query_window > 0).sum() > 5
    for block, query in zip(*np.nonzero(query_window), strict=True):
        expected = np.zeros((len(HALF_LIVES), total))
        for slot in range(int(batch["query_index"][block, query])):
            if batch["window"][block, slot] != query_window[block, query]:
                continue
            age = float(batch["query_time"][block, query] - batch["known_at"][block, slot]) / DAY
            counters = [slices[name].start + values[block, slot] for name, values in columns.items()]
            for number, days in enumerate(HALF_LIVES):
                expected[number, [*counters, total - HOURS_OF_DAY + hour[block, slot]]] += 0.5 ** (age / days)
        np.testing.assert_allclose(counts[block, query], np.log1p(expected), rtol=1e-3, atol=1e-5)


def test_rare_values_of_a_large_field_are_not_counted() -> None:
    shape = dataclasses.replace(LAYOUT, sizes=tuple(500 for _ in LAYOUT.categorical))
    assert num_counters(shape) == 64 * len(shape.categorical) + HOURS_OF_DAY
    one = customer(shape, [START, START + DAY], [START + 2 * DAY], action=[63, 64], item=[7, 8])
    visible = torch.zeros(1, shape.queries_per_block, shape.block_events, dtype=torch.bool)
    visible[0, 0, :2] = True
    module = DecayedCounts(dataclasses.replace(shape, half_life_days=(10.0,)))
    counts = module(batch_of(shape, [one]), visible)[0, 0, 0]
    slices = counter_slices(shape)
    assert counts[slices["action"]].nonzero().flatten().tolist() == [63]
    assert counts[slices["item"]].nonzero().flatten().tolist() == [7, 8]


def test_fields_that_describe_the_customer_are_not_counted_unless_a_target_predicts_them() -> None:
    shape = dataclasses.replace(LAYOUT, who_fields=("item",))
    assert list(counter_slices(shape)) == ["action"]
    assert num_counters(shape) == LAYOUT.sizes[0] + HOURS_OF_DAY
    batch = batch_of(shape, [customer(shape, [START], [START + DAY], action=[4])])
    counts = counts_of(dataclasses.replace(shape, half_life_days=(10.0,)), batch)
    assert counts[0, 0, 0, : LAYOUT.sizes[0]].nonzero().flatten().tolist() == [4]
    with_target = dataclasses.replace(shape, targets=(Target("items", "next", "item", 4),))
    assert counter_slices(with_target)["item"] == slice(LAYOUT.sizes[0], LAYOUT.sizes[0] + 7)


def test_all_values_of_a_target_are_counted() -> None:
    sizes = tuple(500 for _ in LAYOUT.categorical)
    shape = dataclasses.replace(LAYOUT, sizes=sizes, targets=(Target("items", "next", "item", 200),))
    part = counter_slices(shape)["item"]
    assert part.stop - part.start == 203


@pytest.mark.parametrize("shape", [LAYOUT, dataclasses.replace(LAYOUT, queries_per_block=1)])
def test_predictions_depend_on_the_decayed_counts(shape: Layout) -> None:
    """Only the half-lives change; all other inputs are the same."""
    one = customer(shape, [START, START + DAY], [START + 9 * DAY])
    batch, model = batch_of(shape, [one]), random_model(shape)
    before = model(batch)
    model.decayed_counts.half_life_days *= 2
    after = model(batch)
    assert torch.equal(before.query_hidden_BQD, after.query_hidden_BQD)
    assert not torch.equal(before.targets["reply"][0, 0], after.targets["reply"][0, 0])


def counts_by_row(shape: Layout, customers: list[Customer]) -> dict[int, Tensor]:
    """`query_row` -> decayed counts of that query."""
    batch = batch_of(shape, customers)
    in_use = batch["query_row"] >= 0
    return dict(zip(batch["query_row"][in_use].tolist(), counts_of(shape, batch)[in_use], strict=True))


@pytest.mark.parametrize("events", [3, 16, 17, 100])
def test_short_blocks_give_the_counts_of_the_whole_history(events: int) -> None:
    """The counts cover all earlier events for any block size, with several customers per block."""
    rng = np.random.default_rng(events)
    customers = []
    for seed in range(3):
        times = START + np.sort(rng.integers(0, 400 * DAY, events)) // 7 * 7
        query_times = START + np.sort(rng.integers(0, 450 * DAY, 9))
        one = customer(LAYOUT, times.tolist(), query_times.tolist(), seed=seed)
        rows = np.arange(9, dtype=np.int32) + 100 * seed
        customers.append(dataclasses.replace(one, queries={**one.queries, "query_row": rows}))
    short = counts_by_row(layout(half_life_days=HALF_LIVES), customers)
    whole = counts_by_row(
        layout(half_life_days=HALF_LIVES, block_events=512, queries_per_block=64), customers
    )
    assert len(short) == 27
    assert set(short) == set(whole)
    for row, counts in short.items():
        np.testing.assert_allclose(counts, whole[row], rtol=1e-3, atol=1e-6)


def test_a_growing_vocabulary_does_not_move_the_initial_counts() -> None:
    """The training may use a later vocabulary than the snapshot."""
    times = [START + day * DAY for day in range(40)]
    one = customer(LAYOUT, times, [START + 50 * DAY])
    block = batch_of(LAYOUT, [one])
    grown = layout(sizes=tuple(size + 2 for size in LAYOUT.sizes))
    assert grown.columns == LAYOUT.columns
    before, after = counts_of(LAYOUT, block), counts_of(grown, block)
    for name, part in counter_slices(LAYOUT).items():
        wider = counter_slices(grown)[name]
        torch.testing.assert_close(after[..., wider.start : wider.stop - 2], before[..., part])
        assert not after[..., wider.stop - 2 : wider.stop].any()
    torch.testing.assert_close(after[..., -HOURS_OF_DAY:], before[..., -HOURS_OF_DAY:])


def test_initial_counts_are_clipped_to_the_maximum_of_half_precision() -> None:
    shape, events = layout(sizes=(6, 9)), 70_000
    one = customer(shape, [START] * events, action=[3] * events)
    counts = initial_counts(shape, one.events, [events - 1])[events - 1]
    assert counts[:, 3].tolist() == [65_504.0] * len(shape.half_life_days)
    assert np.isfinite(counts).all()


def test_initial_counts_of_times_long_before_1970_are_the_same() -> None:
    """Weights relative to the epoch would overflow."""
    counts = []
    for start in (START, -150 * 365 * DAY):
        times = [start + day * DAY for day in range(40)]
        one = customer(LAYOUT, times, [start + 50 * DAY])
        counts.append(initial_counts(LAYOUT, one.events, [20, 39]))
    for row in (20, 39):
        assert counts[0][row].any()
        # The hours of the day may differ, because the first event has another time of day.
        np.testing.assert_allclose(counts[0][row][:, :-HOURS_OF_DAY], counts[1][row][:, :-HOURS_OF_DAY])
