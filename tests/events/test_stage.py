"""Ingest: every raw row becomes an event, a duplicate or a refused row, and the counts add up."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError, without_values
from lam_spark.events.arrival import ArrivalDelay
from lam_spark.events.quarantine import MALFORMED_REASON
from lam_spark.events.reconciliation import ReconciliationCounts
from lam_spark.events.stage import IngestResult, ingest
from lam_spark.runtime.context import RunContext
from lam_spark.sources.lookups import LookupVersion
from tests.support.shop import (
    SECRET,
    context_builder,
    key_of,
    mailing,
    purchase,
    raw_id,
    response,
    settings,
    write_inputs,
)
from tests.support.tables import table_versions

Row = dict[str, Any]
NOON = dt.datetime(2023, 3, 5, 12, tzinfo=dt.UTC)
ONE, TWO = raw_id(1), raw_id(2)

GOOD = [
    purchase(ONE, NOON, 1, product="books 1", amount=3.0),
    purchase(ONE, NOON, 1, product="books 2", amount=4.0),
    purchase(TWO, NOON, 2, product="no such product", amount=None),
    purchase(TWO, NOON, 3, product=None),
]
BROKEN = {
    "customer_id is missing": [purchase(None, NOON, 4), purchase("  ", NOON, 5)],
    "event_time is missing or not a time": [purchase(ONE, None, 6)],
    "event_time is in the future": [purchase(ONE, dt.datetime(2024, 1, 4, tzinfo=dt.UTC), 7)],
    "amount is not finite": [
        purchase(ONE, NOON, 8, amount=math.nan),
        purchase(ONE, NOON, 9, amount=-math.inf),
    ],
}
MAILINGS = [
    mailing(ONE, "2023-03-20"),
    mailing(TWO, "2023-03-20"),
    mailing(ONE, "2023-04-15", kind="no kind"),
]
RESPONSES = [response(ONE, "2023-03-26", "2023-03-20"), response(TWO, "2023-03-21", "2023-03-20")]
BAD_CSV_OF_ONE = f"{ONE},mailing of May,2023-05-32,books,14"
BAD_CSV, BAD_JSON = "someone,mailing of May,2023-05-32,books,14", '{"customer": "someone", "day"'


def write_shop(root: Path, backwards: bool = False) -> None:
    """The rows above, with two exact duplicates, in one order or in the opposite one."""
    purchases = [*GOOD, *(row for rows in BROKEN.values() for row in rows), GOOD[0], GOOD[2]]
    mailings = [*MAILINGS, MAILINGS[0]]
    responses = [*RESPONSES]
    if backwards:
        purchases, mailings, responses = purchases[::-1], mailings[::-1], responses[::-1]
    write_inputs(root / "raw", purchases, mailings, responses)
    for name, line in (
        ("mailings.csv", BAD_CSV),
        ("mailings.csv", BAD_CSV_OF_ONE),
        ("responses.jsonl", BAD_JSON),
    ):
        with (root / "raw" / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Shop:
    root: Path
    build: Callable[..., RunContext]
    ctx: RunContext
    result: IngestResult


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One ingest over rows of every kind, with a file of a failed run in `staging`."""
    root = tmp_path_factory.mktemp("ingest") / "shop"
    write_shop(root)
    leftovers = root / "staging" / "shop"
    leftovers.mkdir(parents=True)
    (leftovers / "part-0.parquet").write_text("left by a failed run")
    build = context_builder(spark, root)
    ctx = build(quality={"max_quarantine_share": 1.0})
    return Shop(root, build, ctx, ingest(ctx))


def content(ctx: RunContext) -> set[tuple[Any, ...]]:
    """Rows of the table `events` without the time of ingestion."""
    return {tuple(row) for row in ctx.tables.read("events").drop("ingested_at").collect()}


def test_rows_in_are_events_duplicates_and_refused_rows(shop: Shop) -> None:
    kinds = ("rows_in", "events", "duplicates", "quarantined")
    sources = {
        source: {kind: getattr(counts, kind) for kind in kinds}
        for source, counts in shop.result.sources.items()
    }
    refused = sum(len(rows) for rows in BROKEN.values())
    assert sources == {
        "shop": {"rows_in": 4 + refused + 2, "events": 4, "duplicates": 2, "quarantined": refused},
        "mailing": {"rows_in": 6, "events": 3, "duplicates": 1, "quarantined": 2},
        "response": {"rows_in": 3, "events": 2, "duplicates": 0, "quarantined": 1},
    }
    counts = shop.result.counts
    assert counts["rows_in"] == counts["events"] + counts["duplicates"] + counts["quarantined"]
    assert counts["unresolved"] == counts["conflicting"] == counts["links"] == 0
    assert shop.ctx.tables.read("events").count() == counts["events"]
    assert shop.ctx.tables.read("quarantine").count() == counts["quarantined"]


def test_every_refused_row_has_its_reason(shop: Shop) -> None:
    expected = {reason: len(rows) for reason, rows in BROKEN.items()} | {MALFORMED_REASON: 3}
    grouped = shop.ctx.tables.read("quarantine").groupBy("reason").count()
    assert {row["reason"]: row["count"] for row in grouped.collect()} == expected
    totals: dict[str, int] = {}
    for reasons in shop.result.refused.values():
        for reason, count in reasons.items():
            totals[reason] = totals.get(reason, 0) + count
    assert totals == expected


def test_lines_that_do_not_parse_keep_their_text(shop: Shop) -> None:
    unparsed = shop.ctx.tables.read("quarantine").where(f"reason = '{MALFORMED_REASON}'")
    texts = {(row["source"], row["raw"]) for row in unparsed.collect()}
    assert texts >= {("mailing", BAD_CSV), ("response", BAD_JSON)}
    assert len(texts) == 3


def test_refused_rows_are_kept_without_their_customer_id(shop: Shop) -> None:
    mapped = shop.ctx.tables.read("quarantine").where(f"reason != '{MALFORMED_REASON}'")
    raws = [row["raw"] for row in mapped.collect()]
    assert not [raw for raw in raws if "RAW-CUSTOMER" in raw]
    parsed = [json.loads(raw) for raw in raws]
    assert {"customer_id", "customer_key"}.isdisjoint(key for row in parsed for key in row)
    assert {row["event_key"] for row in parsed} == {f"{basket}:books 1" for basket in range(4, 10)}


def test_a_row_that_parses_brings_no_raw_id_into_the_quarantine(shop: Shop) -> None:
    """A line that does not parse is kept unchanged (the table is restricted); any other row loses its id."""
    rows = shop.ctx.tables.read("quarantine").collect()
    assert not [row["raw"] for row in rows if ONE in row["raw"] and row["reason"] != MALFORMED_REASON]
    assert [row["raw"] for row in rows if row["reason"] == MALFORMED_REASON]


def test_events_carry_pseudonyms_utc_times_and_declared_types(shop: Shop) -> None:
    one = key_of(ONE)
    sent = shop.ctx.tables.read("events").where(f"source = 'mailing' AND customer_key = '{one}'")
    rows = {row["campaign"]: row for row in sent.collect()}
    # Midnight of 20 March in Berlin is 23:00 UTC the day before; of 15 April, in summer time, 22:00.
    times = sent.selectExpr("campaign", "date_format(event_time, 'yyyy-MM-dd HH:mm') AS at").collect()
    assert {row["campaign"]: row["at"] for row in times} == {
        "mailing of 2023-03-20": "2023-03-19 23:00",
        "mailing of 2023-04-15": "2023-04-14 22:00",
    }
    row = rows["mailing of 2023-03-20"]
    assert (row["action"], row["item"], row["offer_days"]) == ("propose", "books", 14.0)
    assert row["amount"] is None
    assert row["product"] is None


def test_event_order_sorts_like_event_id(shop: Shop) -> None:
    rows = shop.ctx.tables.read("events").select("event_id", "event_order").collect()
    assert {row["event_order"] for row in rows} == {int(row["event_id"][:15], 16) for row in rows}
    assert [r["event_id"] for r in sorted(rows, key=lambda r: r["event_order"])] == sorted(
        row["event_id"] for row in rows
    )


def test_another_order_of_rows_gives_the_same_events(shop: Shop) -> None:
    before = content(shop.ctx)
    write_shop(shop.root, backwards=True)
    again = shop.build(quality={"max_quarantine_share": 1.0}, ingest={"rebuild": True})
    counts = ingest(again).counts
    assert content(again) == before
    assert len(before) == 9
    assert counts == shop.result.counts


def test_too_many_refused_rows_publish_nothing(shop: Shop) -> None:
    before = table_versions(shop.ctx)
    with pytest.raises(DataQualityError) as caught:
        ingest(shop.build(quality={"max_quarantine_share": 0.4}, ingest={"rebuild": True}))
    assert str(caught.value) == (
        "shop: 6 of 12 new rows (50.0%) were refused, the limit is 40.0% (amount is not finite: 2; customer_id is "
        "missing: 2; event_time is in the future: 1; event_time is missing or not a time: 1). Nothing was published; "
        "correct the source or raise quality.max_quarantine_share"
    )
    assert table_versions(shop.ctx) == before
    assert len(content(shop.ctx)) == 9


def test_another_secret_publishes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = table_versions(shop.ctx)
    monkeypatch.setenv("LAM_SPARK_SECRET", SECRET[::-1])
    with pytest.raises(ConfigError, match=r"is not the one that the tables in .* were built with"):
        ingest(shop.build(quality={"max_quarantine_share": 1.0}))
    assert table_versions(shop.ctx) == before


def test_the_staging_folder_is_cleared(shop: Shop) -> None:
    assert not (shop.root / "staging").exists()
    assert not list((shop.root / "tables").rglob("part-0.parquet"))


@pytest.mark.parametrize("value", [None, "", "31 characters are one too few.."])
def test_without_a_valid_secret_nothing_is_written(
    make_context: Callable[..., RunContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
) -> None:
    if value is None:
        monkeypatch.delenv("LAM_SPARK_SECRET")
    else:
        monkeypatch.setenv("LAM_SPARK_SECRET", value)
    write_shop(tmp_path / "shop")
    with pytest.raises(
        ConfigError, match=r"at least 32 characters in the environment variable LAM_SPARK_SECRET"
    ):
        ingest(make_context())
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["raw"]


def one_channel(root: Path, select: str) -> Row:
    """Configuration sections of a shop with one channel and this select."""
    return {"channels": {"shop": settings(root)["channels"]["shop"] | {"select": select}}}


@pytest.mark.parametrize("channel", ["shop", "mailing", "response"])
def test_a_channel_without_rows_is_refused(
    make_context: Callable[..., RunContext], tmp_path: Path, channel: str
) -> None:
    write_inputs(tmp_path / "shop" / "raw", responses=[] if channel == "response" else None)
    spec = settings(tmp_path / "shop")["channels"][channel]
    ctx = make_context(channels={channel: spec})
    with pytest.raises(DataQualityError) as caught:
        ingest(ctx)
    assert str(caught.value) == (
        f"channels.{channel}: its input {spec['grain']!r} ({ctx.config.inputs[spec['grain']].path}) has no rows. An "
        "empty first load is refused, because a wrong path is more likely than a channel without rows. Check the path"
    )
    assert not (tmp_path / "shop" / "tables").exists()


@pytest.mark.parametrize(
    ("join", "rows"), [("CROSS JOIN (SELECT explode(array(1, 2)) AS n)", 8), ("WHERE product IS NOT NULL", 3)]
)
def test_a_select_that_changes_the_number_of_rows_is_refused(
    make_context: Callable[..., RunContext], tmp_path: Path, join: str, rows: int
) -> None:
    write_inputs(tmp_path / "shop" / "raw", GOOD)
    select = (
        f"SELECT customer AS customer_id, bought_at AS event_time, basket AS event_key FROM purchases {join}"
    )
    with pytest.raises(DataQualityError) as caught:
        ingest(make_context(**one_channel(tmp_path / "shop", select)))
    assert str(caught.value) == (
        f"channels.shop.select gave {rows} rows for 4 rows of its grain 'purchases': a join multiplies or drops rows. "
        "Aggregate the other side to one row per key, and use LEFT JOIN"
    )
    assert not (tmp_path / "shop" / "tables").exists()
    assert not (tmp_path / "shop" / "staging").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "customer AS customer_id, bought_at AS event_time, basket AS event_key, amount AS amonut",
            r"yields 'amonut', which is not declared: did you mean 'amount'\?",
        ),
        ("customer AS customer_id, bought_at AS event_time", "it lacks event_key"),
        ("customre AS customer_id", r"channels\.shop\.select: .*customre"),
    ],
)
def test_a_select_with_wrong_columns_is_refused(
    make_context: Callable[..., RunContext], tmp_path: Path, columns: str, message: str
) -> None:
    write_inputs(tmp_path / "shop" / "raw", GOOD)
    with pytest.raises(ConfigError, match=message):
        ingest(make_context(**one_channel(tmp_path / "shop", f"SELECT {columns} FROM purchases")))


def test_a_malformed_line_in_a_look_up_stops_the_run(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    write_inputs(tmp_path / "shop" / "raw", GOOD)
    with (tmp_path / "shop" / "raw" / "products.csv").open("a", encoding="utf-8") as file:
        file.write("books 9,books,one column too many\n")
    with pytest.raises(DataQualityError, match=r"inputs\.products: 1 lines do not parse"):
        ingest(make_context())


def shop_with_mailings(root: Path, **spec: Any) -> Row:
    """Sections of the shop whose input of mailings has another specification."""
    sections = settings(root)
    return {"inputs": sections["inputs"] | {"mailings": sections["inputs"]["mailings"] | spec}}


def test_the_error_for_a_compressed_file_that_is_cut_off_names_the_reason(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    write_inputs(root / "raw", GOOD, [mailing(raw_id(n), "2023-03-20") for n in range(2_000)])
    compressed = gzip.compress((root / "raw" / "mailings.csv").read_bytes())
    (root / "raw" / "mailings.csv.gz").write_bytes(compressed[: len(compressed) // 2])
    ctx = make_context(**shop_with_mailings(root, path=str(root / "raw" / "mailings.csv.gz")))
    with pytest.raises(Exception, match="EOFException") as caught:
        ingest(ctx)
    shown = without_values(caught.value)
    assert "java.io.EOFException" in shown
    assert shown.endswith("A compressed file is cut off or damaged: replace it by a complete copy")
    assert "RAW-CUSTOMER" not in shown


def test_the_error_for_an_unknown_charset_names_the_reason(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    write_inputs(root / "raw", GOOD, MAILINGS)
    ctx = make_context(**shop_with_mailings(root, options={"encoding": "utf-99"}))
    with pytest.raises(Exception, match="utf-99") as caught:
        ingest(ctx)
    assert "A charset is unknown: set the option encoding of the input" in without_values(caught.value)


def test_the_message_names_all_counts_that_are_not_zero() -> None:
    counts = ReconciliationCounts(
        rows_in=1_010, events=1_000, links=1, duplicates=6, quarantined=1, unresolved=2, conflicting=3
    )
    late = ReconciliationCounts(resolved_later=4, reassigned=5, unassigned=6, known_at_changed=7)
    refused = {"web": {"customer_id is missing": 1}, "shop": {}}
    delays = {"web": ArrivalDelay("0h", "31h", 4, is_exceeded=True)}
    lookups = {
        "shops": LookupVersion(3, True, "2023-05-06T00:00:00+00:00", "2023-01-02T00:00:00+00:00"),
        "prices": LookupVersion(1, False, "2023-01-02T00:00:00+00:00", "2023-01-02T00:00:00+00:00"),
    }
    remapped = {"web": "the Delta table visits does not say which row came when"}
    result = IngestResult({"web": counts, "shop": late}, refused, delays, lookups, remapped)
    assert result.message == (
        "1,010 new raw rows: 1,000 events, 6 duplicates, 1 quarantined, 1 links, 2 unresolved, 4 resolved later, "
        "5 reassigned to another customer, 6 no longer assigned to a customer, 7 known at another time, 3 conflicting"
    )
    assert result.details[1:] == (
        "look-up shops: version 3; new rows are mapped with it, earlier ones keep theirs",
        "web: some earlier rows are mapped with the newest look-ups: the Delta table visits does not say which row "
        "came when",
    )
    assert IngestResult.from_json(json.loads(json.dumps(result.to_json()))) == result
