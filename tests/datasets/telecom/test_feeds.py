"""Ids, clocks, dirt and consent of the telecom world, and the configuration that reads its feeds."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lam_spark.config.load import load_config
from lam_spark.datasets.telecom import defects, parts, place
from lam_spark.datasets.telecom.consent import PURPOSES, draw_consent
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, STATEMENTS, Feed, read_back, write_times
from lam_spark.datasets.telecom.identities import (
    KINDS,
    KIOSK,
    LOOKBACK_DAYS,
    MAX_CUSTOMERS,
    NOBODY,
    RAW_ID_PATTERN,
    Links,
    member,
    spell,
)
from lam_spark.datasets.telecom.parameters import AUTUMN, CONSENT, DAY, SPAN, SPRING, START, World
from lam_spark.datasets.telecom.rows import Rows, draw_chunk, draw_rows
from lam_spark.errors import ConfigError

CONF = Path(__file__).parents[3] / "conf" / "telco.yaml"
LISBON = zoneinfo.ZoneInfo("Europe/Lisbon")
FEEDS = [*CHANNELS.values(), *LINKS.values()]
STARTED = dt.datetime.fromisoformat(START).replace(tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def rows() -> dict[str, Rows]:
    """The true rows of the second chunk, by feed."""
    return {feed.name: held for feed, held in draw_rows(draw_chunk(World(1_000, 3, 0.05), 1))}


def links(*told: tuple[int, int, int]) -> Links:
    """Statements (id, customer, day)."""
    number, owner, day = np.array(told).T
    return Links(number, owner, day * DAY)


def found(held: Links, number: int, day: float) -> int:
    return int(held.find(np.array([number]), np.array([int(day * DAY)]))[0])


def test_an_id_belongs_to_the_customer_of_its_latest_link() -> None:
    held = links((7, 1, 10), (7, 2, 20))
    assert [found(held, 7, day) for day in (10, 19.9, 20, 300)] == [1, 1, 2, 2]


def test_before_its_first_link_an_id_is_looked_back_upon_for_a_while() -> None:
    held = links((7, 1, 100), (7, 2, 120))
    assert found(held, 7, 100 - LOOKBACK_DAYS) == 1
    assert found(held, 7, 99.9 - LOOKBACK_DAYS) == NOBODY


def test_two_owners_at_one_instant_are_none_until_the_next_link() -> None:
    held = links((7, 1, 10), (7, 1, 20), (7, 2, 20), (7, 1, 30))
    assert [found(held, 7, day) for day in (15, 25, 35)] == [1, NOBODY, 1]


def test_an_id_of_many_customers_is_nobodys() -> None:
    few, many = range(MAX_CUSTOMERS), range(MAX_CUSTOMERS + 1)
    assert found(links(*((7, owner, owner) for owner in few)), 7, 50) == MAX_CUSTOMERS - 1
    assert found(links(*((7, owner, owner) for owner in many)), 7, 50) == NOBODY
    assert found(links((KIOSK, 1, 1)), KIOSK, 2) == NOBODY


def test_an_id_without_links_is_nobodys() -> None:
    assert [found(links((7, 1, 10)), number, 15) for number in (6, 8)] == [NOBODY, NOBODY]
    nothing = np.zeros(0, dtype=np.int64)
    assert found(Links(nothing, nothing, nothing), 7, 1) == NOBODY


@given(
    told=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 90)), min_size=1, max_size=25
    ),
    asked=st.tuples(st.integers(0, 3), st.integers(0, 120)),
)
def test_links_are_read_as_the_rules_say(told: list[tuple[int, int, int]], asked: tuple[int, int]) -> None:
    number, day = asked
    own = [(at, owner) for known, owner, at in set(told) if known == number]
    earlier = [at for at, _ in own if at <= day]
    first = min((at for at, _ in own), default=None)
    deciding = (
        max(earlier) if earlier else first if first is not None and first - day <= LOOKBACK_DAYS else None
    )
    owners = {owner for at, owner in own if at == deciding}
    too_many = len({owner for _, owner in own}) > MAX_CUSTOMERS
    expected = owners.pop() if len(owners) == 1 and not too_many else NOBODY
    assert found(links(*set(told)), number, day) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_ids_are_spelled_alike_and_all_are_found_by_their_text(kind: str) -> None:
    numbers = np.concatenate([np.arange(0, 50_000), np.arange(KIOSK - 50_000, KIOSK)])
    spelled = spell(kind, numbers)
    assert len(set(spelled)) == len(numbers)
    pattern = re.compile(RAW_ID_PATTERN)
    assert all(pattern.search(text) for text in spelled[:1_000])
    assert pattern.search(member(np.array([12]))[0])


@pytest.mark.parametrize(("name", "least"), [("phone", 0.98), ("card", 0.99), ("address", 1.0)])
def test_what_passes_between_customers_is_found_as_its_owners_or_nobodys(
    rows: dict[str, Rows], name: str, least: float
) -> None:
    channel = next(feed.name for feed in CHANNELS.values() if feed.kind == name)
    held = rows[channel]
    assert np.isin(held.found, [NOBODY]).mean() < 0.03
    assert ((held.found == held.owner) | (held.found == NOBODY)).all()
    assert (held.found == held.owner).mean() >= least - 0.02


def test_planted_looks_at_plans_are_found_as_their_owners(rows: dict[str, Rows]) -> None:
    for name in ("app", "web"):
        planted = np.isin(rows[name].values["word"], ["compare_plans"])
        assert (rows[name].found == rows[name].owner)[planted].mean() > 0.98


def test_a_shared_device_and_the_kiosk_show_in_who_is_found(rows: dict[str, Rows]) -> None:
    app = rows["app"]
    kiosk = app.number == KIOSK
    assert kiosk.any()
    assert (app.found[kiosk] == NOBODY).all()
    wrong = (app.found != app.owner) & (app.found != NOBODY)
    assert 0.001 < wrong.mean() < 0.05
    assert len(set(app.number[wrong])) < len(set(app.number)) / 10


@given(st.integers(-1_500 * DAY, SPAN))
def test_clocks_show_what_they_would_in_lisbon(at: int) -> None:
    instant = STARTED + dt.timedelta(seconds=at)
    local = instant.astimezone(LISBON) if at >= 0 else instant  # local clocks show the year only
    shown = {clock: write_times(clock, np.array([at]))[0] for clock in ("iso", "millis", "instant", "day")}
    assert shown["iso"] == instant.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert shown["millis"] == shown["instant"] // 1_000 == int(instant.timestamp()) * 1_000
    assert dt.date(1970, 1, 1) + dt.timedelta(days=int(shown["day"])) == instant.date()
    if at >= 0:
        assert write_times("local", np.array([at]))[0] == local.strftime("%Y-%m-%d %H:%M:%S")
        assert write_times("local_day_first", np.array([at]))[0] == local.strftime("%d/%m/%Y %H:%M:%S")
        naive = dt.datetime(1970, 1, 1) + dt.timedelta(
            microseconds=int(write_times("local_instant", np.array([at]))[0])
        )
        assert naive == local.replace(tzinfo=None)


@pytest.mark.parametrize("shift", [-7_200, -3_601, -3_600, -1, 0, 1, 3_599, 3_600])
@pytest.mark.parametrize("change", [SPRING, AUTUMN])
def test_of_an_hour_shown_twice_the_first_is_meant(change: int, shift: int) -> None:
    at = np.array([change + shift])
    text = write_times("local", at)[0]
    read = dt.datetime.fromisoformat(text).replace(tzinfo=LISBON, fold=0).astimezone(dt.UTC)
    assert read_back(CHANNELS["call_centre"], at)[0] == (read - STARTED).total_seconds()
    assert read_back(CHANNELS["web"], at) == at


def soiled(feed: Feed, share: float, rows: int = 20_000) -> defects.Soiled:
    """So many equal true rows of a feed, soiled."""
    words: dict[str, object] = {"key": "k", "id": "someone", feed.whole: 5, feed.real: 5.0}
    columns = {name: words.get(name, words.get(holds, "word")) for name, holds in feed.columns.items()}
    if feed.column("time"):
        columns[feed.column("time")] = write_times(feed.clock, np.array([DAY]))[0]
    held = {name: np.full(rows, value, dtype=object) for name, value in columns.items()}
    return defects.soil(
        np.random.default_rng(1),
        feed,
        held,
        share,
        never_linked=lambda positions: np.full(len(positions), "never", dtype=object),
        new_keys=lambda count: np.array([f"new {i}" for i in range(count)], dtype=object),
    )


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_dirt_is_of_the_declared_kinds_and_as_much_as_asked(feed: Feed) -> None:
    made = soiled(feed, 0.1)
    kinds = Counter(made.kind)
    assert 1 - kinds[defects.CLEAN] / len(made.kind) == pytest.approx(0.1, abs=0.01)
    assert set(kinds) == {defects.CLEAN, *defects.kinds_of(feed)}
    assert (soiled(feed, 0.0).kind == defects.CLEAN).all()


def row(made: defects.Soiled, i: int, keyed: str) -> tuple[object, ...]:
    """A raw row; new keys are all one."""
    values = (held[i] for name, held in made.columns.items())
    return (*("new" if str(value).startswith("new ") else str(value) for value in values), bool(made.cut[i]))


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_a_dirty_row_has_one_fault_and_no_two_kinds_look_alike(feed: Feed) -> None:
    made = soiled(feed, 0.1)
    key = feed.column("key")
    looks = {kind: {row(made, i, key) for i in np.flatnonzero(made.kind == kind)} for kind in set(made.kind)}
    true = looks.pop(defects.CLEAN)
    assert len(true) == 1
    assert looks.pop(defects.AGAIN) == looks.pop(defects.AGAIN_ELSEWHERE) == true
    for kind, seen in looks.items():
        others = set().union(*(rows for other, rows in looks.items() if other != kind), true)
        assert not seen & others
        for values in seen:
            pairs = zip(values, next(iter(true)), strict=True)
            differing = [a for a, b in pairs if a != b and a != "new"]
            assert len(differing) == 1, (kind, values)
        assert defects.outcome(feed, kind) in (defects.QUARANTINED, defects.UNRESOLVED)
        assert bool(defects.reason(feed, kind)) == (defects.outcome(feed, kind) == defects.QUARANTINED)


def test_the_rows_of_one_who_has_very_many_are_written_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(100, 1, 0.05)
    whole = parts.write_part(world, 0, tmp_path / "raw", tmp_path / "truth")
    monkeypatch.setattr(parts, "_BATCH", 50)
    split = parts.write_part(world, 0, tmp_path / "split" / "raw", tmp_path / "split" / "truth")
    feeds = [*CHANNELS, *LINKS]
    assert [split[name, "resolved"] for name in feeds] == [whole[name, "resolved"] for name in feeds]
    for name in ("customers", "queries"):
        truth = pq.read_table(tmp_path / "truth" / name)
        assert pq.read_table(tmp_path / "split" / "truth" / name).equals(truth)
    lines = [
        line
        for path in (tmp_path / "split" / "raw" / "app").iterdir()
        for line in path.read_bytes().splitlines()
    ]
    assert len(lines) == split["app", "rows_in"]
    distinct = split["app", "rows_in"] - split["app", "duplicates"]
    assert len(set(lines)) == distinct


def test_the_newest_statements_tell_who_agreed() -> None:
    drawn = draw_consent(np.random.default_rng(2), 5_000)
    said = drawn.statements.sort_values(["owner", "purpose", "at"])
    newest = said.groupby(["owner", "purpose"])["at"].transform("max") == said["at"]
    last = said[newest].groupby(["owner", "purpose"])["state"].agg(set)
    for purpose in PURPOSES:
        for owner in range(5_000):
            assert drawn.agreed[purpose][owner] == (last.get((owner, purpose), set()) == {"opt_in"})
    for stance, share in CONSENT.items():
        assert (drawn.stance == stance).mean() == pytest.approx(share, abs=0.02)


def test_the_configuration_declares_the_columns_that_the_feeds_have() -> None:
    config = load_config(CONF)
    assert set(config.inputs) == {*CHANNELS, *LINKS, STATEMENTS.name}
    for feed in (*FEEDS, STATEMENTS):
        source = config.inputs[feed.name]
        assert re.findall(r"(\w+) [A-Z_]+", source.columns) == list(feed.columns)
        assert source.format == feed.form
        assert source.options.get("sep", ",") == feed.separator
    for name, feed in CHANNELS.items():
        channel = config.channels[name]
        assert channel.id == feed.kind
        assert (channel.clock is not None) == feed.is_local
    assert config.identity.lookback_days == LOOKBACK_DAYS
    assert config.identity.max_customers == MAX_CUSTOMERS
    assert config.as_of == (STARTED + dt.timedelta(seconds=SPAN)).date()


@pytest.mark.parametrize(
    "arguments", [{"customers": 99}, {"customers": 10_000_001}, {"dirty_share": 0.31}, {"dirty_share": -0.1}]
)
def test_a_world_out_of_range_is_refused(tmp_path: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(
        ConfigError, match=r"^expected 100 to 10,000,000 customers and a dirty_share of 0 to 0\.3, got "
    ):
        place(tmp_path / "raw", **({"customers": 1_000, "seed": 1, "dirty_share": 0.05} | arguments))
    assert list(tmp_path.iterdir()) == []
