"""Examples: labels end exactly at the horizon, histories before the query, and splits leak nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import run_builder, settings
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.run import Run, StageResult
from lam_spark.sequences import examples
from spark.conftest import event, publish

Row = dict[str, Any]
BOTH = ("opt_in", "opt_in")


def mailed(customer: str, at: str, key: str = "", days: float | None = 14, campaign: str = "c") -> Row:
    fields = {"action": "propose", "offer_days": days, "campaign": campaign, "item": "books"}
    return event(customer, at, key or f"{customer} mailed", **fields)


def responded(customer: str, at: str, campaign: str = "c") -> Row:
    return event(customer, at, f"{customer} {at}", action="respond", campaign=campaign)


# Local midnights: 20 March (before summer time) plus 14 days is 3 April 00:00 in summer time, 22:00 UTC.
SPRING, SPRING_END = "2023-03-19T23:00:00", "2023-04-02T22:00:00"
AUTUMN, AUTUMN_END = "2023-10-19T22:00:00", "2023-11-02T23:00:00"
# Customer -> events, label and rule score of their one example (None: there must be none), and its split.
CASES: dict[str, tuple[list[Row], float | None, float, str]] = {
    "last microsecond of spring": (
        [
            mailed("last microsecond of spring", SPRING),
            responded("last microsecond of spring", "2023-04-02T21:59:59.999999"),
        ],
        1.0,
        0.0,
        "train",
    ),
    "end of spring": (
        [mailed("end of spring", SPRING), responded("end of spring", SPRING_END)],
        0.0,
        0.0,
        "train",
    ),
    "last hour of autumn": (
        [mailed("last hour of autumn", AUTUMN), responded("last hour of autumn", "2023-11-02T22:30:00")],
        1.0,
        0.0,
        "test",
    ),
    "end of autumn": (
        [mailed("end of autumn", AUTUMN), responded("end of autumn", AUTUMN_END)],
        0.0,
        0.0,
        "test",
    ),
    "same instant": ([mailed("same instant", SPRING), responded("same instant", SPRING)], 0.0, 0.0, "train"),
    "just after": (
        [mailed("just after", SPRING), responded("just after", "2023-03-19T23:00:00.000001")],
        1.0,
        0.0,
        "train",
    ),
    "before and after": (
        [mailed("before and after", SPRING)]
        + [responded("before and after", at) for at in ("2023-02-01T00:00:00", "2023-03-19T22:59:59")]
        + [responded("before and after", "2023-03-25T00:00:00", "another")],
        0.0,
        2.0,
        "train",
    ),
    "of another": (
        [mailed("of another", SPRING, campaign="d"), responded("of another", "2023-03-21T00:00:00")],
        0.0,
        0.0,
        "train",
    ),
    "answered twice": (
        [mailed("answered twice", SPRING)]
        + [responded("answered twice", at) for at in ("2023-03-21T00:00:00", "2023-03-22T00:00:00")],
        1.0,
        0.0,
        "train",
    ),
    "before training": ([mailed("before training", "2023-01-31T22:59:59")], None, 0.0, "unused"),
    "first of training": ([mailed("first of training", "2023-01-31T23:00:00")], 0.0, 0.0, "train"),
    # Ends at the very start of validation (30 June 22:00 UTC), then one day later.
    "matured in training": ([mailed("matured in training", "2023-06-16T22:00:00")], 0.0, 0.0, "train"),
    "straddling": ([mailed("straddling", "2023-06-17T22:00:00")], 0.0, 0.0, "straddling"),
    "validation": ([mailed("validation", "2023-06-30T22:00:00")], 0.0, 0.0, "validation"),
    "validation hit": (
        [mailed("validation hit", "2023-07-15T22:00:00"), responded("validation hit", "2023-07-16T22:00:00")],
        1.0,
        0.0,
        "validation",
    ),
    "over into the test": ([mailed("over into the test", "2023-09-20T22:00:00")], None, 0.0, "unused"),
    # Matures exactly at as_of (19 December 23:00 UTC), then a day after it.
    "just over": ([mailed("just over", "2023-12-05T23:00:00")], 0.0, 0.0, "test"),
    "not over": ([mailed("not over", "2023-12-06T23:00:00")], None, 0.0, "unused"),
    "no horizon": ([mailed("no horizon", SPRING, days=None)], None, 0.0, "unused"),
    "refused": ([mailed("refused", SPRING), responded("refused", "2023-03-21T00:00:00")], None, 0.0, "-"),
}


@dataclass(frozen=True)
class World:
    run: Run
    result: StageResult
    rows: dict[str, Row]


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    run = run_builder(spark, tmp_path_factory.mktemp("examples") / "shop")()
    standings = dict.fromkeys(CASES, BOTH) | {"refused": ("opt_out", "opt_in")}
    publish(run, [row for rows, *_ in CASES.values() for row in rows], standings)
    vocabulary = [("item", "books", 3, 9), ("action", "propose", 3, 9), ("action", "respond", 4, 9)]
    schema = "field STRING, value STRING, token_id INT, count_when_added BIGINT"
    run.tables.append(run.spark.createDataFrame(vocabulary, schema), "vocabulary")
    result = examples.run(run)
    found = [row.asDict() for row in run.tables.read("examples").collect()]
    rows = {row["customer_key"]: row for row in found}
    assert len(rows) == len(found), "a customer of these cases has one query at most"
    return World(run, result, rows)


@pytest.mark.parametrize("case", CASES)
def test_label_rule_and_split(world: World, case: str) -> None:
    _, label, rule, split = CASES[case]
    row = world.rows.get(case)
    if label is None:
        assert row is None
        return
    assert row is not None
    assert (row["label"], row["rule_score"], row["split"]) == (label, rule, split)


def test_the_counts_are_those_of_the_table(world: World) -> None:
    rows = list(world.rows.values())
    for split in ("train", "validation", "straddling", "test"):
        labels = [row["label"] for row in rows if row["split"] == split]
        assert world.result.counts[f"response.{split}"] == len(labels) > 0
        assert world.result.counts[f"response.{split}.positives"] == sum(labels)
    assert world.result.counts["examples"] == len(rows)


def test_the_query_is_encoded_and_its_campaign_is_only_carried(world: World) -> None:
    row = world.rows["end of spring"]
    assert (row["action"], row["item"], row["touchpoint"]) == (3, 3, 2)
    assert row["offer_days"] == 14.0
    assert row["amount"] is None
    assert row["campaign"] == "c"
    assert row["query_hour_of_week"] == 24  # Monday, midnight, local
    assert row["query_time"] == 1_679_266_800_000_000


def answers(run: Run, label: str) -> Row:
    return {"targets": {"response": settings(run.config.workspace)["targets"]["response"] | {"label": label}}}


def test_one_class_only_is_refused_and_the_last_examples_stand(spark: SparkSession, world: World) -> None:
    version = world.run.tables.version("examples")
    run = run_builder(spark, world.run.config.workspace)(**answers(world.run, "false"))
    with pytest.raises(
        DataQualityError, match=r"target 'response' has 0 positive of \d+ examples in the train"
    ):
        examples.run(run)
    kept = run.tables.read("examples", version)
    assert kept.where("label = 1").count() > 0
    assert run.tables.version("examples") == version


@pytest.mark.parametrize(
    ("label", "message"),
    [("later.campain = query.campaign", r"targets\.response: .*campain"), ("later.", r"targets\.response: ")],
)
def test_a_predicate_that_does_not_run(spark: SparkSession, world: World, label: str, message: str) -> None:
    version = world.run.tables.version("examples")
    with pytest.raises(ConfigError, match=message):
        examples.run(run_builder(spark, world.run.config.workspace)(**answers(world.run, label)))
    assert world.run.tables.version("examples") == version


def test_examples_need_events(make_run: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="run the stage"):
        examples.run(make_run())
