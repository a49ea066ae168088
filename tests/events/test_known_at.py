"""When events become known: delays of channels, links before and after the event, later and lost links."""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.events.arrival import ArrivalDelay
from lam_spark.events.stage import IngestResult, ingest
from lam_spark.runtime.context import RunContext
from tests.support.shop import STARTED_AT, context_builder, key_of, settings

FIRST_NIGHT = dt.datetime(2023, 3, 20, tzinfo=dt.UTC)
ANN, BEN, CYD = (f"RAW-CUSTOMER-{number:06d}" for number in (1, 2, 3))

# Rows of the inputs by night. The minute of an event names it.
NIGHTS: list[dict[str, list[tuple[str, ...]]]] = [
    {
        "sales": [(ANN, "03-01 10:00")],
        "visits": [
            ("between", "03-05 10:00"),  # between two links to one customer
            ("before", "03-05 10:01"),  # before its first link
            ("fast", "03-05 10:02"),  # after a slow link and a fast one
            ("resold", "03-05 10:03"),  # after a link that a later night contradicts
            ("later", "03-05 10:04"),  # without a link on this night
            ("sooner", "03-05 10:05"),  # before a link; an earlier link comes on a later night
            ("shared", "03-05 10:06"),  # of an id that two customers use from a later night on
        ],
        "logins": [
            ("between", ANN, "03-01 08:00"),
            ("between", ANN, "03-09 08:00"),
            ("before", ANN, "03-09 08:00"),
            ("fast", ANN, "03-04 08:00"),
            ("resold", ANN, "03-04 08:00"),
            ("sooner", ANN, "03-09 08:00"),
            ("shared", ANN, "03-04 08:00"),
        ],
        "contracts": [("fast", ANN, "03-03 08:00"), ("fast", ANN, "03-04 08:00")],
    },
    {
        "sales": [(ANN, "03-20 22:00")],
        "visits": [],
        "logins": [
            ("later", BEN, "03-08 08:00"),
            ("sooner", ANN, "03-07 08:00"),
            ("shared", BEN, "03-04 08:00"),
        ],
        "contracts": [("resold", CYD, "03-05 00:00")],
    },
    {"sales": [(ANN, "03-20 12:00")], "visits": [], "logins": [], "contracts": []},
]
# Contracts are known after five days, logins at once, sales after a day, visits after three hours.
DELAYS = {"sales": "1d", "visits": "180m", "contracts": "5d"}


def instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2023-{text}").replace(tzinfo=dt.UTC)


def write(root: Path, night: int) -> None:
    columns = {"sales": ("customer", "at"), "visits": ("cookie", "at")}
    for name, rows in NIGHTS[night].items():
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
        with (root / "raw" / name / f"{night}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns.get(name, ("cookie", "customer", "at")))
            writer.writerows([*row[:-1], instant(row[-1]).isoformat()] for row in rows)


def sections(root: Path) -> dict[str, Any]:
    """The shop's configuration with sales under own ids, visits under cookies, and two sources of links."""

    def source(columns: str, name: str) -> dict[str, str]:
        return {"format": "csv", "path": str(root / "raw" / name / "*.csv"), "columns": columns}

    def link(name: str) -> dict[str, str]:
        select = (
            f"SELECT 'cookie' AS id_kind, cookie AS id, customer AS customer_id, at AS linked_at FROM {name}"
        )
        return {"grain": name, "select": select, "arrival_delay": DELAYS.get(name, "0h")}

    def channel(name: str, identifier: str, **more: str) -> dict[str, str]:
        select = f"SELECT {identifier} AS customer_id, at AS event_time, '' AS event_key FROM {name}"
        return {"grain": name, "select": select, "arrival_delay": DELAYS[name], **more}

    columns = {
        "sales": "customer STRING, at TIMESTAMP",
        "visits": "cookie STRING, at TIMESTAMP",
        "logins": "cookie STRING, customer STRING, at TIMESTAMP",
        "contracts": "cookie STRING, customer STRING, at TIMESTAMP",
    }
    plain = settings(root)
    return plain | {
        "inputs": plain["inputs"] | {name: source(text, name) for name, text in columns.items()},
        "identity": {"max_customers": 2, "links": {"login": link("logins"), "contract": link("contracts")}},
        "channels": {
            "shop": channel("sales", "customer"),
            "web": channel("visits", "cookie", id="cookie"),
        },
    }


Assigned = dict[str, tuple[str, dt.datetime]]


@dataclass(frozen=True)
class Night:
    """Result of a night, and the events after it: time of the event -> customer, `known_at`."""

    result: IngestResult
    events: Assigned


def assigned(ctx: RunContext) -> Assigned:
    names = {key_of(raw): raw for raw in (ANN, BEN, CYD)}
    return {
        f"{row['event_time']:%m-%d %H:%M}": (
            names[row["customer_key"]],
            row["known_at"].replace(tzinfo=dt.UTC),
        )
        for row in ctx.tables.read("events").collect()
    }


@pytest.fixture(scope="module")
def build(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunContext]:
    root = tmp_path_factory.mktemp("known") / "shop"
    builder = context_builder(spark, root)
    return lambda **more: builder(**sections(root), **more)


@pytest.fixture(scope="module")
def nights(build: Callable[..., RunContext]) -> list[Night]:
    """Nights of one shop, a day apart; the last one is a rebuild."""
    done = []
    for number in range(len(NIGHTS)):
        ctx = build(started_at=FIRST_NIGHT + dt.timedelta(days=number))
        write(Path(ctx.config.root), number)
        done.append(Night(ingest(ctx), assigned(ctx)))
    ctx = build(started_at=STARTED_AT, ingest={"rebuild": True})
    return [*done, Night(ingest(ctx), assigned(ctx))]


FIRST = {
    "03-01 10:00": (ANN, "03-02 10:00"),  # own id: the channel's delay
    "03-05 10:00": (ANN, "03-05 13:00"),  # the link was known before: the channel's delay
    "03-05 10:01": (ANN, "03-09 08:00"),  # the first link, which looks back
    "03-05 10:02": (ANN, "03-05 13:02"),  # the login, though the contract began the assignment
    "03-05 10:03": (ANN, "03-05 13:03"),
    "03-05 10:05": (ANN, "03-09 08:00"),
    "03-05 10:06": (ANN, "03-05 13:06"),
}
LATER = {
    "03-05 10:03": (CYD, "03-10 00:00"),  # reassigned: the contract is known after five days
    "03-05 10:04": (BEN, "03-08 08:00"),  # resolved later
    "03-05 10:05": (ANN, "03-07 08:00"),  # the same customer, known sooner
    "03-20 22:00": (ANN, "03-21 22:00"),
}


def expected(events: dict[str, tuple[str, str]]) -> Assigned:
    return {time: (customer, instant(known_at)) for time, (customer, known_at) in events.items()}


def test_an_event_is_known_after_its_delay_and_not_before_the_link_that_assigns_it(
    nights: list[Night],
) -> None:
    assert nights[0].events == expected(FIRST)


def test_later_links_give_events_a_new_customer_and_a_new_time_of_knowing(nights: list[Night]) -> None:
    after = {**FIRST, **LATER}
    del after["03-05 10:06"]  # two customers at one instant: of no customer any more
    assert nights[1].events == expected(after)
    counts = nights[1].result.counts
    names = ("events", "resolved_later", "reassigned", "unassigned", "known_at_changed")
    assert [counts[name] for name in names] == [1, 1, 1, 1, 1]


def test_a_rebuild_gives_the_same_times_whenever_it_runs(nights: list[Night]) -> None:
    assert nights[-1].events == nights[-2].events


def test_arrival_only_proposes_a_delay(nights: list[Night]) -> None:
    # The first load is not measured. On the second night the sale is two hours old, on the third a day and a half.
    assert nights[0].result.arrival_delays == {}
    assert nights[1].result.arrival_delays == {"shop": ArrivalDelay("1d", "2h", 1, is_exceeded=False)}
    assert nights[1].result.details == ()
    assert nights[2].result.arrival_delays == {"shop": ArrivalDelay("1d", "36h", 2, is_exceeded=True)}
    assert nights[2].result.details == (
        "channels.shop.arrival_delay is 1d; 95 % of the new events arrived within 36h (nights measured: 2)",
    )
    assert nights[2].events["03-20 12:00"][1] == instant("03-21 12:00")
