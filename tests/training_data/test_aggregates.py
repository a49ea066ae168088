"""Summary aggregates: computed by hand, compared with a slow count, and independent of later events."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from lam_spark.training_data.aggregates import aggregates
from lam_spark.training_data.layout import Layout
from tests.support.tiny import DAY, HOUR, LAYOUT, START, customer, layout

Numbers = npt.NDArray[np.float32]
BY_HAND = layout(counted_ids=(3, 4, 5), window_days=(7, 30))

# (hours after START, action, item, amount); few distinct hours, so that timestamp groups have several events.
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda n: n * 36),
        st.integers(0, 5),
        st.integers(0, 8),
        st.one_of(st.just(math.nan), st.integers(-50, 50).map(float)),
    ),
    max_size=25,
).map(lambda rows: sorted(rows, key=lambda row: row[0]))
QUERIES = st.lists(
    st.tuples(st.integers(0, 44), st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=4
)


def summary(shape: Layout, events: list[Any], queries: list[Any]) -> Numbers:
    """Aggregates of (hour, action, item, amount) events for (36-hour step, action, item) queries."""
    one = customer(
        shape,
        [START + hour * HOUR for hour, *_ in events],
        [START + step * 36 * HOUR for step, *_ in queries],
        action=[e[1] for e in events],
        item=[e[2] for e in events],
        amount=[e[3] for e in events],
        query_action=[q[1] for q in queries],
        query_item=[q[2] for q in queries],
    )
    return aggregates(shape, one.events, one.queries)


def test_one_customer_by_hand() -> None:
    one = customer(
        BY_HAND,
        [START, START, START + 20 * DAY, START + 28 * DAY, START + 30 * DAY],
        [START + 30 * DAY],
        action=[3, 3, 4, 3, 4],
        item=[3, 4, 3, 3, 3],
        amount=[10, math.nan, -40, 1, 100],  # the last event is at the query's own time, so it does not count
        query_action=[4],
        query_item=[3],
    )
    values = aggregates(BY_HAND, one.events, one.queries)[0].tolist()
    actual = dict(zip(BY_HAND.aggregate_names, values, strict=True))
    expected = {
        "events_before": math.log1p(4),
        "history_days": math.log1p(30),
        "days_since_action_3": math.log1p(2),
        "days_since_action_4": math.log1p(10),
        "days_since_action_5": math.log1p(3650),
        "action_3_events_7d": math.log1p(1),
        "action_4_events_7d": 0.0,
        "action_5_events_7d": 0.0,
        "action_3_events_30d": math.log1p(3),  # a time window includes its first instant
        "action_4_events_30d": math.log1p(1),
        "action_5_events_30d": 0.0,
        "action_3_groups_7d": math.log1p(1),
        "action_4_groups_7d": 0.0,
        "action_5_groups_7d": 0.0,
        "action_3_groups_30d": math.log1p(2),  # the two lines of the first basket are one timestamp group
        "action_4_groups_30d": math.log1p(1),
        "action_5_groups_30d": 0.0,
        "amount_sum_7d": math.log1p(1),
        "amount_sum_30d": -math.log1p(29),
        "same_action_before": math.log1p(1),
        "same_item_before": math.log1p(3),
    }
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert math.isclose(actual[name], value, rel_tol=1e-6, abs_tol=1e-6), name


def test_a_query_without_a_value_shares_it_with_no_event() -> None:
    events = [(0, action, action, 1.0) for action in (0, 1, 2, 0, 1, 2)]  # padding, unknown, missing
    actual = summary(LAYOUT, events, [(1, action, action) for action in (0, 1, 2)])
    assert (actual[:, -2:] == 0).all()


def test_a_customer_without_events_has_zero_counts_and_the_longest_recency() -> None:
    actual = summary(LAYOUT, [], [(3, 3, 3)])[0]
    names = LAYOUT.aggregate_names
    for name, value in zip(names, actual.tolist(), strict=True):
        expected = math.log1p(3650) if name.startswith("days_since") else 0.0
        assert math.isclose(value, expected, rel_tol=1e-6), name


@given(EVENTS, QUERIES)
def test_aggregates_equal_a_slow_count(events: list[Any], queries: list[Any]) -> None:
    actual = summary(LAYOUT, events, queries)
    expected = np.array([slow_aggregates(LAYOUT, events, query) for query in queries])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@given(EVENTS, EVENTS, st.integers(0, 40))
def test_events_from_the_query_time_on_do_not_change_the_aggregates(
    past: list[Any], future: list[Any], step: int
) -> None:
    at = step * 36
    before = [event for event in past if event[0] < at]
    after = [event for event in future if event[0] >= at]
    np.testing.assert_array_equal(
        summary(LAYOUT, before, [(step, 3, 3)]), summary(LAYOUT, before + after, [(step, 3, 3)])
    )


@given(EVENTS, st.integers(1, 44))
def test_one_more_event_before_the_query_is_counted(events: list[Any], step: int) -> None:
    before = [event for event in events if event[0] < step * 36]
    with_one_more = [*before, (step * 36 - 1, 1, 1, math.nan)]
    column = LAYOUT.aggregate_names.index("events_before")
    fewer, more = (summary(LAYOUT, rows, [(step, 3, 3)])[0, column] for rows in (before, with_one_more))
    assert math.isclose(math.expm1(more), math.expm1(fewer) + 1, rel_tol=1e-5)


@given(EVENTS, QUERIES, st.randoms())
def test_the_order_within_a_timestamp_group_does_not_matter(
    events: list[Any], queries: list[Any], random: Any
) -> None:
    shuffled = sorted(random.sample(events, len(events)), key=lambda event: event[0])
    np.testing.assert_allclose(
        summary(LAYOUT, events, queries), summary(LAYOUT, shuffled, queries), rtol=1e-6
    )


def slow_aggregates(shape: Layout, events: list[Any], query: Any) -> list[float]:
    """The aggregates of one query, each counted separately."""
    query_hour, query_values = query[0] * 36, {"action": query[1], "item": query[2]}
    before = [event for event in events if event[0] < query_hour]

    def within(days: int) -> list[Any]:
        return [event for event in before if event[0] >= query_hour - 24 * days]

    def days_since(value: int) -> float:
        hours = [query_hour - event[0] for event in before if event[1] == value]
        return min(hours) / 24 if hours else 3650.0

    def signed_log(value: float) -> float:
        return math.copysign(math.log1p(abs(value)), value)

    counted, windows = shape.counted_ids, shape.window_days
    return [
        math.log1p(len(before)),
        math.log1p((query_hour - before[0][0]) / 24) if before else 0.0,
        *(math.log1p(days_since(value)) for value in counted),
        *(math.log1p(sum(e[1] == v for e in within(w))) for w in windows for v in counted),
        *(math.log1p(len({e[0] for e in within(w) if e[1] == v})) for w in windows for v in counted),
        *(signed_log(sum(e[3] for e in within(w) if not math.isnan(e[3]))) for w in windows),
        *(
            math.log1p(sum(e[column] == query_values[name] for e in before) if query_values[name] >= 3 else 0)
            for column, name in ((1, "action"), (2, "item"))
        ),
    ]
