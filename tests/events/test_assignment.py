"""Ids of other kinds over several nights: clicks under cookies, and links that come late or change the customer.

The tables after all nights are compared with one rebuild, and with the rules written out in Python.
"""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events import stage
from lam_spark.events.stage import ingest
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import RunContext
from tests.support.shop import SECRET, context_builder, settings
from tests.support.tables import table_versions

START = dt.datetime(2023, 3, 1, tzinfo=dt.UTC)
LOOKBACK = dt.timedelta(days=2)
MAX_CUSTOMERS = 3
NIGHTS = 3
# Minutes until clicks and the links of each source are known, where they are declared.
CLICK_DELAY = 6 * 60
LINK_DELAYS = {"logins": 0, "contracts": 20 * 60}

Click = tuple[str, int, str]  # cookie, minutes after START, page
Link = tuple[str, str, int]  # cookie, customer, minutes after START
Links = dict[str, list[Link]]  # by source


def sections(root: Path) -> dict[str, Any]:
    """The shop's configuration with one channel, of clicks, and logins that link cookies to customers."""
    return settings(root) | {
        "inputs": settings(root)["inputs"]
        | {
            "clicks": {
                "format": "json",
                "path": str(root / "raw" / "clicks"),
                "columns": "cookie STRING, at BIGINT, page STRING",
            },
            "logins": {
                "format": "csv",
                "path": str(root / "raw" / "logins" / "*.csv"),
                "columns": "cookie STRING, customer STRING, at TIMESTAMP",
            },
        },
        "identity": {
            "lookback_days": LOOKBACK.days,
            "max_customers": MAX_CUSTOMERS,
            "links": {
                "login": {
                    "grain": "logins",
                    "select": (
                        "SELECT 'cookie' AS id_kind, cookie AS id, customer AS customer_id, at AS linked_at "
                        "FROM logins"
                    ),
                }
            },
        },
        "channels": {
            "web": {
                "grain": "clicks",
                "id": "cookie",
                "select": (
                    "SELECT cookie AS customer_id, timestamp_seconds(at) AS event_time, page AS event_key, "
                    "'web' AS touchpoint, page AS item, 'view' AS action FROM clicks"
                ),
            }
        },
    }


def delayed_sections(root: Path) -> dict[str, Any]:
    """The same with contracts as a second source of links, and delays."""
    plain = sections(root)
    contracts = plain["inputs"]["logins"] | {"path": str(root / "raw" / "contracts" / "*.csv")}
    login, web = plain["identity"]["links"]["login"], plain["channels"]["web"]
    contract = {
        "grain": "contracts",
        "select": login["select"].replace("logins", "contracts"),
        "arrival_delay": f"{LINK_DELAYS['contracts']}m",
    }
    return plain | {
        "inputs": plain["inputs"] | {"contracts": contracts},
        "identity": plain["identity"] | {"links": {"login": login, "contract": contract}},
        "channels": {"web": web | {"arrival_delay": f"{CLICK_DELAY}m"}},
    }


def instant(minute: int) -> dt.datetime:
    return START + dt.timedelta(minutes=minute)


def write_night(root: Path, night: int, clicks: list[Click], links: list[Link] | Links) -> None:
    """Write the clicks and the links (logins, or by source) of a night, one file each."""
    by_source = {"logins": links} if isinstance(links, list) else links
    for name in ("clicks", *by_source):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"cookie": cookie, "at": int(instant(minute).timestamp()), "page": page}) + "\n"
        for cookie, minute, page in clicks
    ]
    (root / "raw" / "clicks" / f"{night}.jsonl").write_text("".join(lines))
    for name, rows in by_source.items():
        with (root / "raw" / name / f"{night}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cookie", "customer", "at"])
            writer.writerows(
                [cookie, customer, instant(minute).isoformat()] for cookie, customer, minute in rows
            )


def customer_of(cookie: str, minute: int, links: Links) -> tuple[str, int] | None:
    """The rules of `IdentityConfig`, written out: the customer of a click, and the minute at which it is known."""
    at_minute: dict[int, set[str]] = {}
    known: dict[int, int] = {}
    for source, rows in links.items():
        for own_cookie, customer, at in rows:
            if own_cookie == cookie:
                at_minute.setdefault(at, set()).add(customer)
                known[at] = min(known.get(at, at + LINK_DELAYS[source]), at + LINK_DELAYS[source])
    if not at_minute or len(set.union(*at_minute.values())) > MAX_CUSTOMERS:
        return None
    earlier = sorted((at for at in at_minute if at <= minute), reverse=True)
    deciding = earlier or [min(at_minute)]
    if not earlier and instant(minute) < instant(deciding[0]) - LOOKBACK:
        return None
    customers = at_minute[deciding[0]]
    if len(customers) > 1:
        return None
    # The links to this customer since the change of customer: the assignment is known as soon as one of them is.
    same = list(itertools.takewhile(lambda at: at_minute[at] == customers, deciding))
    return min(customers), max(minute + CLICK_DELAY, min(known[at] for at in same))


@dataclass
class Week:
    """Random nights: clicks and logins in any order of arrival, some clicks twice."""

    clicks: list[list[Click]] = field(default_factory=list)
    links: list[Links] = field(default_factory=list)

    @classmethod
    def generate(cls, seed: int) -> Week:
        rng = random.Random(seed)
        week = cls([[] for _ in range(NIGHTS)], [{name: [] for name in LINK_DELAYS} for _ in range(NIGHTS)])
        for number in range(40):
            cookie, customers = f"RAW-COOKIE-{number:03d}", rng.choice([0, 1, 1, 2, 3, 5])
            people = [f"RAW-CUSTOMER-{rng.randrange(30):06d}" for _ in range(customers)]
            for _ in range(rng.randrange(1, 8)):
                click = (cookie, rng.randrange(0, 7 * 24 * 60, 7), rng.choice(["home", "plan"]))
                for night in {rng.randrange(NIGHTS) for _ in range(rng.choice([1, 1, 1, 2]))}:
                    week.clicks[night].append(click)
            for person in people:
                for _ in range(rng.randrange(1, 3)):
                    # Multiples of ten minutes: two customers may be linked at one instant.
                    link = (cookie, person, rng.randrange(0, 7 * 24 * 60, 10 if rng.random() < 0.7 else 5000))
                    # Some links are stated by both sources, on different nights.
                    for source in rng.choice([["logins"], ["contracts"], list(LINK_DELAYS)]):
                        week.links[rng.randrange(NIGHTS)][source].append(link)
        return week


def content(ctx: RunContext) -> dict[str, set[tuple[Any, ...]]]:
    """Rows of the tables, without the time of ingestion."""
    tables = {name: ctx.tables.read(name).drop("ingested_at") for name in ("events", "unresolved", "links")}
    return {name: {tuple(row) for row in frame.collect()} for name, frame in tables.items()}


@pytest.fixture
def build(spark: SparkSession, tmp_path: Path) -> Callable[..., RunContext]:
    builder = context_builder(spark, tmp_path / "shop")
    return lambda **more: builder(**(sections(tmp_path / "shop") | more))


@pytest.mark.long
def test_all_nights_together_give_the_same_tables_as_one_rebuild(
    build: Callable[..., RunContext], tmp_path: Path
) -> None:
    root, week = tmp_path / "shop", Week.generate(seed=3)
    delayed = delayed_sections(root)
    totals: dict[str, int] = {}
    for night in range(NIGHTS):
        write_night(root, night, week.clicks[night], week.links[night])
        counts = ingest(build(**delayed)).counts
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    ctx = build(**delayed)
    by_nights = content(ctx)
    everything = {click for night in week.clicks for click in night}
    links = {name: [link for night in week.links for link in night[name]] for name in LINK_DELAYS}
    expected = {click: customer_of(click[0], click[1], links) for click in everything}
    secret = SECRET.encode()
    assert {
        (keyed_pseudonym(secret, assigned[0]), instant(minute), instant(assigned[1]), page)
        for (_, minute, page), assigned in expected.items()
        if assigned
    } == {
        (
            row["customer_key"],
            row["event_time"].astimezone(dt.UTC),
            row["known_at"].astimezone(dt.UTC),
            row["item"],
        )
        for row in ctx.tables.read("events").collect()
    }
    resolved = sum(assigned is not None for assigned in expected.values())
    assert len(by_nights["events"]) == resolved
    assert len(by_nights["unresolved"]) == len(everything) - resolved
    link_rows = sum(len(rows) for night in week.links for rows in night.values())
    assert totals["rows_in"] == sum(map(len, week.clicks)) + link_rows
    assert totals["events"] + totals["resolved_later"] - totals["unassigned"] == resolved
    assert totals["links"] == sum(len(set(rows)) for rows in links.values()) == len(by_nights["links"])
    assert totals["resolved_later"] > 0
    assert totals["reassigned"] > 0
    assert totals["unassigned"] > 0
    assert totals["known_at_changed"] > 0
    assert totals["conflicting"] == 0
    ingest(build(**delayed, ingest={"rebuild": True}))
    assert content(build(**delayed)) == by_nights


def test_a_conflicting_duplicate_is_counted_and_the_first_row_stays(
    build: Callable[..., RunContext], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    select = sections(root)["channels"]["web"]["select"].replace("page AS event_key", "'one' AS event_key")
    channels = {"web": sections(root)["channels"]["web"] | {"select": select}}
    link = [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)]
    write_night(root, 0, [("RAW-COOKIE-1", 60, "home")], link)
    ingest(build(channels=channels))
    write_night(root, 1, [("RAW-COOKIE-1", 60, "plan"), ("RAW-COOKIE-1", 60, "home")], [])
    result = ingest(build(channels=channels))
    assert (result.counts["duplicates"], result.counts["conflicting"]) == (2, 1)
    assert [row["item"] for row in build().tables.read("events").collect()] == ["home"]


def test_too_many_unresolved_rows_and_a_changed_mapping_are_refused(
    build: Callable[..., RunContext], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    write_night(root, 0, [("RAW-COOKIE-1", 60, "home")], [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)])
    ingest(build())
    write_night(root, 1, [("RAW-COOKIE-2", 60, "home")], [])
    with pytest.raises(DataQualityError) as caught:
        ingest(build(quality={"max_unresolved_share": 0.5}))
    assert str(caught.value) == (
        "web: 1 of 1 new rows (100.0%) were unresolved, the limit is 50.0%. Nothing was published; correct the source "
        "or raise quality.max_unresolved_share"
    )
    (root / "raw" / "clicks" / "1.jsonl").unlink()
    assert build().tables.read("unresolved").count() == 0
    channel = sections(root)["channels"]["web"]
    other = {"web": channel | {"select": channel["select"].replace("'view'", "'look'")}}
    stricter = sections(root)["identity"] | {"max_customers": 1}
    later = {"web": channel | {"arrival_delay": "6h"}}
    changes: tuple[dict[str, Any], ...] = ({"channels": other}, {"channels": later}, {"identity": stricter})
    for changed in changes:
        with pytest.raises(ConfigError) as refused:
            ingest(build(**changed))
        assert str(refused.value) == (
            "the select, columns, rules, fields or arrival_delay of 'web' changed since its rows were ingested (or, if "
            "links assign its ids, identity.max_customers or lookback_days): new rows would not mean the same as the "
            "old ones. Run once with --set ingest.rebuild=true, which reads all inputs again, or restore the mapping"
        )
    result = ingest(build(channels=other, ingest={"rebuild": True}))
    assert result.counts["events"] == 1
    assert [row["action"] for row in build().tables.read("events").collect()] == ["look"]


def test_a_night_without_new_rows_writes_nothing_and_a_failed_night_is_rolled_back(
    build: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shop"
    write_night(root, 0, [("RAW-COOKIE-1", 60, "home")], [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)])
    ingest(build())
    before, versions = content(build()), table_versions(build())
    nothing = ingest(build())
    assert (nothing.message, set(nothing.counts.values())) == ("nothing new", {0})
    assert table_versions(build()) == versions
    write_night(root, 1, [("RAW-COOKIE-1", 90, "plan")], [])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "update_ingestion_state", full)  # the last table to be written
        with pytest.raises(OSError, match="No space left"):
            ingest(build())
    assert content(build()) == before
    assert ingest(build()).counts["events"] == 1
