"""Customers with more events than a row holds: the truncation must not reveal what followed a query."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from lam_spark.storage.dataframes import local_frame
from lam_spark.training_data.columns import (
    collect_queries,
    customers,
    event_columns,
    truncated_rows,
    with_complete_history,
)
from lam_spark.training_data.packing import Block, Customer
from tests.support.tiny import DAY, HOUR, START, blocks_of, layout

Row = dict[str, Any]
Inputs = dict[str, np.ndarray[Any, Any]]
InputsByQuery = dict[str, dict[str, Inputs]]

ROW_EVENTS = 120
SHAPE = layout(who_fields=("item",), window_days=(7, 30))
# Numbers of events before the days of the queries, and after the last query.
HISTORIES, FUTURES = (20, 90, 130, 400), (0, 1, 3, 8, 15, 60)
QUERIES = 20


def events_of(number: int, future: int) -> list[Row]:
    """Events of a history, about six a week, and `future` events after it."""
    rng = np.random.default_rng(number)
    count = HISTORIES[number] + QUERIES
    times = START + np.cumsum(rng.integers(1 * HOUR, 56 * HOUR, count))
    later = times[-1] + DAY + np.arange(future) * HOUR
    rows = []
    for at in [*times, *later]:
        item = int(rng.integers(3, 9)) if rng.random() < 0.03 else 2
        amount = float(np.float32(rng.normal()))
        rows.append(
            {"known_at": int(at), "event_time": int(at) - HOUR, "hour_of_week": 5}
            | {"action": int(rng.integers(3, 6)), "item": item, "amount": amount}
        )
    return rows


def sequences_of(spark: SparkSession) -> DataFrame:
    """Rows of `sequences` with the latest `ROW_EVENTS` events."""
    rows = []
    for number in range(len(HISTORIES)):
        for future in FUTURES:
            events = events_of(number, future)
            kept = events[-ROW_EVENTS:]
            arrays = tuple([row[name] for row in kept] for name in kept[0])
            first = pd.Timestamp(events[0]["known_at"], unit="us", tz="UTC").to_pydatetime()
            rows.append((f"{number}/{future}", *arrays, len(events) - len(kept), first))
    frame = local_frame(
        spark,
        rows,
        "customer_key STRING, known_at ARRAY<BIGINT>, event_time ARRAY<BIGINT>, hour_of_week ARRAY<INT>, "
        "action ARRAY<INT>, item ARRAY<INT>, amount ARRAY<FLOAT>, truncated_events BIGINT, "
        "first_known_at TIMESTAMP",
    )
    return frame.repartition(3)


def examples_of(spark: SparkSession) -> DataFrame:
    """Queries at the last events of each history, the same whatever followed."""
    rows = [
        (f"{number}/{future}", "reply", f"q{place}", row["known_at"], "train", 0.0)
        for number, count in enumerate(HISTORIES)
        for future in FUTURES
        for place, row in enumerate(events_of(number, 0)[count:])
    ]
    frame = local_frame(
        spark,
        rows,
        "customer_key STRING, target STRING, query_id STRING, query_time BIGINT, split STRING, label DOUBLE",
    )
    return frame.repartition(3).selectExpr(
        "*", "5 AS query_hour_of_week", "4 AS action", "2 AS item", "CAST(NULL AS FLOAT) AS amount"
    )


def inputs_by_query(customer: Customer, ids: list[str]) -> dict[str, Inputs]:
    """Everything that a model could read about each query in its block."""
    customer.queries["query_row"] = np.arange(len(ids), dtype=np.int32)
    inputs = {}
    for block in blocks_of(SHAPE, [customer]):
        for slot in np.flatnonzero(block["query_row"] >= 0):
            inputs[ids[block["query_row"][slot]]] = inputs_of_slot(block, slot)
    return inputs


def inputs_of_slot(block: Block, slot: int) -> Inputs:
    in_window = block["window"] == block["query_window"][slot]
    is_visible = in_window & (np.arange(len(in_window)) < block["query_index"][slot])
    has_initial = block["initial_window"][0] == block["query_window"][slot]
    return {
        "events": block["known_at"][is_visible],
        "aggregates": block["aggregates"].reshape(SHAPE.queries_per_block, -1)[slot],
        "item": block["query_item"][slot],
        "initial_time": block["initial_time"] * has_initial,
        "initial_counts": block["initial_counts"] * has_initial,
    }


@pytest.fixture(scope="module")
def inputs(spark: SparkSession) -> InputsByQuery:
    """Customer -> query -> inputs, of the queries with a complete history."""
    sequences = sequences_of(spark)
    examples = with_complete_history(examples_of(spark), truncated_rows(sequences, SHAPE))
    rows = sequences.select("customer_key", *event_columns(SHAPE)).join(
        collect_queries(examples, SHAPE), "customer_key"
    )
    frame = rows.toPandas()
    keys_and_ids = zip(frame["customer_key"], customers(SHAPE, frame), frame["query_ids"], strict=True)
    return {key: inputs_by_query(customer, list(ids)) for key, customer, ids in keys_and_ids}


def test_what_follows_a_query_does_not_change_its_inputs(inputs: InputsByQuery) -> None:
    by_query = defaultdict(list)
    for key, queries in inputs.items():
        for query_id, values in queries.items():
            by_query[key.split("/")[0], query_id].append(values)
    assert sum(len(same) > 1 for same in by_query.values()) > 40
    for (number, query_id), same in by_query.items():
        for other in same[1:]:
            for name, values in other.items():
                np.testing.assert_array_equal(values, same[0][name], f"{name} of {query_id} of {number}")


def test_customers_whose_row_holds_all_events_keep_all_queries(inputs: InputsByQuery) -> None:
    whole = [f"0/{future}" for future in FUTURES if HISTORIES[0] + QUERIES + future <= ROW_EVENTS]
    assert len(whole) == 6
    assert all(len(inputs[key]) == QUERIES for key in whole)


def test_queries_that_a_row_does_not_reach_back_to_are_dropped_and_counted(
    spark: SparkSession, inputs: InputsByQuery
) -> None:
    lengths = {key: len(queries) for key, queries in inputs.items()}
    # Only the latest events truncate this row: without them, each prediction would use all events.
    assert lengths["1/8"] == QUERIES
    assert "1/60" not in lengths
    assert lengths["3/0"] == lengths["3/15"] == QUERIES  # a long history is truncated far in the past
    assert lengths.get("3/60", 0) < QUERIES
    examples, truncated = examples_of(spark), truncated_rows(sequences_of(spark), SHAPE)
    dropped = with_complete_history(examples, truncated, complete=False).count()
    assert dropped == examples.count() - sum(lengths.values()) > 0
