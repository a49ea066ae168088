"""Night after night: clicks under cookies, calls under phone numbers, and links that come late or change hands.

What the nights add up to is compared with one rebuild of everything, and with the rules written out in Python.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events import stage as ingest
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import Run, StageResult
from tests.support.shop import SECRET, run_builder, settings
from tests.support.tables import table_versions

START = dt.datetime(2023, 3, 1, tzinfo=dt.UTC)
LOOKBACK = dt.timedelta(days=2)
MOST_CUSTOMERS = 3
NIGHTS = 3

Click = tuple[str, int, str]  # cookie, minutes after START, page
Link = tuple[str, str, int]  # cookie, customer, minutes after START


def sections(root: Path) -> dict[str, Any]:
    """The shop's configuration with one channel, of clicks, and the logins that tie cookies to customers."""
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
            "max_customers": MOST_CUSTOMERS,
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


def instant(minute: int) -> dt.datetime:
    return START + dt.timedelta(minutes=minute)


def deliver(root: Path, night: int, clicks: list[Click], links: list[Link]) -> None:
    """A file of each kind, as a night brings them."""
    for name in ("clicks", "logins"):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"cookie": cookie, "at": int(instant(minute).timestamp()), "page": page}) + "\n"
        for cookie, minute, page in clicks
    ]
    (root / "raw" / "clicks" / f"{night}.jsonl").write_text("".join(lines))
    with (root / "raw" / "logins" / f"{night}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cookie", "customer", "at"])
        writer.writerows(
            [cookie, customer, instant(minute).isoformat()] for cookie, customer, minute in links
        )


def owner(cookie: str, minute: int, links: list[Link]) -> str | None:
    """The rules of `IdentityConfig`, written out."""
    mine = sorted({(at, customer) for c, customer, at in links if c == cookie})
    if not mine or len({customer for _, customer in mine}) > MOST_CUSTOMERS:
        return None
    upto = [at for at, _ in mine if at <= minute]
    at = max(upto) if upto else mine[0][0]
    if not upto and instant(minute) < instant(at) - LOOKBACK:
        return None
    customers = {customer for when, customer in mine if when == at}
    return customers.pop() if len(customers) == 1 else None


@dataclass
class Week:
    """Random nights: clicks and logins in any order of arrival, some delivered twice."""

    clicks: list[list[Click]] = field(default_factory=list)
    links: list[list[Link]] = field(default_factory=list)

    @classmethod
    def draw(cls, seed: int) -> Week:
        rng = random.Random(seed)
        week = cls([[] for _ in range(NIGHTS)], [[] for _ in range(NIGHTS)])
        for number in range(40):
            cookie, customers = f"RAW-COOKIE-{number:03d}", rng.choice([0, 1, 1, 2, 3, 5])
            people = [f"RAW-CUSTOMER-{rng.randrange(30):06d}" for _ in range(customers)]
            for _ in range(rng.randrange(1, 8)):
                click = (cookie, rng.randrange(0, 7 * 24 * 60, 7), rng.choice(["home", "plan"]))
                for night in {rng.randrange(NIGHTS) for _ in range(rng.choice([1, 1, 1, 2]))}:
                    week.clicks[night].append(click)
            for person in people:
                for _ in range(rng.randrange(1, 3)):
                    # Every tenth minute: two people may be linked at one instant.
                    link = (cookie, person, rng.randrange(0, 7 * 24 * 60, 10 if rng.random() < 0.7 else 5000))
                    week.links[rng.randrange(NIGHTS)].append(link)
        return week


def held(run: Run) -> dict[str, set[tuple[Any, ...]]]:
    """What the tables say, without when it was ingested."""
    tables = {name: run.tables.read(name).drop("ingested_at") for name in ("events", "unresolved", "links")}
    return {name: {tuple(row) for row in frame.collect()} for name, frame in tables.items()}


@pytest.fixture
def build(spark: SparkSession, tmp_path: Path) -> Callable[..., Run]:
    builder = run_builder(spark, tmp_path / "shop")
    return lambda **more: builder(**(sections(tmp_path / "shop") | more))


@pytest.mark.long
def test_the_nights_add_up_to_one_rebuild(build: Callable[..., Run], tmp_path: Path) -> None:
    root, week = tmp_path / "shop", Week.draw(seed=3)
    totals: dict[str, int] = {}
    for night in range(NIGHTS):
        deliver(root, night, week.clicks[night], week.links[night])
        counts = ingest.run(build()).counts
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    run = build()
    by_nights = held(run)
    everything = {click for night in week.clicks for click in night}
    links = [link for night in week.links for link in night]
    wanted = {click: owner(click[0], click[1], links) for click in everything}
    secret = SECRET.encode()
    assert {
        (keyed_pseudonym(secret, customer), instant(minute), page)
        for (_, minute, page), customer in wanted.items()
        if customer
    } == {
        (row["customer_key"], row["event_time"].astimezone(dt.UTC), row["item"])
        for row in run.tables.read("events").collect()
    }
    resolved = sum(customer is not None for customer in wanted.values())
    assert len(by_nights["events"]) == resolved
    assert len(by_nights["unresolved"]) == len(everything) - resolved
    assert totals["rows_in"] == sum(map(len, week.clicks)) + sum(map(len, week.links))
    assert totals["events"] + totals["picked_up"] - totals["orphaned"] == resolved
    assert totals["links"] == len(set(links)) == len(by_nights["links"])
    assert totals["picked_up"] > 0
    assert totals["moved"] > 0
    assert totals["orphaned"] > 0
    assert totals["conflicting"] == 0
    ingest.run(build(ingest={"rebuild": True}))
    assert held(build()) == by_nights


def test_an_event_that_says_something_else_is_counted_and_the_first_stands(
    build: Callable[..., Run], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    select = sections(root)["channels"]["web"]["select"].replace("page AS event_key", "'one' AS event_key")
    channels = {"web": sections(root)["channels"]["web"] | {"select": select}}
    link = [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)]
    deliver(root, 0, [("RAW-COOKIE-1", 60, "home")], link)
    ingest.run(build(channels=channels))
    deliver(root, 1, [("RAW-COOKIE-1", 60, "plan"), ("RAW-COOKIE-1", 60, "home")], [])
    result = ingest.run(build(channels=channels))
    assert (result.counts["duplicates"], result.counts["conflicting"]) == (2, 1)
    assert [row["item"] for row in build().tables.read("events").collect()] == ["home"]


def test_too_many_rows_of_nobody_and_another_mapping_are_refused(
    build: Callable[..., Run], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    deliver(root, 0, [("RAW-COOKIE-1", 60, "home")], [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)])
    ingest.run(build())
    deliver(root, 1, [("RAW-COOKIE-2", 60, "home")], [])
    with pytest.raises(DataQualityError, match=r"web: 1 of 1 new rows \(100\.0%\) were unresolved"):
        ingest.run(build(quality={"max_unresolved_share": 0.5}))
    (root / "raw" / "clicks" / "1.jsonl").unlink()
    assert build().tables.read("unresolved").count() == 0
    channel = sections(root)["channels"]["web"]
    other = {"web": channel | {"select": channel["select"].replace("'view'", "'look'")}}
    with pytest.raises(
        ConfigError, match=r"of 'web' changed since its rows were taken.*ingest\.rebuild=true"
    ):
        ingest.run(build(channels=other))
    stricter = sections(root)["identity"] | {"max_customers": 1}
    with pytest.raises(
        ConfigError, match=r"identity\.max_customers or lookback_days\): new rows would not mean"
    ):
        ingest.run(build(identity=stricter))
    result: StageResult = ingest.run(build(channels=other, ingest={"rebuild": True}))
    assert result.counts["events"] == 1
    assert [row["action"] for row in build().tables.read("events").collect()] == ["look"]


def test_a_night_without_news_writes_nothing_and_one_that_fails_is_taken_back(
    build: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shop"
    deliver(root, 0, [("RAW-COOKIE-1", 60, "home")], [("RAW-COOKIE-1", "RAW-CUSTOMER-1", 30)])
    ingest.run(build())
    before, versions = held(build()), table_versions(build())
    nothing = ingest.run(build())
    assert (nothing.says, set(nothing.counts.values())) == ("nothing new", {0})
    assert table_versions(build()) == versions
    deliver(root, 1, [("RAW-COOKIE-1", 90, "plan")], [])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "note_taken", full)  # the last table of all
        with pytest.raises(OSError, match="No space left"):
            ingest.run(build())
    assert held(build()) == before
    assert ingest.run(build()).counts["events"] == 1
