"""Sequences: nothing from the future, one order whatever the input's, and ids that never change."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from lam_spark.sequences.settings import BUILD_SETTINGS
from lam_spark.storage.settings import session_settings
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, ConsentError, DataQualityError
from lam_spark.runtime.context import Run, StageResult
from lam_spark.sequences import stage as assemble
from lam_spark.sequences.build import Assembler
from lam_spark.sequences.entries import hour_of_week, local_hour_of_week
from lam_spark.sequences.time_range import bounds_of, check_as_of
from lam_spark.sequences.tokens import FIRST_VALUE, MISSING, UNKNOWN
from lam_spark.sequences.vocabulary import count_values, extend_vocabulary
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import LATE_PRODUCT, ONE_TARGET, REFUSED_PRODUCT, ZONE, run_builder
from tests.support.tables import Prepared, event, events_frame, publish, utc

BOTH, NEITHER = ("opt_in", "opt_in"), (None, None)
KEPT = 16
SECTIONS = {
    "sequences": {"max_events": KEPT},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 2},
        "amount": {"role": "how", "kind": "numeric"},
    },
}
# as_of is 20 December in Berlin: 19 December 23:00 UTC.
AS_OF = "2023-12-19T23:00:00"
EVENTS = [
    *[
        event("long", f"2023-03-{day:02d}T12:00:00", f"l{day}", action="buy", amount=day)
        for day in range(1, 21)
    ],
    # Four at one instant: the id decides.
    *[event("tie", "2023-04-01T10:00:00", key, action=key, amount=None) for key in ("d", "a", "c", "b")],
    event("tie", "2023-03-31T10:00:00", "z", action="buy"),
    event("edge", "2023-12-19T22:59:59", "e1", action="buy"),
    event("edge", AS_OF, "e2", action="buy"),
    event("edge", "2023-12-20T00:00:00", "e3", action="buy"),
    event("future", AS_OF, "f1", action="buy"),
    event("training", "2023-03-01T00:00:00", "t1", action=None),
    event("contact", "2023-03-01T00:00:00", "c1", action="contact only"),
    event("contact", "2023-03-02T00:00:00", "c2", action="contact only"),
    event("nobody", "2023-03-01T00:00:00", "n1", action="buy"),
    event("long", "2023-11-01T00:00:00", "late1", action="test period"),
    event("tie", "2023-11-01T00:00:00", "late2", action="test period"),
]
STANDINGS = {
    "long": BOTH,
    "tie": BOTH,
    "edge": BOTH,
    "future": BOTH,
    "training": ("opt_in", None),
    "contact": ("opt_out", "opt_in"),
    "nobody": NEITHER,
}


@dataclass(frozen=True)
class ProcessGroup:
    run: Run
    result: StageResult
    rows: dict[str, dict[str, Any]]
    vocabulary: dict[str, int]


def tokens(run: Run) -> dict[str, int]:
    rows = run.tables.read("vocabulary").where("field = 'action'").collect()
    return {row["value"]: row["token_id"] for row in rows}


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ProcessGroup:
    run = run_builder(spark, tmp_path_factory.mktemp("sequences") / "shop")(**SECTIONS)
    publish(run, EVENTS, STANDINGS)
    result = assemble.run(run)
    rows = {row["customer_key"]: row.asDict() for row in run.tables.read("sequences").collect()}
    return ProcessGroup(run, result, rows, tokens(run))


def micros(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()) * 1_000_000


def test_who_may_be_processed_for_either_purpose_has_a_sequence(world: ProcessGroup) -> None:
    assert set(world.rows) == {"long", "tie", "edge", "training", "contact"}


def test_nothing_at_or_after_as_of(world: ProcessGroup) -> None:
    assert world.rows["edge"]["event_time"] == [micros("2023-12-19T22:59:59")]
    assert all(time < micros(AS_OF) for row in world.rows.values() for time in row["event_time"])


def made(run: Run, rows: list[dict[str, Any]], parts: int = 1) -> list[Row]:
    """The rows of the table that these events make."""
    frame = events_frame(run, rows).repartition(parts)
    with run.letting_go(), session_settings(run.spark, BUILD_SETTINGS):
        assembler = Assembler(run, run.tables.read("vocabulary"))
        return assembler.rows(frame, frame.select("customer_key").distinct(), len(rows), len(rows)).collect()


def hashes(run: Run, rows: list[dict[str, Any]], parts: int = 1) -> dict[str, int]:
    return {row["customer_key"]: row["seq_hash"] for row in made(run, rows, parts)}


def test_order_is_by_time_and_then_by_id(world: ProcessGroup) -> None:
    ids = {value: world.vocabulary.get(value, UNKNOWN) for value in ("buy", *"abcd")}
    assert world.rows["tie"]["event_time"] == [
        micros("2023-03-31T10:00:00"),
        *[micros("2023-04-01T10:00:00")] * 4,
        micros("2023-11-01T00:00:00"),
    ]
    # Actions a to d are too rare for ids of their own, so the ids of the events tell the order by hand below.
    assert ids == {"buy": FIRST_VALUE, "a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN, "d": UNKNOWN}
    rows = [event("one", "2023-04-01T10:00:00", key, amount=n) for n, key in enumerate("dacb")]
    (row,) = made(world.run, rows)
    assert row["amount"] == [1.0, 3.0, 2.0, 0.0]


def test_the_latest_events_are_kept_and_the_rest_counted(world: ProcessGroup) -> None:
    row = world.rows["long"]
    assert (row["seq_len"], row["events_seen"]) == (KEPT, 21)
    assert row["event_time"][0] == micros("2023-03-06T12:00:00")
    assert row["event_time"][-1] == micros("2023-11-01T00:00:00")
    assert row["amount"][0] == 6.0
    assert world.result.counts["events_truncated"] == 21 - KEPT
    assert world.result.counts["events_in_sequences"] == sum(r["seq_len"] for r in world.rows.values())
    assert all(len(r["event_time"]) == len(r["action"]) == r["seq_len"] for r in world.rows.values())


def test_unknown_and_missing_are_not_the_same(world: ProcessGroup) -> None:
    assert world.rows["training"]["action"] == [MISSING]
    assert world.rows["contact"]["action"] == [UNKNOWN, UNKNOWN]
    assert world.rows["tie"]["amount"] == [None] * 6


def test_the_vocabulary_knows_nothing_of_the_test_period_or_of_those_who_refused(world: ProcessGroup) -> None:
    assert set(world.vocabulary) == {"buy"}  # 'test period' and 'contact only' are frequent enough
    assert world.rows["tie"]["action"][-1] == UNKNOWN


def test_the_shops_vocabulary_neither(prepared: Prepared) -> None:
    rows = prepared.run.tables.read("vocabulary").where("field = 'product'").collect()
    values = {row["value"] for row in rows}
    assert "books 1" in values
    events = prepared.run.tables.read("events")
    for product in (LATE_PRODUCT, REFUSED_PRODUCT):
        assert events.where(F.col("product") == product).count() >= 5  # frequent enough to be known
        assert product not in values


def test_the_result_does_not_depend_on_the_order_of_the_events(world: ProcessGroup) -> None:
    one = hashes(world.run, EVENTS)
    assert len(one) == 7
    assert hashes(world.run, EVENTS[::-1], parts=3) == one
    changed = [*EVENTS[:-1], EVENTS[-1] | {"amount": 1.0}]
    new = hashes(world.run, changed, parts=2)
    assert {key for key, value in new.items() if value != one[key]} == {"tie"}


def test_the_hash_tells_which_event_lacks_its_number(world: ProcessGroup) -> None:
    """An update rewrites only rows whose hash differs; Spark's own hash of an array passes over nulls."""
    times = ("2023-03-01T00:00:00", "2023-03-02T00:00:00")

    def hashed(*amounts: float | None) -> int:
        rows = [
            event("one", at, f"{n}" * 32, amount=amount)
            for n, (at, amount) in enumerate(zip(times, amounts, strict=True))
        ]
        (found,) = hashes(world.run, rows).values()
        return found

    assert len({hashed(None, 1.0), hashed(1.0, None), hashed(1.0, 1.0), hashed(None, None)}) == 4


def test_ids_stay_when_new_values_come(make_run: Callable[..., Run]) -> None:
    run = make_run(**SECTIONS)

    def extend(**counts: int) -> int:
        rows = [
            event("one", "2023-03-01T00:00:00", f"{action} {n}", action=action)
            for action, count in counts.items()
            for n in range(count)
        ]
        return extend_vocabulary(run, count_values(events_frame(run, rows), run.config))

    assert extend(m=3, k=2, once=1) == 2
    assert tokens(run) == {"m": FIRST_VALUE, "k": FIRST_VALUE + 1}
    # More frequent and alphabetically first: they still come last. What vanished stays.
    assert extend(b=9, a=9, k=2) == 2
    assert tokens(run) == {"m": FIRST_VALUE, "k": FIRST_VALUE + 1, "a": FIRST_VALUE + 2, "b": FIRST_VALUE + 3}
    version = run.tables.version("vocabulary")
    assert extend(b=9, a=9, k=20) == 0
    assert run.tables.version("vocabulary") == version


@pytest.mark.parametrize(
    ("as_of", "fits"),
    [("2023-03-01", False), ("2023-03-02", True), ("2024-01-03", False), ("2023-12-27", True)],
)
def test_as_of_must_lie_within_the_data(world: ProcessGroup, as_of: str, fits: bool) -> None:
    config = world.run.config.model_copy(update={"as_of": dt.date.fromisoformat(as_of)})
    run = run_builder(world.run.spark, config.workspace)(config)
    events = run.tables.read("events")
    if fits:
        check_as_of(run, *bounds_of(events))
        return
    version = run.tables.version("sequences")
    with pytest.raises(ConfigError, match=rf"as_of {as_of} is outside the data: events run from 2023-03-01"):
        assemble.run(run)
    assert run.tables.version("sequences") == version


def test_no_events_and_nobody_eligible(make_run: Callable[..., Run]) -> None:
    run = make_run(**SECTIONS)
    with pytest.raises(DataQualityError, match="the table events is empty"):
        bounds_of(events_frame(run, []))
    publish(run, [event("edge", "2023-12-15T00:00:00", "e")], {"edge": ("opt_in", "opt_out")})
    with pytest.raises(ConsentError, match="no customer is eligible for the purpose 'direct_marketing'"):
        assemble.run(run)
    assert not run.tables.exists("sequences")


def test_hours_of_the_week_are_local_across_a_clock_change(spark: SparkSession) -> None:
    # Sunday, 26 March 2023: at 01:00 UTC Berlin's clocks went from 02:00 to 03:00; on 29 October back again.
    hours = {
        "2023-03-25 22:59:59": 6 * 24 + 23,
        "2023-03-25 23:00:00": 0,
        "2023-03-26 00:59:59": 1,
        "2023-03-26 01:00:00": 3,
        "2023-03-26 22:00:00": 24,
        "2023-10-29 00:30:00": 2,
        "2023-10-29 01:30:00": 2,
        "2023-10-29 02:00:00": 3,
    }
    frame = local_frame(spark, [(at,) for at in hours], "at STRING")
    local = F.from_utc_timestamp(F.col("at").cast("timestamp"), ZONE)
    found = frame.select("at", hour_of_week(local).alias("hour")).collect()
    assert {row["at"]: row["hour"] for row in found} == hours
    assert {at: local_hour_of_week(utc(at), ZONE) for at in hours} == hours
