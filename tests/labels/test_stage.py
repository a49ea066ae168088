"""Examples: labels end exactly at the horizon, histories before the query, and splits leak nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.labels import stage as examples
from lam_spark.runtime.context import Run, StageResult
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import ONE_TARGET, run_builder, settings
from tests.support.tables import event, publish

Row = dict[str, Any]
BOTH = ("opt_in", "opt_in")
# The last events of these cases lie two to four weeks before as_of.
LAX = {"max_staleness_days": 31}


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


# Of somebody who refused, on the eve of as_of: what happened before is known.
LAST = event("refused", "2023-12-19T12:00:00", "the last event before as_of", action="look")


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    return world_of(spark, tmp_path_factory.mktemp("examples") / "shop", LAST)


def world_of(spark: SparkSession, root: Path, *more: Row, **sections: Any) -> World:
    """The cases and more events."""
    run = run_builder(spark, root)(**{"targets": ONE_TARGET, "quality": LAX} | sections)
    standings = dict.fromkeys([*CASES, "another"], BOTH) | {"refused": ("opt_out", "opt_in")}
    publish(run, [row for rows, *_ in CASES.values() for row in rows] + list(more), standings)
    vocabulary = [("item", "books", 3, 9), ("action", "propose", 3, 9), ("action", "respond", 4, 9)]
    schema = "field STRING, value STRING, token_id INT, count_when_added BIGINT"
    run.tables.append(local_frame(spark, vocabulary, schema), "vocabulary")
    result = examples.run(run)
    found = [row.asDict() for row in run.tables.read("examples").where("target = 'response'").collect()]
    rows = {row["customer_key"]: row for row in found if row["customer_key"] in CASES}
    assert len(rows) == sum(row["customer_key"] in CASES for row in found), "a case has one query at most"
    return World(run, result, rows)


@pytest.mark.parametrize("case", CASES)
def test_label_rule_and_split(world: World, case: str) -> None:
    _, label, rule, split = CASES[case]
    row = world.rows.get(case)
    if label is None:
        assert row is None
        return
    assert row is not None
    assert (row["label"], row["baseline_score"], row["split"]) == (label, rule, split)


def test_the_counts_are_those_of_the_table(world: World) -> None:
    rows = list(world.rows.values())
    for split in ("train", "validation", "straddling", "test"):
        labels = [row["label"] for row in rows if row["split"] == split]
        assert world.result.counts[f"response.{split}"] == len(labels) > 0
        assert world.result.counts[f"response.{split}.positives"] == sum(labels)
    assert world.result.counts["examples"] == len(rows)


@pytest.mark.parametrize(
    ("last", "known"),
    [
        # Local days end at 23:00 UTC. "just over" matures as 19 December ends.
        ("2023-12-18T22:59:59", False),
        ("2023-12-18T23:00:00", True),
        ("2023-12-19T23:00:00", False),  # at as_of: it is not seen, the last one that is lies on 7 December
    ],
)
def test_a_horizon_whose_last_days_were_not_delivered_is_not_over(
    spark: SparkSession, tmp_path: Path, world: World, last: str, known: bool
) -> None:
    found = world_of(spark, tmp_path / "shop", event("refused", last, "the last event", action="look")).rows
    assert found.keys() ^ world.rows.keys() == (set() if known else {"just over"})


KEPT = 16
RULES = {
    "counted": "-count(*)",
    "latest": "-datediff(max(as_of), max(before.event_time))",
    "share": "100 / count(*)",  # of no events: a division by zero
    "lately": "count(*) FILTER (WHERE event_time >= as_of - INTERVAL 3 DAYS)",
}
# Forty answers in March and April, at noon, and mailings on some mornings.
DAYS = [dt.datetime(2023, 3, 1, 12) + dt.timedelta(days=number) for number in range(40)]
MORNINGS = range(0, 41, 4)


@pytest.fixture(scope="module")
def ruled(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], float | None]:
    """(target, query) -> rule score, of rows that keep `KEPT` events."""
    answers = [responded("another", day.isoformat(), "elsewhere") for day in DAYS]
    mornings = [
        mailed("another", (DAYS[0] + dt.timedelta(days=number, hours=-6)).isoformat(), f"after {number}")
        for number in MORNINGS
    ]
    targets = {name: ONE_TARGET["response"] | {"baseline": rule} for name, rule in RULES.items()}
    world = world_of(
        spark,
        tmp_path_factory.mktemp("ruled") / "shop",
        *(answers + mornings),
        LAST,
        targets=ONE_TARGET | targets,
        sequences={"max_events": KEPT},
        model={"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    )
    rows = world.run.tables.read("examples").collect()
    return {(row["target"], row["query_id"]): row["baseline_score"] for row in rows}


def test_a_rule_that_says_nothing_of_no_events_has_no_score(
    ruled: dict[tuple[str, str], float | None],
) -> None:
    """Filled in with 0, whoever has no event would lead an order by `-datediff(...)`."""
    said = {name: ruled[name, "end of spring mailed"] for name in ("response", *RULES)}
    assert said == {"response": 0.0, "counted": 0.0, "latest": None, "share": None, "lately": 0.0}
    said = {name: ruled[name, "before and after mailed"] for name in ("response", *RULES)}
    assert said == {"response": 2.0, "counted": -2.0, "latest": 0.0, "share": 50.0, "lately": 1.0}


def test_a_rule_sees_the_latest_events_that_a_row_could_hold(
    ruled: dict[tuple[str, str], float | None],
) -> None:
    for before in MORNINGS:
        said = {name: ruled[name, f"after {before}"] for name in ("response", *RULES)}
        assert said.pop("response") == before  # counted along, however many there are
        if len(DAYS) - before > KEPT:  # no row reaches back to it: nobody is asked
            assert said == {"counted": 0.0, "latest": None, "share": None, "lately": 0.0}
        else:
            seen = min(before, KEPT)
            assert said == {"counted": -seen, "latest": -1.0, "share": 100 / seen, "lately": 3.0}


def test_the_query_is_encoded_and_its_campaign_is_only_carried(world: World) -> None:
    row = world.rows["end of spring"]
    assert (row["action"], row["item"], row["touchpoint"]) == (3, 3, 2)
    assert row["offer_days"] == 14.0
    assert row["amount"] is None
    assert row["campaign"] == "c"
    assert row["query_hour_of_week"] == 24  # Monday, midnight, local
    assert row["query_time"] == 1_679_266_800_000_000


def answers(run: Run, label: str) -> Row:
    target = settings(run.config.workspace)["targets"]["response"] | {"label": label}
    return {"targets": {"response": target}, "quality": LAX}


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
    [
        ("outcome.campain = query.campaign", r"targets\.response: .*campain"),
        ("outcome.", r"targets\.response: "),
    ],
)
def test_a_predicate_that_does_not_run(spark: SparkSession, world: World, label: str, message: str) -> None:
    version = world.run.tables.version("examples")
    with pytest.raises(ConfigError, match=message):
        examples.run(run_builder(spark, world.run.config.workspace)(**answers(world.run, label)))
    assert world.run.tables.version("examples") == version


def test_a_horizon_of_no_whole_days_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    """Cut to whole days it would be shorter than was asked for, or empty."""
    message = (
        r"^targets\.response\.horizon_days: expected a whole number of days from 1, or null where a query has no "
        r"horizon; 'query\.offer_days' gives 2 queries another number\. Round it"
    )
    odd = [mailed("another", at, at, days) for at, days in ((SPRING, 1.5), (AUTUMN, 0.0))]
    with pytest.raises(DataQualityError, match=message):
        world_of(spark, tmp_path / "shop", *odd, LAST)


# Local midnights four weeks apart, counted back from the start of the test period (1 October): the first after the
# start of training (1 February) is 19 February. Active is who bought in the 91 days before.
WEEKS = ("2023-02-19", "2023-03-19", "2023-04-16", "2023-05-14", "2023-06-11")


def bought(customer: str, at: str, item: str = "books", amount: float = 10.0) -> Row:
    return event(customer, at, f"{customer} {at} {item}", action="purchase", item=item, amount=amount)


REGULARS: list[Row] = [
    # On the eve of the second question: 22:59:59 UTC, a second before local midnight. Then at that very instant.
    bought("eve", "2023-03-18T22:59:59", amount=5.0),
    bought("instant", "2023-02-01T12:00:00", amount=1.0),
    bought("instant", "2023-03-18T23:00:00", "games", amount=7.0),
    # A return outweighs what was bought; two categories, one of them unknown to the vocabulary.
    bought("returned", "2023-02-10T12:00:00"),
    bought("returned", "2023-03-20T12:00:00", "games", amount=20.0),
    bought("returned", "2023-03-21T12:00:00", "unheard of", amount=-30.0),
    # So that every period has answers of every kind.
    *(
        bought("steady", f"2023-{month:02}-{day:02}T12:00:00")
        for month in range(1, 12)
        for day in (5, 15, 25)
    ),
    bought("gone", "2023-05-01T12:00:00"),
]


@pytest.fixture(scope="module")
def regular(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Row]:
    """(target, customer, local day) -> example."""
    root = tmp_path_factory.mktemp("regular") / "shop"
    targets = settings(root)["targets"]
    del targets["response"]
    scored = targets["lapse"]
    scoring = {**settings(root)["scoring"], "target": "lapse"}
    run = run_builder(spark, root)(targets=targets, scoring=scoring, quality=LAX)
    assert scored["every_days"] == 28
    publish(run, REGULARS, dict.fromkeys({row["customer_key"] for row in REGULARS}, BOTH))
    vocabulary = [("item", "books", 3, 9), ("item", "games", 4, 9), ("action", "purchase", 3, 9)]
    schema = "field STRING, value STRING, token_id INT, count_when_added BIGINT"
    run.tables.append(local_frame(spark, vocabulary, schema), "vocabulary")
    examples.run(run)
    rows = [row.asDict() for row in run.tables.read("examples").collect()]
    day = dt.timedelta(hours=2)  # from any midnight of Berlin, seen in UTC, into its own day
    found = {(r["target"], r["customer_key"], str((r["as_of"] + day).date())): r for r in rows}
    assert len(found) == len(rows)
    assert len({(r["target"], r["query_id"]) for r in rows}) == len(rows)
    assert len({r["query_id"] for r in rows}) == len(rows) / 3  # all three ask the same queries
    return found


def days_of(regular: dict[tuple[str, str, str], Row], target: str, customer: str) -> list[str]:
    return sorted(day for t, c, day in regular if (t, c) == (target, customer))


def test_asked_is_every_so_often_who_was_active_and_nobody_else(
    regular: dict[tuple[str, str, str], Row],
) -> None:
    for target in ("lapse", "spend", "items"):
        # Active on 18 March: asked until 91 days later, on the days that are 1, 29, 57 and 85 days on.
        assert days_of(regular, target, "eve") == ["2023-03-19", "2023-04-16", "2023-05-14", "2023-06-11"]
        assert days_of(regular, target, "instant")[:2] == ["2023-02-19", "2023-03-19"]
    assert regular["lapse", "eve", "2023-03-19"]["as_of"].isoformat() == "2023-03-18T23:00:00"
    assert regular["lapse", "eve", "2023-04-16"]["as_of"].isoformat() == "2023-04-15T22:00:00"  # summer time
    assert regular["lapse", "eve", "2023-03-19"]["action"] == 2  # an empty query: missing


def test_what_follows_starts_at_the_instant_of_the_question(regular: dict[tuple[str, str, str], Row]) -> None:
    asked = "2023-03-19"
    assert regular["lapse", "eve", asked]["label"] == 1.0
    assert regular["lapse", "instant", asked]["label"] == 0.0
    assert regular["spend", "eve", asked]["label"] == 0.0
    assert regular["spend", "instant", asked]["label"] == 7.0
    assert regular["items", "eve", asked]["label_ids"] == []
    assert regular["items", "instant", asked]["label_ids"] == [4]
    assert regular["items", "instant", asked]["label"] is None
    # The question before: its four weeks end where those begin.
    assert regular["spend", "instant", "2023-02-19"]["label"] == 0.0


def test_less_than_nothing_is_nothing_and_unknown_values_are_not_asked_for(
    regular: dict[tuple[str, str, str], Row],
) -> None:
    assert regular["spend", "returned", "2023-03-19"]["label"] == 0.0
    assert regular["items", "returned", "2023-03-19"]["label_ids"] == [4]


def test_a_rule_may_look_back_from_the_question(regular: dict[tuple[str, str, str], Row]) -> None:
    assert regular["spend", "instant", "2023-02-19"]["baseline_score"] == 1.0  # 18 days before
    assert (
        regular["spend", "instant", "2023-03-19"]["baseline_score"] is None
    )  # 46 days before: a sum of nothing
    assert regular["lapse", "steady", "2023-03-19"]["baseline_score"] == -8.0


def test_an_as_of_long_after_the_last_event_is_refused(spark: SparkSession, world: World) -> None:
    """All horizons would seem to be over, and nobody to have answered."""
    version = world.run.tables.version("examples")
    run = run_builder(spark, world.run.config.workspace)(targets=ONE_TARGET, quality=LAX, as_of="2024-06-01")
    with pytest.raises(
        ConfigError, match="as_of 2024-06-01 is outside the data: events run from 2023-01-31 to"
    ):
        examples.run(run)
    assert run.tables.version("examples") == version


def test_examples_need_events(make_run: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="run the stage"):
        examples.run(make_run())
