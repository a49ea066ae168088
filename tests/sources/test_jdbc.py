"""A CRM in a real PostgreSQL as an input: read through ingest, night after night, and refused with clear words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.events import stage as ingest
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import Run
from lam_spark.sources.ingestion_state import find_new, note_taken
from lam_spark.sources.inputs import open_input
from tests.support.postgres import PASSWORD, USER, Postgres, postgres
from tests.support.shop import SECRET, STARTED_AT, raw_id

Row = dict[str, Any]
Night = Callable[..., Run]

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
    """The server with three contracts, and the password where the configuration looks for it."""
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
    """A machine whose Java is nine hours from UTC."""
    zones = spark._jvm.java.util.TimeZone
    before = zones.getDefault()
    zones.setDefault(zones.getTimeZone("Asia/Tokyo"))
    yield
    zones.setDefault(before)


@pytest.fixture
def night(crm: Postgres, make_run: Callable[..., Run]) -> Night:
    """A night's run over the contracts; keywords go to their input."""
    nights = iter(range(1, 100))

    def build(rebuild: bool = False, **spec: Any) -> Run:
        return make_run(
            started_at=STARTED_AT + dt.timedelta(days=next(nights)),
            inputs={"contracts": source(crm, **spec)},
            channels={"contract": {"grain": "contracts", "select": SELECT}},
            ingest={"rebuild": rebuild},
        )

    return build


def counted(run: Run) -> dict[str, int]:
    """Ingest: the counts that are not zero."""
    return {name: count for name, count in ingest.run(run).counts.items() if count}


def taken(run: Run) -> list[int]:
    """What a run takes, without making events of it: the contracts' numbers."""
    [new] = find_new(run, ["contract"])
    if not new.parts:
        return []
    rows = open_input(run.spark, "contracts", run.config.inputs["contracts"], new).rows
    note_taken(run, [new])
    return sorted(row["id"] for row in rows.select("id").collect())


def source(crm: Postgres, options: Row | None = None, **more: Any) -> Row:
    """The section of the CRM's input."""
    given = {"url": crm.url, "user": USER} | (options or {"dbtable": "contracts"})
    return {
        "format": "jdbc",
        "columns": CONTRACTS,
        "options": given,
        "secrets": {"password": "CRM_PASSWORD"},
        **more,
    }


def contract(number: int, changed_at: str, customer: int | None = None, fee: str = "9.99") -> str:
    """The statement that adds a contract; of the customer with its number, unless told otherwise."""
    return (
        f"INSERT INTO contracts VALUES ({number}, '{raw_id(customer or number)}', '2023-03-05 01:30:00.5', "
        f"'tariff {number}', {fee}, '{changed_at}+00', 'not declared')"
    )


def refusal(spark: SparkSession, spec: Row) -> str:
    """What is said of an input that cannot be opened; never the password."""
    with pytest.raises(ConfigError) as caught:
        open_input(spark, "contracts", InputConfig(**spec))
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_table_becomes_events_and_next_night_only_what_changed(
    crm: Postgres, night: Night, far_east: None
) -> None:
    run = night(watermark="changed_at")
    assert counted(run) == {"rows_in": 3, "events": 3}
    events = run.tables.read("events")
    (row,) = events.where("item = 'tariff 1'").selectExpr("*", "CAST(event_time AS STRING) AS at").collect()
    assert row["customer_key"] == keyed_pseudonym(SECRET.encode(), raw_id(1))
    # The wall clock that the database holds; a channel with a `clock` would read it in its zone.
    assert row["at"] == "2023-03-05 01:30:00.5"
    assert (row["touchpoint"], row["action"], row["amount"]) == ("phone", "sign", 9.99)

    crm.sql(
        contract(4, "2023-03-04 12:00"),
        "UPDATE contracts SET changed_at = '2023-03-03 12:00:00.000001+00', tariff = 'another' WHERE id = 1",
    )
    run = night(watermark="changed_at")
    # A contract that says something else than before: the first stands, and the difference is counted.
    assert counted(run) == {"rows_in": 2, "events": 1, "duplicates": 1, "conflicting": 1}
    assert run.tables.read("events").where("item = 'another'").isEmpty()


def test_a_table_that_does_not_hold_still_is_read_once(crm: Postgres, night: Night) -> None:
    crm.sql(
        "INSERT INTO contracts SELECT n, 'RAW-CUSTOMER-' || n, '2023-03-05' FROM generate_series(10, 999) n"
    )
    counts = counted(night(options={"query": "SELECT * FROM contracts WHERE random() < 0.5"}))
    assert counts["rows_in"] == counts["events"] < 993


def test_without_a_watermark_the_table_is_read_whole_each_time(crm: Postgres, night: Night) -> None:
    assert taken(night()) == [1, 2, 3]
    crm.sql(contract(4, "2023-03-04 12:00"))
    assert taken(night()) == [1, 2, 3, 4]


def test_above_a_serial_number_only_what_is_new_is_taken(crm: Postgres, night: Night) -> None:
    split = {"partitionColumn": "id", "lowerBound": "0", "upperBound": "10", "numPartitions": "2"}
    spec: Row = {"watermark": "id", "options": {"dbtable": "contracts", **split}}
    assert taken(night(**spec)) == [1, 2, 3]
    assert taken(night(**spec)) == []
    crm.sql(contract(4, "2023-03-04 12:00"), contract(5, "2023-03-04 12:00"))
    assert taken(night(**spec)) == [4, 5]
    # Late: below what was taken. Nothing tells that it came, and a rebuild finds it.
    crm.sql(contract(0, "2023-03-04 12:00"))
    assert taken(night(**spec)) == []
    run = night(rebuild=True, **spec)
    assert taken(run) == [0, 1, 2, 3, 4, 5]
    assert [(row["part"], row["size"]) for row in run.tables.read("ingestion_state").collect()] == [("5", 1)]


@pytest.mark.parametrize("watermark", ["changed_at", "changed_on"])
def test_rows_that_come_later_at_the_very_watermark_are_not_lost(
    crm: Postgres, night: Night, far_east: None, watermark: str
) -> None:
    spec: Row = {
        "watermark": watermark,
        "options": {"query": "SELECT *, CAST(changed_at AS DATE) AS changed_on FROM contracts"},
    }
    assert taken(night(**spec)) == [1, 2, 3]
    assert taken(night(**spec)) == []
    crm.sql(contract(4, "2023-03-03 12:00"))
    assert taken(night(**spec)) == [3, 4]  # 3 once more: a duplicate
    assert taken(night(**spec)) == []


def test_rows_without_a_watermark_are_not_left_behind_in_silence(crm: Postgres, night: Night) -> None:
    crm.sql("UPDATE contracts SET changed_at = NULL WHERE id = 2")
    with pytest.raises(DataQualityError, match=r"inputs\.contracts: 1 rows have no changed_at: no run would"):
        taken(night(watermark="changed_at"))
    query = "SELECT *, coalesce(changed_at, '2000-01-01') AS touched FROM contracts"
    assert taken(night(watermark="touched", options={"query": query})) == [1, 2, 3]


def test_a_watermark_has_to_be_a_number_or_a_time(night: Night) -> None:
    with pytest.raises(
        ConfigError, match=r"watermark: customer is string; expected a number, a date or a time"
    ):
        taken(night(watermark="customer"))


def test_an_empty_table_has_nothing_to_take(crm: Postgres, night: Night) -> None:
    crm.sql("DELETE FROM contracts")
    assert taken(night(watermark="id")) == []


def test_columns_are_compared_with_the_declared_ones(crm: Postgres, spark: SparkSession) -> None:
    lacking = refusal(spark, source(crm, columns=f"{CONTRACTS}, region STRING"))
    place = crm.url.partition("?")[0]
    assert lacking == (
        f"inputs.contracts: {place} lacks the declared columns region; "
        "it has id, customer, signed_at, tariff, fee, changed_at, note"
    )
    wrong = refusal(spark, source(crm, columns="id INT, customer STRING, signed_at DATE, fee FLOAT"))
    assert wrong == (
        f"inputs.contracts: {place} has other types: id is bigint, declared int; "
        "signed_at is timestamp_ntz, declared date; fee is decimal(8,2), declared float"
    )
    found = open_input(spark, "contracts", InputConfig(**source(crm)))
    assert found.undeclared == ("changed_at", "note")


def test_a_number_may_be_read_as_a_double_while_no_digit_is_lost(crm: Postgres, spark: SparkSession) -> None:
    query = {"query": "SELECT 1234567890123.45::NUMERIC(15, 2) AS fee"}
    fits = open_input(spark, "fees", InputConfig(**source(crm, query, columns="fee DOUBLE"))).rows
    assert [row["fee"] for row in fits.collect()] == [1234567890123.45]
    query = {"query": "SELECT 0.1::NUMERIC AS fee, 1::NUMERIC(16, 0) AS units"}
    told = refusal(spark, source(crm, query, columns="fee DOUBLE, units DOUBLE"))
    assert told.endswith(
        "fee is decimal(38,18), declared double; units is decimal(16,0), declared double. A double is sure of 15 "
        "digits only: declare fee DECIMAL(38,18), units DECIMAL(16,0) (a numeric field makes a double of it), or "
        "make the column narrower where it comes from"
    )
    open_input(
        spark, "fees", InputConfig(**source(crm, query, columns="fee DECIMAL(38,18), units DECIMAL(18,2)"))
    )


def test_a_password_that_nobody_set(
    crm: Postgres, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRM_PASSWORD")
    assert refusal(spark, source(crm)) == (
        "inputs.contracts.secrets.password: expected the environment variable CRM_PASSWORD, it is not set"
    )


def test_a_wrong_password(crm: Postgres, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_PASSWORD", "not the password")
    told = refusal(spark, source(crm))
    assert told == (
        f"inputs.contracts: the database at {crm.url}: FATAL: password authentication failed for user "
        f'"{USER}"'
    )


@pytest.mark.parametrize(
    ("options", "says"),
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
def test_a_database_that_cannot_be_read(crm: Postgres, spark: SparkSession, options: Row, says: str) -> None:
    assert says in refusal(spark, source(crm, {"dbtable": "contracts"} | options))


def test_what_follows_in_a_url_is_not_shown(crm: Postgres, spark: SparkSession) -> None:
    url = "jdbc:nosuch://127.0.0.1/crm?sslkey=hush"
    told = refusal(
        spark, source(crm, {"dbtable": "contracts", "url": url, "driver": "org.postgresql.Driver"})
    )
    assert "hush" not in told
    assert "the database at jdbc:nosuch://127.0.0.1/crm: " in told
