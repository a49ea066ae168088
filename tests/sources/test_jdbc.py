"""A CRM in a real PostgreSQL as an input: nightly ingestion by watermark, types, secrets and errors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events.stage import ingest
from lam_spark.runtime.context import RunContext
from lam_spark.sources.fingerprint import input_fingerprint
from lam_spark.sources.ingestion_state import find_increments, update_ingestion_state
from lam_spark.sources.inputs import open_input
from tests.support.postgres import PASSWORD, USER, Postgres, postgres
from tests.support.shop import STARTED_AT, key_of, raw_id

Row = dict[str, Any]
Night = Callable[..., RunContext]

CONTRACTS = "id BIGINT, customer STRING, signed_at TIMESTAMP, tariff STRING, fee DOUBLE"
SELECT = (
    "SELECT customer AS customer_id, signed_at AS event_time, CAST(id AS STRING) AS event_key, "
    "'phone' AS touchpoint, tariff AS item, 'sign' AS action, fee AS amount FROM contracts"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def crm(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """The server with three contracts, and the password in the environment."""
    monkeypatch.setenv("CRM_PASSWORD", PASSWORD)
    server.sql(
        "DROP TABLE IF EXISTS contracts",
        "CREATE TABLE contracts (id BIGINT, customer VARCHAR(40), signed_at TIMESTAMP, tariff TEXT, "
        "fee NUMERIC(8, 2), changed_at TIMESTAMPTZ, note TEXT)",
        *(contract(number, f"2023-03-0{number} 12:00") for number in (1, 2, 3)),
    )
    return server


@pytest.fixture
def far_east(spark: SparkSession) -> Iterator[None]:
    """A JVM whose time zone is nine hours ahead of UTC."""
    zones = spark._jvm.java.util.TimeZone
    before = zones.getDefault()
    zones.setDefault(zones.getTimeZone("Asia/Tokyo"))
    yield
    zones.setDefault(before)


@pytest.fixture
def night(crm: Postgres, make_context: Callable[..., RunContext]) -> Night:
    """Builds a night's run context; keywords go to the contracts' input."""
    nights = iter(range(1, 100))

    def build(rebuild: bool = False, **spec: Any) -> RunContext:
        return make_context(
            started_at=STARTED_AT + dt.timedelta(days=next(nights)),
            inputs={"contracts": source(crm, **spec)},
            channels={"contract": {"grain": "contracts", "select": SELECT}},
            ingest={"rebuild": rebuild},
        )

    return build


def counts_of(ctx: RunContext) -> dict[str, int]:
    """Ingest; returns the counts that are not zero."""
    return {name: count for name, count in ingest(ctx).counts.items() if count}


def ingested(ctx: RunContext) -> list[int]:
    """Ids of the contracts that a run ingests, without making events of them."""
    [increment] = find_increments(ctx.tables, ctx.config, ["contract"], ctx.run_id)
    if not increment.parts:
        return []
    rows = open_input(ctx.spark, "contracts", ctx.config.inputs["contracts"], increment).rows
    rebuild = ctx.config.ingest.rebuild
    update_ingestion_state(ctx.tables, [increment], ctx.run_id, ctx.started_at, rebuild)
    return sorted(row["id"] for row in rows.select("id").collect())


def source(crm: Postgres, options: Row | None = None, **more: Any) -> Row:
    """Configuration of the CRM's input."""
    settings = {"url": crm.url, "user": USER} | (options or {"dbtable": "contracts"})
    return {
        "format": "jdbc",
        "columns": CONTRACTS,
        "options": settings,
        "secrets": {"password": "CRM_PASSWORD"},
        **more,
    }


def contract(number: int, changed_at: str, customer: int | None = None, fee: str = "9.99") -> str:
    """SQL that inserts a contract; by default of the customer with the same number."""
    return (
        f"INSERT INTO contracts VALUES ({number}, '{raw_id(customer or number)}', '2023-03-05 01:30:00.5', "
        f"'tariff {number}', {fee}, '{changed_at}+00', 'not declared')"
    )


def refusal(spark: SparkSession, spec: Row) -> str:
    """Error of an input that cannot be opened; checks that it holds no password."""
    with pytest.raises(ConfigError) as caught:
        open_input(spark, "contracts", InputConfig(**spec))
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_table_is_ingested_and_the_next_night_only_changed_rows(
    crm: Postgres, night: Night, far_east: None
) -> None:
    ctx = night(watermark="changed_at")
    assert counts_of(ctx) == {"rows_in": 3, "events": 3}
    events = ctx.tables.read("events")
    (row,) = events.where("item = 'tariff 1'").selectExpr("*", "CAST(event_time AS STRING) AS at").collect()
    assert row["customer_key"] == key_of(raw_id(1))
    # The wall clock time in the database; a channel with a `clock` would read it in its zone.
    assert row["at"] == "2023-03-05 01:30:00.5"
    assert (row["touchpoint"], row["action"], row["amount"]) == ("phone", "sign", 9.99)

    crm.sql(
        contract(4, "2023-03-04 12:00"),
        "UPDATE contracts SET changed_at = '2023-03-03 12:00:00.000001+00', tariff = 'another' WHERE id = 1",
    )
    ctx = night(watermark="changed_at")
    # A contract whose fields differ from before: the first row stays, and the difference is counted.
    assert counts_of(ctx) == {"rows_in": 2, "events": 1, "duplicates": 1, "conflicting": 1}
    assert ctx.tables.read("events").where("item = 'another'").isEmpty()


def test_a_rebuild_maps_the_rows_of_a_night_with_the_look_up_of_that_night(
    crm: Postgres, make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    prices = tmp_path / "prices.csv"
    select = SELECT.replace("tariff AS item", "class AS item") + " CROSS JOIN prices"
    look_up = {"format": "csv", "path": str(prices), "columns": "class STRING"}

    def mapped(
        night: int, watermark: str | None = "id", rebuild: bool = False
    ) -> tuple[list[str], list[str]]:
        """Looked up values by contract after a run, and readers whose earlier rows have the newest."""
        ctx = make_context(
            started_at=STARTED_AT + dt.timedelta(days=night),
            inputs={"contracts": source(crm, watermark=watermark), "prices": look_up},
            channels={"contract": {"grain": "contracts", "select": select}},
            ingest={"rebuild": rebuild},
        )
        result = ingest(ctx)
        events = ctx.tables.read("events")
        return sorted(row["item"] for row in events.select("item").collect()), list(result.remapped)

    prices.write_text("class\nlow\n")
    assert mapped(1) == (["low"] * 3, [])
    prices.write_text("class\nhigh\n")
    crm.sql(contract(4, "2023-03-04 12:00"))
    assert mapped(2) == (["high"] + ["low"] * 3, [])
    assert mapped(3, rebuild=True) == (["high"] + ["low"] * 3, [])
    # Without its watermark nothing says which row came when.
    assert mapped(4, watermark=None, rebuild=True) == (["high"] * 4, ["contract"])


def test_a_table_that_changes_between_reads_is_read_once(crm: Postgres, night: Night) -> None:
    crm.sql(
        "INSERT INTO contracts SELECT n, 'RAW-CUSTOMER-' || n, '2023-03-05' FROM generate_series(10, 999) n"
    )
    counts = counts_of(night(options={"query": "SELECT * FROM contracts WHERE random() < 0.5"}))
    assert counts["rows_in"] == counts["events"] < 993


def test_without_a_watermark_the_whole_table_is_read_each_time(crm: Postgres, night: Night) -> None:
    assert ingested(night()) == [1, 2, 3]
    crm.sql(contract(4, "2023-03-04 12:00"))
    assert ingested(night()) == [1, 2, 3, 4]


def test_only_rows_above_a_serial_number_are_ingested(crm: Postgres, night: Night) -> None:
    split = {"partitionColumn": "id", "lowerBound": "0", "upperBound": "10", "numPartitions": "2"}
    spec: Row = {"watermark": "id", "options": {"dbtable": "contracts", **split}}
    assert ingested(night(**spec)) == [1, 2, 3]
    assert ingested(night(**spec)) == []
    crm.sql(contract(4, "2023-03-04 12:00"), contract(5, "2023-03-04 12:00"))
    assert ingested(night(**spec)) == [4, 5]
    # Late, below the watermark: it stays undetected until a rebuild.
    crm.sql(contract(0, "2023-03-04 12:00"))
    assert ingested(night(**spec)) == []
    ctx = night(rebuild=True, **spec)
    assert ingested(ctx) == [0, 1, 2, 3, 4, 5]
    assert [(row["part"], row["size"]) for row in ctx.tables.read("ingestion_state").collect()] == [("5", 1)]


@pytest.mark.parametrize("watermark", ["changed_at", "changed_on"])
def test_later_rows_at_the_watermark_itself_are_ingested(
    crm: Postgres, night: Night, far_east: None, watermark: str
) -> None:
    spec: Row = {
        "watermark": watermark,
        "options": {"query": "SELECT *, CAST(changed_at AS DATE) AS changed_on FROM contracts"},
    }
    assert ingested(night(**spec)) == [1, 2, 3]
    assert ingested(night(**spec)) == []
    crm.sql(contract(4, "2023-03-03 12:00"))
    assert ingested(night(**spec)) == [3, 4]  # 3 once more: a duplicate
    assert ingested(night(**spec)) == []


def test_rows_without_a_watermark_are_refused(crm: Postgres, night: Night) -> None:
    crm.sql("UPDATE contracts SET changed_at = NULL WHERE id = 2")
    with pytest.raises(DataQualityError) as caught:
        ingested(night(watermark="changed_at"))
    assert str(caught.value) == (
        "inputs.contracts: 1 rows have no changed_at: no run would ingest them. Choose another watermark, or fill it "
        "in options.query: coalesce(changed_at, ...)"
    )
    query = "SELECT *, coalesce(changed_at, '2000-01-01') AS touched FROM contracts"
    assert ingested(night(watermark="touched", options={"query": query})) == [1, 2, 3]


def test_a_watermark_must_be_a_number_or_a_time(night: Night) -> None:
    with pytest.raises(ConfigError) as caught:
        ingested(night(watermark="customer"))
    assert str(caught.value) == (
        "inputs.contracts.watermark: customer is string; expected a number, a date or a time that only grows"
    )


def test_an_empty_table_has_nothing_to_ingest(crm: Postgres, night: Night) -> None:
    crm.sql("DELETE FROM contracts")
    assert ingested(night(watermark="id")) == []


def test_columns_are_compared_with_the_declared_ones(crm: Postgres, spark: SparkSession) -> None:
    missing = refusal(spark, source(crm, columns=f"{CONTRACTS}, region STRING"))
    place = crm.url.partition("?")[0]
    assert missing == (
        f"inputs.contracts: {place} lacks the declared columns region; "
        "it has id, customer, signed_at, tariff, fee, changed_at, note"
    )
    types = refusal(spark, source(crm, columns="id INT, customer STRING, signed_at DATE, fee FLOAT"))
    assert types == (
        f"inputs.contracts: {place} has other types: id is bigint, declared int; "
        "signed_at is timestamp_ntz, declared date; fee is decimal(8,2), declared float"
    )
    opened = open_input(spark, "contracts", InputConfig(**source(crm)))
    assert opened.undeclared == ("changed_at", "note")


def test_a_decimal_may_be_read_as_a_double_if_no_digit_is_lost(crm: Postgres, spark: SparkSession) -> None:
    query = {"query": "SELECT 1234567890123.45::NUMERIC(15, 2) AS fee"}
    fits = open_input(spark, "fees", InputConfig(**source(crm, query, columns="fee DOUBLE"))).rows
    assert [row["fee"] for row in fits.collect()] == [1234567890123.45]
    query = {"query": "SELECT 0.1::NUMERIC AS fee, 1::NUMERIC(16, 0) AS units"}
    text = refusal(spark, source(crm, query, columns="fee DOUBLE, units DOUBLE"))
    assert text.endswith(
        "fee is decimal(38,18), declared double; units is decimal(16,0), declared double. A double is exact to 15 "
        "digits only: declare fee DECIMAL(38,18), units DECIMAL(16,0) (a numeric field converts it to double), or "
        "make the column narrower in the source"
    )
    open_input(
        spark, "fees", InputConfig(**source(crm, query, columns="fee DECIMAL(38,18), units DECIMAL(18,2)"))
    )


def test_a_password_that_is_not_set(
    crm: Postgres, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRM_PASSWORD")
    assert refusal(spark, source(crm)) == (
        "inputs.contracts.secrets.password: expected the environment variable CRM_PASSWORD, it is not set"
    )


def test_a_wrong_password(crm: Postgres, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_PASSWORD", "not the password")
    text = refusal(spark, source(crm))
    assert text == (
        f"inputs.contracts: the database at {crm.url}: FATAL: password authentication failed for user "
        f'"{USER}"'
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "jdbc:postgresql://127.0.0.1:1/crm"}, "Connection to 127.0.0.1:1 refused"),
        ({"dbtable": "contrats"}, 'ERROR: relation "contrats" does not exist'),
        (
            {"driver": "org.nosuch.Driver"},
            "ClassNotFoundException: org.nosuch.Driver. Name the driver's class in",
        ),
        (
            {"url": "jdbc:nosuch://127.0.0.1/crm"},
            "No suitable driver. Name the driver's class in options.driver",
        ),
    ],
    ids=["unreachable", "no such table", "no such driver", "no driver for the url"],
)
def test_a_database_that_cannot_be_read(
    crm: Postgres, spark: SparkSession, options: Row, message: str
) -> None:
    assert message in refusal(spark, source(crm, {"dbtable": "contracts"} | options))


def test_the_parameters_of_a_url_are_not_shown(crm: Postgres, spark: SparkSession) -> None:
    url = "jdbc:nosuch://127.0.0.1/crm?sslkey=hush"
    text = refusal(
        spark, source(crm, {"dbtable": "contracts", "url": url, "driver": "org.postgresql.Driver"})
    )
    assert "hush" not in text
    assert "the database at jdbc:nosuch://127.0.0.1/crm: " in text


def test_the_fingerprint_is_the_watermark_and_the_number_of_rows(spark: SparkSession, crm: Postgres) -> None:
    spec = InputConfig(**source(crm, watermark="id"))
    assert input_fingerprint(spark, "contracts", spec) == "3:3"
    crm.sql(contract(3, "2023-03-04 12:00"))
    assert input_fingerprint(spark, "contracts", spec) == "3:4"
    assert input_fingerprint(spark, "contracts", InputConfig(**source(crm))) is None
