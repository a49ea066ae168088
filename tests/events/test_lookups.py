"""Look-ups that change: each row keeps the content that mapped it, also after a rebuild."""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events import stage
from lam_spark.events.stage import IngestResult, ingest
from lam_spark.runtime.context import RunContext
from lam_spark.sources.lookup_rows import lookup_rows, lookup_schema, row_text
from lam_spark.sources.lookups import LookupVersion
from lam_spark.storage.session_settings import configured_sql
from tests.support.shop import context_builder, key_of, raw_id, settings

FIRST = dt.datetime(2023, 3, 20, tzinfo=dt.UTC)
OWNER = raw_id(7)
SALE = (raw_id(1), "2023-03-01T11:00:00Z", "1", "ink")
LOOKUP_TABLES = ("lookups", "lookup_versions")

# Per night: the shops (shop, region, owner), the prices (product, price class) and the new sales (shop, product).
# Shop 1 moves from north to south and back; the prices stay as they are from the second night on.
NIGHTS: list[dict[str, list[tuple[str, ...]]]] = [
    {
        "shops": [("1", "north", OWNER), ("2", "east", ""), ("2", "east", "")],
        "prices": [("pen", "low"), ("ink", "low")],
    },
    {"shops": [("1", "south", OWNER), ("2", "east", "")], "prices": [("pen", "low"), ("ink", "high")]},
    {"shops": [("1", "south", OWNER), ("2", "east", "")], "prices": [("pen", "low"), ("ink", "high")]},
    {"shops": [("1", "north", OWNER), ("2", "east", "")], "prices": [("pen", "low"), ("ink", "high")]},
]
REGIONS = ["north", "south", "south", "north"]
PRICES = ["low", "high", "high", "high"]


def write_csv(path: Path, columns: str, rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)


def write(root: Path, night: int) -> None:
    """The look-ups of a night, and a sale of ink in shop 1; the minute of its time names the night."""
    write_csv(root / "raw" / "shops.csv", "shop region owner", NIGHTS[night]["shops"])
    if night != 2:  # on night 2 the file stays as it is
        write_csv(root / "raw" / "prices.csv", "product price_class", NIGHTS[night]["prices"])
    sale = (raw_id(1), f"2023-03-01T10:{night:02d}:00Z", "1", "ink")
    write_csv(root / "raw" / "sales" / f"{night}.csv", "customer at shop product", [sale])


def sections(root: Path) -> dict[str, Any]:
    """Sales that look up their region through views of two look-ups."""

    def source(path: str, columns: str, **more: Any) -> dict[str, Any]:
        return {"format": "csv", "path": str(root / "raw" / path), "columns": columns, **more}

    plain = settings(root)
    return plain | {
        "inputs": plain["inputs"]
        | {
            "sales": source("sales/*.csv", "customer STRING, at TIMESTAMP, shop INT, product STRING"),
            "shops": source("shops.csv", "shop INT, region STRING, owner STRING", customer_id="owner"),
            "prices": source("prices.csv", "product STRING, price_class STRING"),
        },
        "views": {
            "regions": "SELECT shop, max(region) AS region FROM shops GROUP BY shop",
            "looked_up": "SELECT * FROM regions CROSS JOIN prices",
        },
        "channels": {
            "shop": {
                "grain": "sales",
                "select": (
                    "SELECT customer AS customer_id, at AS event_time, '' AS event_key, region AS item, "
                    "price_class AS product FROM sales LEFT JOIN looked_up USING (shop, product)"
                ),
            }
        },
    }


@dataclass(frozen=True)
class Night:
    """Result of a night, and the looked up values of all events in order of time."""

    result: IngestResult
    regions: list[str]
    prices: list[str]
    commits: dict[str, int]


@pytest.fixture(scope="module")
def build(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunContext]:
    root = tmp_path_factory.mktemp("lookups") / "shop"
    builder = context_builder(spark, root)

    def build(night: int, **more: Any) -> RunContext:
        return builder(started_at=FIRST + dt.timedelta(days=night), **(sections(root) | more))

    return build


def run(ctx: RunContext) -> Night:
    result = ingest(ctx)
    events = ctx.tables.read("events").orderBy("event_time").collect()
    commits = {name: ctx.tables.version(name) for name in LOOKUP_TABLES}
    return Night(result, [event["item"] for event in events], [event["product"] for event in events], commits)


@pytest.fixture(scope="module")
def nights(build: Callable[..., RunContext]) -> list[Night]:
    """Four nights and a rebuild."""
    after = []
    for night in range(len(NIGHTS)):
        ctx = build(night)
        write(ctx.config.workspace, night)
        after.append(run(ctx))
    rebuilt = run(build(len(NIGHTS), ingest={"rebuild": True}))
    return [*after, rebuilt]


def test_a_row_keeps_the_content_that_mapped_it(nights: list[Night]) -> None:
    for number, night in enumerate(nights[:4]):
        assert (night.regions, night.prices) == (REGIONS[: number + 1], PRICES[: number + 1])


def test_a_rebuild_maps_each_row_with_the_content_of_its_night(nights: list[Night]) -> None:
    assert (nights[4].regions, nights[4].prices) == (REGIONS, PRICES)
    assert nights[4].result.remapped == {}
    assert nights[4].result.total.events == 4


def test_a_look_up_gets_a_version_only_where_its_content_differs(nights: list[Night]) -> None:
    versions = [{name: of.version for name, of in night.result.lookups.items()} for night in nights]
    assert versions == [
        {"prices": 1, "shops": 1},
        {"prices": 2, "shops": 2},
        {"prices": 2, "shops": 2},
        {"prices": 2, "shops": 3},
        {"prices": 2, "shops": 3},
    ]
    # The files were written again, or not, with the same rows: nothing is committed.
    assert nights[1].commits == nights[2].commits
    assert nights[3].commits == nights[4].commits


def test_the_result_says_which_look_up_changed_and_since_when(nights: list[Night]) -> None:
    result = nights[3].result
    first = FIRST.isoformat()
    assert result.lookups == {
        "prices": LookupVersion(2, False, (FIRST + dt.timedelta(days=1)).isoformat(), first),
        "shops": LookupVersion(3, True, (FIRST + dt.timedelta(days=3)).isoformat(), first),
    }
    assert result.details[-1] == (
        "look-up shops: version 3; new rows are mapped with it, earlier ones keep theirs"
    )
    assert nights[0].result.details == ()


def test_only_rows_that_changed_are_written_and_they_carry_their_customer(
    nights: list[Night], build: Callable[..., RunContext]
) -> None:
    table = build(9).tables.read("lookups").where("lookup = 'shops'")
    columns = ("copies", "first_version", "last_version", "customer_key")
    found = {
        (json.loads(row["row"])["region"], *(row[column] for column in columns)) for row in table.collect()
    }
    owner = key_of(OWNER)
    assert found == {
        ("north", 1, 1, 1, owner),
        ("south", 1, 2, 2, owner),
        ("north", 1, 3, None, owner),
        ("east", 2, 1, 1, None),
        ("east", 1, 2, None, None),
    }


@pytest.fixture(scope="module")
def changed(nights: list[Night], build: Callable[..., RunContext]) -> Night:
    """A rebuild without versions of the shops, and with products as ids of customers in the prices."""
    plain = sections(build(9).config.workspace)["inputs"]
    inputs = plain | {
        "shops": plain["shops"] | {"keep_versions": False},
        "prices": plain["prices"] | {"customer_id": "product"},
    }
    return run(build(10, inputs=inputs, ingest={"rebuild": True}))


def test_a_look_up_without_versions_maps_all_rows_as_it_is_now(changed: Night) -> None:
    assert (changed.regions, changed.prices) == (["north"] * 4, PRICES)
    assert list(changed.result.lookups) == ["prices"]


def test_rows_of_earlier_versions_get_the_customer_that_is_declared_later(
    changed: Night, build: Callable[..., RunContext]
) -> None:
    table = build(9).tables.read("lookups").where("lookup = 'prices'")
    found = {
        (json.loads(row["row"])["product"], row["last_version"], row["customer_key"])
        for row in table.collect()
    }
    assert found == {("pen", None, key_of("pen")), ("ink", 1, key_of("ink")), ("ink", None, key_of("ink"))}
    assert changed.result.lookups["prices"].version == 3


def test_a_run_that_fails_records_no_version(
    changed: Night, build: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = build(11)
    before = {name: sorted(map(str, ctx.tables.read(name).collect())) for name in LOOKUP_TABLES}
    write_csv(ctx.config.workspace / "raw" / "shops.csv", "shop region owner", [("1", "west", OWNER)])
    write_csv(ctx.config.workspace / "raw" / "sales" / "9.csv", "customer at shop product", [SALE])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "update_ingestion_state", full)
    with pytest.raises(OSError, match="No space left"):
        ingest(ctx)
    assert {name: sorted(map(str, ctx.tables.read(name).collect())) for name in LOOKUP_TABLES} == before


def test_rows_are_the_same_after_they_were_kept_as_text(spark: SparkSession) -> None:
    with configured_sql(spark):
        frame = spark.sql(
            """
            SELECT TIMESTAMP '2023-03-26 02:30:00.123456Z' AS at,
                   TIMESTAMP_NTZ '1890-01-01 00:00:00.000001' AS wall, DATE '0001-01-01' AS day,
                   double('1e-320') AS tiny, double('NaN') AS not_a_number, double('-Infinity') AS low,
                   float('0.1') AS single, 12345678901234567890.123456789012345678BD AS exact,
                   9223372036854775807 AS large, X'00FF10' AS bytes, true AS yes, '' AS empty,
                   'a "quoted"\n\u00e9 text' AS text, CAST(NULL AS STRING) AS missing,
                   array(1, NULL) AS numbers, CAST(array() AS ARRAY<INT>) AS none, CAST(NULL AS ARRAY<INT>) AS no_array,
                   named_struct('a', CAST(NULL AS INT), 'b', array(named_struct('c', 0.10BD))) AS nested,
                   CAST(NULL AS STRUCT<a: INT>) AS no_struct, map('k', CAST(NULL AS INT), '', 2) AS counts
            """
        )
    schema = frame.schema
    texts = frame.select(row_text(schema).alias("row")).selectExpr("row", "2L AS copies")
    again = lookup_rows(texts, schema)
    kinds = [[field.dataType.simpleString() for field in each.schema] for each in (again, frame)]
    assert kinds[0] == kinds[1]
    expected = [repr(row) for row in frame.collect() for _ in range(2)]
    assert [repr(row) for row in again.collect()] == expected


@pytest.mark.parametrize(
    ("columns", "customer_id", "message"),
    [
        ("shop INT, owner STRING", "owners", r"inputs\.shops\.customer_id: no column 'owners': .*owner"),
        (
            "sizes MAP<INT, STRING>",
            None,
            r"the column sizes is map<int,string>, which the versions .* cannot keep",
        ),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(
    spark: SparkSession, columns: str, customer_id: str | None, message: str
) -> None:
    spec = InputConfig(format="parquet", path="shops", columns=columns, customer_id=customer_id)
    with pytest.raises(ConfigError, match=message):
        lookup_schema("shops", spec)


def test_a_version_that_is_lost_stops_the_rebuild(changed: Night, build: Callable[..., RunContext]) -> None:
    ctx = build(11, ingest={"rebuild": True})
    gone = ctx.tables.read("lookups").where("lookup = 'prices' AND last_version = 1").select("row")
    ctx.tables.update(gone, "lookups", "row", delete_where="true", where="known.lookup = 'prices'")
    with pytest.raises(
        DataQualityError, match=r"look-up 'prices': version 1 holds 1 of its 2 rows.*Restore both"
    ):
        ingest(ctx)
