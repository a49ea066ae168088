"""Customers with more events than a row holds: what is cut off must not tell what came after a question."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from lam_spark.storage.dataframes import local_frame
from lam_spark.training_data.columns import answerable, collect_queries, customers, cut_off, event_columns
from lam_spark.training_data.packing import Block, Customer
from tests.support.tiny import DAY, HOUR, START, blocks_of, layout

Row = dict[str, Any]

HELD = 120
SHAPE = layout(who_fields=("item",), window_days=(7, 30))
# Histories of so many events before the questions' days, and how many events follow after the last question.
HISTORIES, FUTURES = (20, 90, 130, 400), (0, 1, 3, 8, 15, 60)


def events_of(number: int, future: int) -> list[Row]:
    """Events of a history, some six a week, and so many after it."""
    rng = np.random.default_rng(number)
    count = HISTORIES[number] + 20
    times = START + np.cumsum(rng.integers(1 * HOUR, 56 * HOUR, count))
    later = times[-1] + DAY + np.arange(future) * HOUR
    rows = []
    for at in [*times, *later]:
        item = int(rng.integers(3, 9)) if rng.random() < 0.03 else 2
        amount = float(np.float32(rng.normal()))
        rows.append(
            {"event_time": int(at), "hour_of_week": 5, "action": int(rng.integers(3, 6)), "item": item}
            | {"amount": amount}
        )
    return rows


def sequences_of(spark: SparkSession) -> DataFrame:
    """Rows as the table has them, with the latest `HELD` events."""
    made = []
    for number in range(len(HISTORIES)):
        for future in FUTURES:
            every = events_of(number, future)
            held = every[-HELD:]
            arrays = tuple([row[name] for row in held] for name in held[0])
            first = pd.Timestamp(every[0]["event_time"], unit="us", tz="UTC").to_pydatetime()
            made.append((f"{number}/{future}", *arrays, len(every) - len(held), first))
    frame = local_frame(
        spark,
        made,
        "customer_key STRING, event_time ARRAY<BIGINT>, hour_of_week ARRAY<INT>, action ARRAY<INT>, "
        "item ARRAY<INT>, amount ARRAY<FLOAT>, truncated_events BIGINT, first_event_time TIMESTAMP",
    )
    return frame.repartition(3)


def examples_of(spark: SparkSession) -> DataFrame:
    """Questions at twenty events of the end of each history, the same whatever came after."""
    asked = [
        (f"{number}/{future}", "reply", f"q{place}", row["event_time"], "train", 0.0)
        for number, count in enumerate(HISTORIES)
        for future in FUTURES
        for place, row in enumerate(events_of(number, 0)[count:])
    ]
    frame = local_frame(
        spark,
        asked,
        "customer_key STRING, target STRING, query_id STRING, query_time BIGINT, split STRING, label DOUBLE",
    )
    return frame.repartition(3).selectExpr(
        "*", "5 AS query_hour_of_week", "4 AS action", "2 AS item", "CAST(NULL AS FLOAT) AS amount"
    )


def told(one: Customer, ids: list[str]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """By question, all that a model could read of it in its block."""
    one.queries["query_row"] = np.arange(len(ids), dtype=np.int32)
    found = {}
    for block in blocks_of(SHAPE, [one]):
        for slot in np.flatnonzero(block["query_row"] >= 0):
            found[ids[block["query_row"][slot]]] = read(block, slot)
    return found


def read(block: Block, slot: int) -> dict[str, np.ndarray[Any, Any]]:
    mine = block["window"] == block["query_window"][slot]
    seen = mine & (np.arange(len(mine)) < block["query_index"][slot])
    initial = block["initial_window"][0] == block["query_window"][slot]
    return {
        "events": block["event_time"][seen],
        "aggregates": block["aggregates"].reshape(SHAPE.queries_per_block, -1)[slot],
        "item": block["query_item"][slot],
        "initial_time": block["initial_time"] * initial,
        "initial_counts": block["initial_counts"] * initial,
    }


@pytest.fixture(scope="module")
def answered(spark: SparkSession) -> dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]]:
    """Customer -> question -> what is told of it, of the questions that are answerable."""
    sequences = sequences_of(spark)
    asked = answerable(examples_of(spark), cut_off(sequences, SHAPE))
    rows = sequences.select("customer_key", *event_columns(SHAPE)).join(
        collect_queries(asked, SHAPE), "customer_key"
    )
    frame = rows.toPandas()
    made = customers(SHAPE, frame)
    ids = frame["query_ids"]
    return {
        key: told(one, list(asked)) for key, one, asked in zip(frame["customer_key"], made, ids, strict=True)
    }


def test_what_comes_after_a_question_does_not_show_in_it(
    answered: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]],
) -> None:
    by_question = defaultdict(list)
    for key, questions in answered.items():
        for query_id, read in questions.items():
            by_question[key.split("/")[0], query_id].append(read)
    assert sum(len(same) > 1 for same in by_question.values()) > 40
    for (number, query_id), same in by_question.items():
        for other in same[1:]:
            for name, values in other.items():
                np.testing.assert_array_equal(values, same[0][name], f"{name} of {query_id} of {number}")


def test_whose_row_holds_all_is_asked_everything(
    answered: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]],
) -> None:
    whole = [f"0/{future}" for future in FUTURES if HISTORIES[0] + 20 + future <= HELD]
    assert len(whole) == 6
    assert all(len(answered[key]) == 20 for key in whole)


def test_questions_are_lost_where_the_row_does_not_reach_back_and_counted(
    spark: SparkSession, answered: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]]
) -> None:
    lengths = {key: len(questions) for key, questions in answered.items()}
    # The last events alone cut it: as long as they had not come, each question would be answered from all events.
    assert lengths["1/8"] == 20
    assert "1/60" not in lengths
    assert lengths["3/0"] == lengths["3/15"] == 20  # what is cut off of a long history is far away
    assert lengths.get("3/60", 0) < 20
    examples, cut = examples_of(spark), cut_off(sequences_of(spark), SHAPE)
    lost = answerable(examples, cut, held=False).count()
    assert lost == examples.count() - sum(lengths.values()) > 0
