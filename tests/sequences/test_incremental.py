"""Updates of `sequences` give the same rows as a rebuild, whatever happened to events and consent."""

from __future__ import annotations

import datetime as dt
import re
import tempfile
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from lam_spark.errors import ConfigError
from lam_spark.sequences import build
from lam_spark.sequences.stage import build_sequences
from lam_spark.sequences.tokens import MISSING, UNKNOWN
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import micros
from tests.sequences.nightly import (
    AS_OF,
    FIRST_DAY,
    MAX_EVENTS,
    Night,
    NightlyShop,
    comparable,
    days,
    many,
    open_shop,
    run_night,
    stored,
)
from tests.support.shop import PURPOSES
from tests.support.tables import event, events_frame, rolled_back

pytestmark = pytest.mark.usefixtures("always_update")

# -- Random nights -------------------------------------------------------------------------------------------

CUSTOMERS = ("ada", "bob", "cyd", "dan")
ACTIONS = st.sampled_from(["buy", "look", "ask", "rare", None])
AMOUNTS = st.sampled_from([None, 0.1, -2.5, 3e8, 1e-9, 12.34])
CUSTOMER = st.sampled_from(CUSTOMERS)
# Few distinct times, so that ids decide the order of many events.
TIMES = st.integers(0, 60 * 4).map(lambda quarter: FIRST_DAY + dt.timedelta(hours=6 * quarter))
# Between the happening of an event and the day on which it is known.
DELAYS = st.sampled_from([0, 0, 3, 30]).map(lambda number: dt.timedelta(days=number))
BURSTS = st.tuples(
    CUSTOMER,
    TIMES,
    st.integers(1, 24),
    st.lists(st.tuples(ACTIONS, AMOUNTS), min_size=1, max_size=5),
    DELAYS,
)
NIGHTS = st.fixed_dictionaries(
    {
        "bursts": st.lists(BURSTS, max_size=3),
        "moves": st.lists(st.tuples(st.integers(0, 999), CUSTOMER, DELAYS), max_size=2),
        "deletes": st.lists(st.integers(0, 999), max_size=1),
        "statements": st.lists(
            st.tuples(
                CUSTOMER,
                st.sampled_from(PURPOSES),
                st.sampled_from(["opt_in", "opt_in", "opt_out"]),
                st.sampled_from([-1, 20]),
            ),
            max_size=3,
        ),
        "as_of": st.integers(5, 70),
    }
)


def change(shop: NightlyShop, night: dict[str, Any]) -> dt.date:
    """Apply the changes before a night's run; returns its `as_of`."""
    for customer, start, length, fields, delay in night["bursts"]:
        rows = [
            (customer, start + dt.timedelta(hours=6 * (number // 2)), *fields[number % len(fields)])
            for number in range(length)
        ]
        shop.add(*rows, delay=delay)
    for number, customer, delay in night["moves"]:
        shop.move(number, customer, delay)
    for number in night["deletes"]:
        shop.delete(number)
    for customer, purpose, state, hours in night["statements"]:
        shop.state(customer, purpose, state, hours)
    return (FIRST_DAY + dt.timedelta(days=night["as_of"])).date()


@pytest.mark.long
@settings(
    max_examples=3,
    phases=[Phase.generate],  # a failing example takes minutes, so it is not shrunk
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(nights=st.lists(NIGHTS, min_size=3, max_size=3))
def test_updates_give_the_rows_of_a_rebuild(spark: SparkSession, nights: list[dict[str, Any]]) -> None:
    # Hypothesis always starts with the simplest example: nights without changes.
    assume(any(night["bursts"] for night in nights))
    with tempfile.TemporaryDirectory() as folder:
        shop = open_shop(spark, Path(folder) / "shop")
        for customer in CUSTOMERS[:3]:
            shop.state_both(customer, "opt_in", hours=-24)
        for number, night in enumerate(nights):
            as_of = change(shop, night)
            updated = run_night(shop, as_of)
            assert number or updated.result.mode == "rebuild"
        shop.night -= 1  # at the instant of the last run
        ctx = shop.context(as_of, rebuild=True)
        assert build_sequences(ctx).rebuild_reason == "sequences.rebuild is set"
        assert stored(ctx)[0] == updated.rows


# -- A sequence of nights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Night]:
    """Nights of one shop by name, each compared with the expectation."""
    shop = open_shop(spark, tmp_path_factory.mktemp("nights") / "shop")
    nights: dict[str, Night] = {}

    def night(name: str, as_of: dt.date = AS_OF) -> None:
        nights[name] = run_night(shop, as_of)

    for customer in ("ada", "bob", "dan"):
        shop.state_both(customer, "opt_in")
    shop.add(*many("ada", 2 * MAX_EVENTS + 9), *many("bob", 5), *many("cyd", 3), *many("dan", 2, "rare"))
    night("built")
    night("no change")
    shop.add(("bob", days(40), "look", None), ("ada", days(41), "buy", -1.5), ("ada", days(0.5), "buy", 0.25))
    night("events added")
    shop.state_both("bob", "opt_out")
    shop.state_both("cyd", "opt_in")
    night("consent changed")
    (moved,) = (n for n, key in enumerate(shop.movable()) if shop.events[key]["event_time"] == days(41))
    shop.move(moved, "dan")
    shop.move(moved, "ada")
    night("moved and moved back")
    shop.add(("cyd", days(2), "rare", 1.0))
    night("value added")
    shop.add(("dan", days(2), "rare", 2.0), delay=dt.timedelta(days=60))  # known after all these days
    night("earlier as_of", dt.date(2023, 9, 12))
    night("later as_of")
    night("known", dt.date(2023, 11, 10))
    return nights


def test_the_first_run_is_a_rebuild_and_gives_the_reason(story: dict[str, Night]) -> None:
    result = story["built"].result
    assert (result.mode, result.rebuild_reason) == ("rebuild", "there is no table yet")
    updates = [night.result for name, night in story.items() if name != "built"]
    assert {(result.mode, result.rebuild_reason) for result in updates} == {("update", None)}


def test_a_run_without_changes_writes_no_row(story: dict[str, Night]) -> None:
    before, after = story["built"], story["no change"]
    assert after.result.customers_changed == 0
    assert after.rows == before.rows
    assert after.files == before.files


def test_only_customers_with_new_events_are_written(story: dict[str, Night]) -> None:
    before, after = story["no change"], story["events added"]
    assert {key for key in after.rows if after.rows[key] != before.rows[key]} == {"ada", "bob"}
    result = after.result
    assert (result.customers_added_to, result.customers_rebuilt, result.customers_deleted) == (2, 0, 0)
    assert (result.rows_inserted, result.rows_replaced, result.rows_deleted) == (0, 2, 0)
    moved = {key for key in after.files if after.files[key] != before.files[key]}
    assert moved == {"ada", "bob"}  # the other rows stay in their files


def test_an_event_before_the_stored_ones_is_added_to_the_truncated_history(story: dict[str, Night]) -> None:
    before, after = (story[name].rows["ada"] for name in ("no change", "events added"))
    assert (before["truncated_events"], after["truncated_events"]) == (MAX_EVENTS + 9, MAX_EVENTS + 11)
    assert after["first_known_at"] < before["first_known_at"]
    # In addition to the late event, the 26th event was truncated because of the new one.
    truncated = Decimal(repr(float(np.float32(25.1)))).quantize(Decimal("1e-9"), ROUND_HALF_UP)
    difference = after["truncated_sums"]["amount"] - before["truncated_sums"]["amount"]
    assert difference == Decimal("0.25") + truncated


def test_an_opt_out_deletes_the_row_and_an_opt_in_adds_the_whole_history(story: dict[str, Night]) -> None:
    rows, result = story["consent changed"].rows, story["consent changed"].result
    assert "bob" not in rows
    assert rows["cyd"]["seq_len"] == 3
    assert (result.rows_inserted, result.rows_replaced, result.rows_deleted) == (1, 0, 1)


def test_a_rebuilt_row_that_is_equal_is_not_written(story: dict[str, Night]) -> None:
    before, after = story["consent changed"], story["moved and moved back"]
    result = after.result
    assert result.customers_rebuilt == 2
    assert (result.rows_inserted, result.rows_replaced, result.rows_deleted) == (0, 0, 0)
    assert after.rows == before.rows


def test_a_value_added_to_the_vocabulary_is_encoded_in_past_events_too(story: dict[str, Night]) -> None:
    before, after = (story[name].rows["dan"]["action"] for name in ("moved and moved back", "value added"))
    assert before == [UNKNOWN, UNKNOWN]
    assert after[0] == after[1] > MISSING


def test_as_of_can_move_back_and_forth(story: dict[str, Night]) -> None:
    earlier = story["earlier as_of"].rows
    assert all(row["last_known_at"] < dt.datetime(2023, 9, 12) for row in earlier.values())
    assert story["later as_of"].rows == story["value added"].rows


def test_an_event_counts_from_the_day_on_which_it_is_known(story: dict[str, Night]) -> None:
    before, after = (story[name].rows["dan"] for name in ("later as_of", "known"))
    assert micros(days(2)) not in before["event_time"]
    # It comes last, after events that happened later and were known earlier.
    assert after["event_time"] == [*before["event_time"], micros(days(2))]
    assert after["known_at"] == [*before["known_at"], micros(days(62))]
    assert story["known"].result.customers_added_to == 1


# -- Single updates ------------------------------------------------------------------------------------------


def test_a_very_long_history_is_never_collected_whole(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when such a customer is rebuilt among many with few events: the mean says nothing about the longest."""
    summarised: list[DataFrame] = []
    summarise = build.summarise_truncated

    def recorded(truncated: DataFrame, *rest: Any) -> DataFrame:
        summarised.append(truncated)
        return summarise(truncated, *rest)

    monkeypatch.setattr(build, "summarise_truncated", recorded)
    shop = open_shop(spark, tmp_path / "shop")
    few = [f"few{number}" for number in range(40)]
    shop.add(*many("till", 12 * MAX_EVENTS), *(row for name in few for row in many(name, 1)))
    for name in ("till", *few):
        shop.state_both(name, "opt_in")
    run_night(shop)
    assert len(summarised) == 1

    def check_next_night() -> None:
        summarised.clear()
        assert run_night(shop).result.customers_rebuilt == 1
        assert len(summarised) == 1

    (one,) = (n for n, key in enumerate(shop.movable()) if shop.events[key]["event_time"] == days(30))
    shop.move(one, "few0")
    check_next_night()  # "few0" only gains an event, which is merged into its row
    shop.state_both("till", "opt_out")
    run_night(shop)
    shop.state_both("till", "opt_in")
    check_next_night()


def test_events_that_were_rolled_back_have_no_effect(spark: SparkSession, tmp_path: Path) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    shop.state_both("ada", "opt_in")
    run_night(shop)
    for has_events in (False, True):
        if has_events:  # before the rolled-back commits, and after them
            shop.add(*many("ada", 2))
        ctx = shop.context(AS_OF)
        with rolled_back(ctx, "events"):
            ctx.tables.append(events_frame(ctx, [event("ada", "2023-10-05T12:00:00", "f" * 32)]), "events")
            shop.move(0, "ada")
        if has_events:
            shop.move(0, "ada")
            shop.add(*many("ada", 1, "rare"))
        assert run_night(shop).result.mode == "update"


def test_an_update_that_dies_between_two_commits_is_rolled_back_and_repeated(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    for customer in ("ada", "bob"):
        shop.state_both(customer, "opt_in")
    shop.add(*many("ada", 5), *many("bob", 2, "rare"))
    before = run_night(shop).rows
    shop.state_both("ada", "opt_out")
    shop.add(("bob", days(2), "rare", 1.0))  # the third event: the vocabulary now contains the value

    def dies_after_deletion(tables: Tables, *arguments: Any, **options: Any) -> dict[str, int]:
        assert update(tables, *arguments, **options)["numTargetRowsDeleted"] == 1
        raise MemoryError("no space left")

    update = Tables.update
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "update", dies_after_deletion)
        with pytest.raises(MemoryError):
            build_sequences(shop.context(AS_OF))
    assert stored(shop.context(AS_OF))[0] == before
    result = run_night(shop).result
    assert result.mode == "update"
    assert (result.rows_replaced, result.rows_deleted, result.vocabulary_added) == (1, 1, 1)


def test_an_update_checks_as_of_against_the_new_time_range(shop: NightlyShop) -> None:
    version = shop.tables.version("sequences")
    message = (
        "as_of 2023-09-01 is outside the data: events run from 2023-09-01 to 2023-09-01 (UTC), and as_of may be at "
        "most quality.max_staleness_days = 400 days after the last"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_sequences(shop.context(dt.date(2023, 9, 1)))
    assert shop.tables.version("sequences") == version


def test_added_events_are_merged_without_reading_the_history(spark: SparkSession, tmp_path: Path) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    shop.add(*many("anchor", 5))
    run_night(shop)
    history = [Path(file.removeprefix("file:")) for file in shop.tables.read("events").inputFiles()]
    shop.add(("anchor", days(12), "buy", 2.0), ("anchor", days(1), "look", 3.0))
    for file in history:
        file.unlink()
    ctx = shop.context(AS_OF)
    assert build_sequences(ctx).customers_added_to == 1
    assert comparable(stored(ctx)[0]) == shop.expected(ctx)
