"""Regular queries of customers with recent activity, and the labels of all kinds of targets."""

from __future__ import annotations

import datetime as dt

import pytest
from pyspark.sql import SparkSession

from lam_spark.labels.stage import build_examples
from lam_spark.storage.dataframes import local_frame
from tests.labels.mailings import BOTH, QUALITY, VOCABULARY, Row
from tests.support.shop import context_builder, settings
from tests.support.tables import event, publish

# Queries are at local midnights four weeks apart, counted from the start of each period; training starts on 19
# February here. Customers with a purchase in the 91 days before are active.
Examples = dict[tuple[str, str, str], Row]


def bought(
    customer: str, at: str, item: str = "books", amount: float = 10.0, known_at: str | None = None
) -> Row:
    key = f"{customer} {at} {item}"
    return event(customer, at, key, known_at, action="purchase", item=item, amount=amount)


EVENTS: list[Row] = [
    # A second before the second query (local midnight, 23:00 UTC); then exactly at it.
    bought("eve", "2023-03-18T22:59:59", amount=5.0),
    bought("instant", "2023-02-01T12:00:00", amount=1.0),
    bought("instant", "2023-03-18T23:00:00", "games", amount=7.0),
    # A return exceeds the purchases; two categories, one of them not in the vocabulary.
    bought("returned", "2023-02-10T12:00:00"),
    bought("returned", "2023-03-20T12:00:00", "games", amount=20.0),
    bought("returned", "2023-03-21T12:00:00", "unheard of", amount=-30.0),
    # So that every period has labels of every kind.
    *(
        bought("steady", f"2023-{month:02}-{day:02}T12:00:00")
        for month in range(1, 12)
        for day in (5, 15, 25)
    ),
    bought("gone", "2023-05-01T12:00:00"),
    # Before the second query, and known after it.
    bought("late", "2023-03-18T12:00:00", known_at="2023-03-20T12:00:00"),
]


@pytest.fixture(scope="module")
def examples(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """(target, customer, local day) -> example."""
    root = tmp_path_factory.mktemp("regular") / "shop"
    targets = settings(root)["targets"]
    del targets["response"]
    assert targets["lapse"]["every_days"] == 28
    scoring = {**settings(root)["scoring"], "target": "lapse"}
    split = {**settings(root)["split"], "train_start": "2023-02-19"}
    ctx = context_builder(spark, root)(targets=targets, scoring=scoring, quality=QUALITY, split=split)
    publish(ctx, EVENTS, dict.fromkeys({row["customer_key"] for row in EVENTS}, BOTH))
    vocabulary = [("item", "books", 3, 9), ("item", "games", 4, 9), ("action", "purchase", 3, 9)]
    ctx.tables.append(local_frame(spark, vocabulary, VOCABULARY), "vocabulary")
    build_examples(ctx)
    rows = [row.asDict() for row in ctx.tables.read("examples").collect()]
    offset = dt.timedelta(hours=2)  # from any midnight of Berlin in UTC into its local day
    by_day = {(r["target"], r["customer_key"], str((r["as_of"] + offset).date())): r for r in rows}
    assert len(by_day) == len(rows)
    assert len({(r["target"], r["query_id"]) for r in rows}) == len(rows)
    assert len({r["query_id"] for r in rows}) == len(rows) / 3  # the three targets share their queries
    return by_day


def days_of(examples: Examples, target: str, customer: str) -> list[str]:
    return sorted(day for t, c, day in examples if (t, c) == (target, customer))


def test_active_customers_have_a_query_every_four_weeks(examples: Examples) -> None:
    for target in ("lapse", "spend", "items"):
        # Active on 18 March: queries until 91 days later, on the days that are 1, 29, 57 and 85 days later.
        assert days_of(examples, target, "eve") == ["2023-03-19", "2023-04-16", "2023-05-14", "2023-06-11"]
        assert days_of(examples, target, "instant")[:2] == ["2023-02-19", "2023-03-19"]
    assert examples["lapse", "eve", "2023-03-19"]["as_of"].isoformat() == "2023-03-18T23:00:00"
    assert examples["lapse", "eve", "2023-04-16"]["as_of"].isoformat() == "2023-04-15T22:00:00"  # summer time
    assert examples["lapse", "eve", "2023-03-19"]["action"] == 2  # a query without fields: missing


def test_a_customer_is_active_once_the_purchase_is_known(examples: Examples) -> None:
    assert days_of(examples, "lapse", "late") == ["2023-04-16", "2023-05-14", "2023-06-11"]


def test_each_period_begins_with_queries(examples: Examples) -> None:
    days = days_of(examples, "lapse", "steady")
    assert {"2023-02-19", "2023-07-01", "2023-10-01"} <= set(days)
    split_of_day = {day: examples["lapse", "steady", day]["split"] for day in days}
    assert split_of_day["2023-07-01"] == "validation"
    assert split_of_day["2023-10-01"] == "test"


def test_an_outcome_at_the_instant_of_a_regular_query_follows_it(examples: Examples) -> None:
    day = "2023-03-19"
    assert examples["lapse", "eve", day]["label"] == 1.0
    assert examples["lapse", "instant", day]["label"] == 0.0
    assert examples["spend", "eve", day]["label"] == 0.0
    assert examples["spend", "instant", day]["label"] == 7.0
    assert examples["items", "eve", day]["label_ids"] == []
    assert examples["items", "instant", day]["label_ids"] == [4]
    assert examples["items", "instant", day]["label"] is None
    # The horizon of the query before ends at this instant.
    assert examples["spend", "instant", "2023-02-19"]["label"] == 0.0


def test_a_negative_amount_counts_as_zero_and_unknown_values_are_left_out(examples: Examples) -> None:
    assert examples["spend", "returned", "2023-03-19"]["label"] == 0.0
    assert examples["items", "returned", "2023-03-19"]["label_ids"] == [4]


def test_a_baseline_may_look_back_from_the_query(examples: Examples) -> None:
    assert examples["spend", "instant", "2023-02-19"]["baseline_score"] == 1.0  # 18 days before
    # 46 days before: a sum of no events.
    assert examples["spend", "instant", "2023-03-19"]["baseline_score"] is None
    assert examples["lapse", "steady", "2023-03-19"]["baseline_score"] == -8.0
