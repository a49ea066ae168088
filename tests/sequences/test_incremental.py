"""Nights of `sequences`: what an update makes is what a rebuild makes, whatever happened to events and consent."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run, StageResult
from lam_spark.sequences import build as gather
from lam_spark.sequences import incremental as increment
from lam_spark.sequences import stage as assemble
from lam_spark.sequences.time_range import micros
from lam_spark.sequences.vocabulary import MISSING, UNKNOWN
from lam_spark.storage.tables.store import Tables
from tests.support.shop import ONE_TARGET, PURPOSES, STARTED_AT, run_builder
from tests.support.tables import event, events_frame, ledger_frame, taken_back

KEPT = 16
SECTIONS = {
    "sequences": {"max_events": KEPT},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    "quality": {"max_staleness_days": 400},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 3},
        "amount": {"role": "how", "kind": "numeric"},
    },
}
PEOPLE = ("ada", "bob", "cyd", "dan")
FIRST_DAY = dt.datetime(2023, 9, 1, tzinfo=dt.UTC)  # the vocabulary's cut is 1 October
CUT = dt.datetime(2023, 9, 30, 22, tzinfo=dt.UTC)
AS_OF = dt.date(2023, 10, 20)


@pytest.fixture(scope="module", autouse=True)
def always_update() -> Iterator[None]:
    """Most of these few customers change in a night: that is no reason here to make all rows anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(increment, "_MOST_REMADE", 10)
        yield


@dataclass
class Shop:
    """The tables of a workspace, and the same in plain Python.

    Attributes:
        added: events that ever came.
        noted: statements that the ledger holds: each commit takes the better part of a second, so those of a night
            wait for one.
    """

    spark: SparkSession
    root: Path
    night: int = 0
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    statements: list[tuple[str, str, str, dt.datetime, int]] = field(default_factory=list)
    added: int = 0
    noted: int = 0

    def __post_init__(self) -> None:
        self._build = run_builder(self.spark, self.root)
        self._config = self._build(**SECTIONS).config

    def copied(self, root: Path) -> Shop:
        """The same shop under another root."""
        shutil.copytree(self.root, root)
        return dataclasses.replace(
            self, root=root, events=dict(self.events), statements=list(self.statements)
        )

    @property
    def started_at(self) -> dt.datetime:
        return STARTED_AT + dt.timedelta(days=self.night)

    @property
    def tables(self) -> Tables:
        return self._build(self._config).tables

    def run(self, as_of: dt.date, rebuild: bool = False) -> Run:
        """A run over all that was added and stated."""
        self._note_statements()
        sequences = self._config.sequences.model_copy(update={"rebuild": rebuild})
        config = self._config.model_copy(update={"as_of": as_of, "sequences": sequences})
        return self._build(config, started_at=self.started_at)

    def _sql(self, statement: str) -> None:
        self.spark.sql(statement.format(events=f"delta.`{self.tables.path('events')}`"))

    def add(self, *rows: tuple[str, dt.datetime, str | None, float | None]) -> None:
        """Append events (customer, time, action, amount)."""
        made = {}
        for customer, at, action, amount in rows:
            # Ids in no order, as hashes are.
            key = f"{self.added * 0x9E3779B97F4A7C15 % 2**64:016x}" + "0" * 16
            self.added += 1
            made[key] = event(customer, at.isoformat()[:19], key, action=action, amount=amount)
        run = self._build(self._config)
        run.tables.append(events_frame(run, list(made.values())), "events")
        self.events |= made

    def move(self, number: int, customer: str) -> None:
        """Give an event to another customer, as a later identity link does."""
        key = self._pick(number)
        if key is not None:
            self._sql(f"UPDATE {{events}} SET customer_key = '{customer}' WHERE event_id = '{key}'")
            self.events[key] = self.events[key] | {"customer_key": customer}

    def delete(self, number: int) -> None:
        """Take an event away."""
        key = self._pick(number)
        if key is not None:
            self._sql(f"DELETE FROM {{events}} WHERE event_id = '{key}'")
            del self.events[key]

    def numbered(self) -> list[str]:
        """Ids of the events that may be moved or deleted; the anchor keeps the tables from being empty."""
        return sorted(key for key, row in self.events.items() if row["customer_key"] != "anchor")

    def _pick(self, number: int) -> str | None:
        keys = self.numbered()
        return keys[number % len(keys)] if keys else None

    def state(self, customer: str, purpose: str, state: str, hours: int = -1) -> None:
        """A consent statement in effect `hours` after this night's run starts."""
        at = self.started_at + dt.timedelta(hours=hours)
        self.statements.append((customer, purpose, state, at, len(self.statements)))

    def _note_statements(self) -> None:
        """Append to the ledger what was stated since."""
        rows = []
        for customer, purpose, state, at, number in self.statements[self.noted :]:
            recorded_at = dt.datetime(2023, 1, 1) + dt.timedelta(seconds=number)
            rows.append((customer, purpose, state, at.isoformat()[:19], recorded_at.isoformat()))
        if rows:
            self.tables.append(ledger_frame(self.spark, rows), "consent")
            self.noted = len(self.statements)

    def eligible(self, purpose: str) -> set[str]:
        newest: dict[str, tuple[dt.datetime, int, str]] = {}
        for customer, about, state, at, number in self.statements:
            if about == purpose and at <= self.started_at:
                newest[customer] = max(newest.get(customer, (at, number, state)), (at, number, state))
        return {customer for customer, (_, _, state) in newest.items() if state == "opt_in"}

    def expected(self, run: Run) -> dict[str, dict[str, Any]]:
        """The rows that there should be, from the events of today and the vocabulary as it stands."""
        rows = run.tables.read("vocabulary").collect()
        ids = {row["value"]: row["token_id"] for row in rows}
        found = {}
        for customer in self.eligible(PURPOSES[0]) | self.eligible(PURPOSES[1]):
            mine = [
                (micros(row["event_time"]), key, row["action"], row["amount"])
                for key, row in self.events.items()
                if row["customer_key"] == customer and row["event_time"] < run.as_of
            ]
            if mine:
                found[customer] = _expected_row(sorted(mine), ids)
        return found

    def expected_counts(self, run: Run) -> dict[str, int]:
        """What the vocabulary counts."""
        trained = self.eligible(PURPOSES[0])
        return Counter(
            row["action"]
            for row in self.events.values()
            if row["customer_key"] in trained
            and row["event_time"] < min(run.as_of, CUT)
            and row["action"] is not None
        )


def _expected_row(
    mine: list[tuple[int, str, str | None, float | None]], ids: dict[str, int]
) -> dict[str, Any]:
    def token(action: str | None) -> int:
        return MISSING if action is None else ids.get(action, UNKNOWN)

    def decimal(amount: float | None) -> Decimal:
        # repr of the float32's double is the text that Spark's cast starts from.
        return Decimal(0) if amount is None else Decimal(repr(float(np.float32(amount))))

    older, kept = mine[:-KEPT], mine[-KEPT:]
    counts = Counter(token(action) for _, _, action, _ in older)
    places = Decimal("1e-9")
    total = sum((decimal(a).quantize(places, ROUND_HALF_UP) for *_, a in older), Decimal(0))
    return {
        "seq_len": len(kept),
        "events_seen": len(mine),
        "event_time": [at for at, *_ in kept],
        "event_order": [int(key[:15], 16) for _, key, _, _ in kept],
        "action": [token(action) for _, _, action, _ in kept],
        "amount": [None if a is None else float(np.float32(a)) for *_, a in kept],
        "first": mine[0][0],
        "last": mine[-1][0],
        "truncated_events": len(older),
        "truncated_counts": dict(counts) or None,
        "truncated_sums": {"amount": total} if older else None,
    }


def stored(run: Run) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Rows and files by customer, in one reading; first and last instant also in microseconds (UTC)."""
    instants = {"first": F.unix_micros("first_event_time"), "last": F.unix_micros("last_event_time")}
    frame = run.tables.read("sequences").select("*", "_metadata.file_path").withColumns(instants)
    rows = {row["customer_key"]: row.asDict(True) for row in frame.collect()}
    files = {key: row.pop("file_path") for key, row in rows.items()}
    return rows, files


def told(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows without what the expectation does not tell."""
    dropped = ("customer_key", "first_event_time", "last_event_time", "hour_of_week", "seq_hash")
    return {key: {k: v for k, v in row.items() if k not in dropped} for key, row in rows.items()}


def counted(run: Run) -> dict[str, int]:
    return {row["value"]: row["count"] for row in run.tables.read("value_counts").collect()}


@dataclass(frozen=True)
class Night:
    """A night that was played: what the stage said, the table after it, and the file of each row."""

    result: StageResult
    rows: dict[str, Any]
    files: dict[str, str]


def played(shop: Shop, as_of: dt.date) -> Night:
    """Run a night and hold its tables against the expectation."""
    run = shop.run(as_of)
    result = assemble.run(run)
    rows, files = stored(run)
    assert told(rows) == shop.expected(run)
    assert counted(run) == shop.expected_counts(run)
    shop.night += 1
    return Night(result, rows, files)


def check(shop: Shop, as_of: dt.date) -> StageResult:
    return played(shop, as_of).result


def open_shop(spark: SparkSession, root: Path) -> Shop:
    """A shop with one customer who stays as they are."""
    shop = Shop(spark, root)
    shop.add(("anchor", FIRST_DAY, "buy", 1.0))
    for purpose in PURPOSES:
        shop.state("anchor", purpose, "opt_in", hours=-48)
    return shop


@pytest.fixture(scope="module")
def opened(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """That shop after its first night."""
    shop = open_shop(spark, tmp_path_factory.mktemp("opened") / "shop")
    check(shop, AS_OF)
    return shop


@pytest.fixture
def shop(opened: Shop, tmp_path: Path) -> Shop:
    """A copy of it, to go on with."""
    return opened.copied(tmp_path / "shop")


# -- Any nights ----------------------------------------------------------------------------------------------

ACTIONS = st.sampled_from(["buy", "look", "ask", "rare", None])
AMOUNTS = st.sampled_from([None, 0.1, -2.5, 3e8, 1e-9, 12.34])
SOMEONE = st.sampled_from(PEOPLE)
# Few distinct times, so that ids decide the order of many.
MOMENTS = st.integers(0, 60 * 4).map(lambda quarter: FIRST_DAY + dt.timedelta(hours=6 * quarter))
BURSTS = st.tuples(
    SOMEONE, MOMENTS, st.integers(1, 24), st.lists(st.tuples(ACTIONS, AMOUNTS), min_size=1, max_size=5)
)
NIGHTS = st.fixed_dictionaries(
    {
        "bursts": st.lists(BURSTS, max_size=3),
        "moves": st.lists(st.tuples(st.integers(0, 999), SOMEONE), max_size=1),
        "deletes": st.lists(st.integers(0, 999), max_size=1),
        "statements": st.lists(
            st.tuples(
                SOMEONE,
                st.sampled_from(PURPOSES),
                st.sampled_from(["opt_in", "opt_in", "opt_out"]),
                st.sampled_from([-1, 20]),
            ),
            max_size=3,
        ),
        "as_of": st.integers(5, 70),
    }
)


def play(shop: Shop, night: dict[str, Any]) -> dt.date:
    """What happens before a night's run; returns its `as_of`."""
    rows = [
        (customer, start + dt.timedelta(hours=6 * (number // 2)), *fields[number % len(fields)])
        for customer, start, length, fields in night["bursts"]
        for number in range(length)
    ]
    if rows:
        shop.add(*rows)
    for number, customer in night["moves"]:
        shop.move(number, customer)
    for number in night["deletes"]:
        shop.delete(number)
    for customer, purpose, state, hours in night["statements"]:
        shop.state(customer, purpose, state, hours)
    return (FIRST_DAY + dt.timedelta(days=night["as_of"])).date()


@pytest.mark.long
@settings(
    max_examples=3,
    phases=[Phase.generate],  # a failing example takes minutes: it is not made smaller
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(nights=st.lists(NIGHTS, min_size=3, max_size=3))
def test_updates_give_what_a_rebuild_gives(spark: SparkSession, nights: list[dict[str, Any]]) -> None:
    # The first that is drawn is always the simplest: nights in which nothing happens.
    assume(any(night["bursts"] for night in nights))
    with tempfile.TemporaryDirectory() as folder:
        shop = open_shop(spark, Path(folder) / "shop")
        for customer in PEOPLE[:3]:
            for purpose in PURPOSES:
                shop.state(customer, purpose, "opt_in", hours=-24)
        for number, night in enumerate(nights):
            as_of = play(shop, night)
            updated = played(shop, as_of)
            assert number or updated.result.facts["mode"] == "rebuild"
        shop.night -= 1  # at the instant of the last run
        again = shop.run(as_of, rebuild=True)
        assert assemble.run(again).facts["why"] == "sequences.rebuild is set"
        assert stored(again)[0] == updated.rows


# -- One story -----------------------------------------------------------------------------------------------


EARLIER = dt.date(2023, 9, 12)


def days(number: float) -> dt.datetime:
    return FIRST_DAY + dt.timedelta(days=number)


def many(customer: str, count: int, action: str | None = "buy", first_day: float = 1) -> list[Any]:
    """Events of a customer, four a day, with amounts that differ."""
    return [(customer, days(first_day + n / 4), action, n + 0.1) for n in range(count)]


@pytest.fixture(scope="module")
def story(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Night]:
    """Nights of one shop, each held against the expectation."""
    shop = open_shop(spark, tmp_path_factory.mktemp("nights") / "shop")
    nights: dict[str, Night] = {}

    def night(name: str, as_of: dt.date = AS_OF) -> None:
        nights[name] = played(shop, as_of)

    for customer in ("ada", "bob", "dan"):
        for purpose in PURPOSES:
            shop.state(customer, purpose, "opt_in")
    shop.add(*many("ada", 2 * KEPT + 9), *many("bob", 5), *many("cyd", 3), *many("dan", 2, "rare"))
    night("built")
    night("nothing new")
    shop.add(("bob", days(40), "look", None), ("ada", days(41), "buy", -1.5), ("ada", days(0.5), "buy", 0.25))
    night("events came")
    for purpose in PURPOSES:
        shop.state("bob", purpose, "opt_out")
        shop.state("cyd", purpose, "opt_in")
    night("consent changed")
    (moved,) = (n for n, key in enumerate(shop.numbered()) if shop.events[key]["event_time"] == days(41))
    shop.move(moved, "dan")
    shop.move(moved, "ada")
    night("there and back")
    shop.add(("cyd", days(2), "rare", 1.0))
    night("a value was learnt")
    night("back in time", EARLIER)
    night("and forth again")
    return nights


def test_a_first_run_builds_all_and_says_why(story: dict[str, Night]) -> None:
    result = story["built"].result
    assert result.facts["mode"] == "rebuild"
    assert result.facts["why"] == "there is no table yet"
    assert all(night.result.facts["mode"] == "update" for name, night in story.items() if name != "built")


def test_a_run_without_news_changes_no_row(story: dict[str, Night]) -> None:
    before, after = story["built"], story["nothing new"]
    assert after.result.counts["customers_changed"] == 0
    assert after.rows == before.rows
    assert after.files == before.files


def test_only_those_with_new_events_are_written(story: dict[str, Night]) -> None:
    before, after = story["nothing new"], story["events came"]
    assert {key for key in after.rows if after.rows[key] != before.rows[key]} == {"ada", "bob"}
    counts = after.result.counts
    assert (counts["customers_added_to"], counts["customers_remade"], counts["customers_deleted"]) == (
        2,
        0,
        0,
    )
    assert (counts["rows_inserted"], counts["rows_replaced"], counts["rows_deleted"]) == (0, 2, 0)
    moved = {key for key in after.files if after.files[key] != before.files[key]}
    assert moved == {"ada", "bob"}  # the others stay where they were


def test_an_event_older_than_all_that_is_kept_joins_the_sums(story: dict[str, Night]) -> None:
    before, after = (story[name].rows["ada"] for name in ("nothing new", "events came"))
    assert (before["truncated_events"], after["truncated_events"]) == (KEPT + 9, KEPT + 11)
    assert after["first_event_time"] < before["first_event_time"]
    # Besides the late one, the event that the new one pushed out: the 26th.
    pushed_out = Decimal(repr(float(np.float32(25.1)))).quantize(Decimal("1e-9"), ROUND_HALF_UP)
    difference = after["truncated_sums"]["amount"] - before["truncated_sums"]["amount"]
    assert difference == Decimal("0.25") + pushed_out


def test_who_opts_out_is_deleted_and_who_opts_in_has_a_past(story: dict[str, Night]) -> None:
    rows, counts = story["consent changed"].rows, story["consent changed"].result.counts
    assert "bob" not in rows
    assert rows["cyd"]["seq_len"] == 3
    assert (counts["rows_inserted"], counts["rows_replaced"], counts["rows_deleted"]) == (1, 0, 1)


def test_a_row_that_comes_out_the_same_is_not_written(story: dict[str, Night]) -> None:
    before, after = story["consent changed"], story["there and back"]
    counts = after.result.counts
    assert counts["customers_remade"] == 2
    assert (counts["rows_inserted"], counts["rows_replaced"], counts["rows_deleted"]) == (0, 0, 0)
    assert after.rows == before.rows


def test_a_value_that_becomes_known_is_known_in_the_past_too(story: dict[str, Night]) -> None:
    before, after = (story[name].rows["dan"]["action"] for name in ("there and back", "a value was learnt"))
    assert before == [UNKNOWN, UNKNOWN]
    assert after[0] == after[1] > MISSING


def test_as_of_can_go_back_and_forth(story: dict[str, Night]) -> None:
    back = story["back in time"].rows
    assert all(row["last_event_time"] < dt.datetime(2023, 9, 12) for row in back.values())
    assert story["and forth again"].rows == story["a value was learnt"].rows


def test_one_customer_of_very_many_events_is_never_gathered_whole(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again among many who have few: a mean says nothing of the longest."""
    summed: list[Any] = []
    summaries = gather.truncated_summaries

    def watched(older: DataFrame, *rest: Any) -> DataFrame:
        summed.append(older)
        return summaries(older, *rest)

    monkeypatch.setattr(gather, "truncated_summaries", watched)
    shop = open_shop(spark, tmp_path / "shop")
    few = [f"few{number}" for number in range(40)]
    shop.add(*many("till", 12 * KEPT), *(row for name in few for row in many(name, 1)))
    for name in ("till", *few):
        for purpose in PURPOSES:
            shop.state(name, purpose, "opt_in")
    check(shop, AS_OF)
    assert len(summed) == 1

    def night(remade: int) -> None:
        summed.clear()
        assert check(shop, AS_OF).counts["customers_remade"] == remade
        assert len(summed) == 1

    (one,) = (n for n, key in enumerate(shop.numbered()) if shop.events[key]["event_time"] == days(30))
    shop.move(one, "few0")
    night(1)  # "few0" only gains: that is merged into the row
    for purpose in PURPOSES:
        shop.state("till", purpose, "opt_out")
    check(shop, AS_OF)
    for purpose in PURPOSES:
        shop.state("till", purpose, "opt_in")
    night(1)


def test_where_most_would_change_all_are_made_anew(shop: Shop) -> None:
    shop.add(*many("ada", 3))  # now "buy" is frequent enough to be known: the anchor's, too
    for purpose in PURPOSES:
        shop.state("ada", purpose, "opt_in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(increment, "_MOST_REMADE", 0.3)
        result = check(shop, AS_OF)
    assert result.facts["why"] == "2 customers have to be made again or deleted"


@pytest.mark.parametrize(
    ("section", "change"),
    [("sequences", {"max_events": KEPT + 1}), ("quality", {"max_staleness_days": 300})],
)
def test_only_a_change_that_matters_takes_a_rebuild(shop: Shop, section: str, change: dict[str, Any]) -> None:
    run = shop.run(AS_OF)
    changed = getattr(run.config, section).model_copy(update=change)
    config = run.config.model_copy(update={section: changed})
    facts = assemble.run(dataclasses.replace(run, config=config)).facts
    if section == "sequences":
        assert facts["why"] == "fields, limits, purposes or time zone have changed"
    else:
        assert facts["mode"] == "update"


def test_events_that_were_replaced_and_a_table_that_was_touched_take_a_rebuild(
    spark: SparkSession, shop: Shop
) -> None:
    tables = shop.run(AS_OF).tables
    tables.overwrite(tables.read("events"), "events")
    assert check(shop, AS_OF).facts["why"] == "the events were replaced, or their change feed has a gap"
    tables.append(tables.read("sequences").withColumn("customer_key", F.lit("nobody")), "sequences")
    assert check(shop, AS_OF).facts["why"] == "the table's last change does not say what it was made of"
    spark.sql(f"OPTIMIZE delta.`{tables.path('sequences')}`")
    assert check(shop, AS_OF).facts["mode"] == "update"
    shop.night += 7
    assert check(shop, AS_OF).facts["why"] == "the table is more than 6 days old"


def test_events_that_were_taken_back_are_as_if_they_had_never_come(
    spark: SparkSession, tmp_path: Path
) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    for purpose in PURPOSES:
        shop.state("ada", purpose, "opt_in")
    check(shop, AS_OF)
    for known in (False, True):
        if known:  # before what is taken back, and after
            shop.add(*many("ada", 2))
        run = shop.run(AS_OF)
        with taken_back(run, "events"):
            run.tables.append(events_frame(run, [event("ada", "2023-10-05T12:00:00", "f" * 32)]), "events")
            shop.move(0, "ada")
        if known:
            shop.move(0, "ada")
            shop.add(*many("ada", 1, "rare"))
        assert check(shop, AS_OF).facts["mode"] == "update"


def test_a_night_that_dies_between_its_commits_leaves_the_rows_and_the_next_one_makes_up_for_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    for customer in ("ada", "bob"):
        for purpose in PURPOSES:
            shop.state(customer, purpose, "opt_in")
    shop.add(*many("ada", 5), *many("bob", 2, "rare"))
    before = played(shop, AS_OF).rows
    for purpose in PURPOSES:
        shop.state("ada", purpose, "opt_out")
    shop.add(("bob", days(2), "rare", 1.0))  # the third: now the vocabulary takes it

    def dies(tables: Tables, keys: DataFrame, name: str, key: str) -> int:
        assert delete(tables, keys, name, key) == 1
        raise MemoryError("no space left")

    delete = Tables._delete
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "_delete", dies)
        with pytest.raises(MemoryError):
            assemble.run(shop.run(AS_OF))
    assert stored(shop.run(AS_OF))[0] == before
    result = check(shop, AS_OF)
    assert result.facts["mode"] == "update"
    counts = result.counts
    assert (counts["rows_replaced"], counts["rows_deleted"], counts["vocabulary_added"]) == (1, 1, 1)


def test_an_update_holds_as_of_against_the_new_bounds(shop: Shop) -> None:
    version = shop.run(AS_OF).tables.version("sequences")
    with pytest.raises(ConfigError, match="as_of 2023-09-01 is outside the data: events run from 2023-09-01"):
        assemble.run(shop.run(dt.date(2023, 9, 1)))
    assert shop.run(AS_OF).tables.version("sequences") == version


def test_additions_are_merged_without_a_look_at_history(spark: SparkSession, tmp_path: Path) -> None:
    shop = open_shop(spark, tmp_path / "shop")
    tables = shop.run(AS_OF).tables
    shop.add(*many("anchor", 5))
    check(shop, AS_OF)
    history = [Path(file.removeprefix("file:")) for file in tables.read("events").inputFiles()]
    shop.add(("anchor", days(12), "buy", 2.0), ("anchor", days(1), "look", 3.0))
    for file in history:
        file.unlink()
    run = shop.run(AS_OF)
    assert assemble.run(run).counts["customers_added_to"] == 1
    assert told(stored(run)[0]) == shop.expected(run)


def test_a_reader_that_knows_nothing_of_deletion_vectors_is_kept_out(shop: Shop) -> None:
    tables = shop.run(AS_OF).tables
    with pytest.raises(DataQualityError, match="has deletion vectors"):
        tables.files("sequences", tables.version("sequences"))
