"""Consent: denied by default, an opt-in must be later than every withdrawal, and the ledger only grows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.consent import ledger
from lam_spark.consent.eligibility import StatusCounts, consent_status, count_by_status, eligible_customers
from lam_spark.consent.stage import update_consent
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.events.stage import ingest
from lam_spark.identity.pseudonyms import Secret
from lam_spark.runtime.context import RunContext
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.tables.store import Tables
from tests.support.shop import key_of, purchase, raw_id, settings, statement, write_inputs
from tests.support.tables import ledger_frame, publish

CONTACT = "direct_marketing"
NO_BREAK_SPACE = "\u00a0"
JAN, FEB, MAR, LATER = (f"2023-{month:02d}-01T00:00:00" for month in (1, 2, 3, 9))
AT = dt.datetime(2023, 6, 1, tzinfo=dt.UTC)

# Customer -> statements (state, effective_at, recorded_at) and the expected consent status.
CASES: dict[str, tuple[list[tuple[str | None, str, str]], str | None]] = {
    "in": ([("opt_in", JAN, JAN)], "opt_in"),
    "out": ([("opt_out", JAN, JAN)], "opt_out"),
    "in then out": ([("opt_in", JAN, JAN), ("opt_out", FEB, FEB)], "opt_out"),
    "in, out and back": ([("opt_in", JAN, JAN), ("opt_out", FEB, FEB), ("opt_in", MAR, MAR)], "opt_in"),
    "out in the future": ([("opt_in", JAN, JAN), ("opt_out", LATER, FEB)], "opt_out"),
    "out before a contract that takes effect later": (
        [("opt_in", MAR, JAN), ("opt_out", FEB, FEB)],
        "opt_out",
    ),
    "recorded later, effective before the opt-out": (
        [("opt_out", FEB, FEB), ("opt_in", JAN, MAR)],
        "unclear",
    ),
    "no single opt-in is later in both": (
        [("opt_out", FEB, FEB), ("opt_in", JAN, MAR), ("opt_in", MAR, JAN)],
        "unclear",
    ),
    "in in the future": ([("opt_in", LATER, JAN)], None),
    "out, and in in the future": ([("opt_out", JAN, JAN), ("opt_in", LATER, FEB)], "opt_out"),
    "effective at the instant": ([("opt_in", "2023-06-01T00:00:00", JAN)], "opt_in"),
    "corrected": ([("opt_in", JAN, JAN), ("opt_out", JAN, FEB)], "opt_out"),
    "a tie that disagrees": ([("opt_in", JAN, JAN), ("opt_out", JAN, JAN)], "unclear"),
    "a tie in the effective date": ([("opt_out", JAN, JAN), ("opt_in", JAN, FEB)], "unclear"),
    "a tie that agrees": ([("opt_in", JAN, JAN), ("opt_in", JAN, JAN)], "opt_in"),
    "unknown state": ([("maybe", JAN, JAN)], "unclear"),
    "unknown state after an opt-in": ([("opt_in", JAN, JAN), ("maybe", FEB, FEB)], "unclear"),
    "null state": ([(None, JAN, JAN)], "unclear"),
    "a tie with null": ([("opt_in", JAN, JAN), (None, JAN, JAN)], "unclear"),
    "unclear, then clear": ([(None, JAN, JAN), ("opt_in", FEB, FEB)], "opt_in"),
}


def test_an_opt_in_must_be_later_than_every_withdrawal_in_both_times(spark: SparkSession) -> None:
    rows = [
        (name, CONTACT, state, effective, recorded)
        for name, (statements, _) in CASES.items()
        for state, effective, recorded in statements
    ]
    rows.append(("another purpose", "model_training", "opt_in", JAN, JAN))
    statuses = consent_status(ledger_frame(spark, rows), AT).collect()
    status_by_customer = {row["customer_key"]: row["status"] for row in statuses if row["purpose"] == CONTACT}
    assert status_by_customer == {name: expected for name, (_, expected) in CASES.items() if expected}
    assert [row["customer_key"] for row in statuses if row["purpose"] != CONTACT] == ["another purpose"]
    assert len(statuses) == len(status_by_customer) + 1


def test_a_withdrawal_dated_later_than_it_was_read_counts_from_then(spark: SparkSession) -> None:
    """A mistyped year must neither hide the withdrawal nor outlast every later opt-in."""
    rows = [("one", CONTACT, "opt_in", JAN, JAN), ("one", CONTACT, "opt_out", JAN, "2204-02-01T00:00:00")]
    read_at = F.lit(FEB).cast("timestamp")
    ledger = ledger_frame(spark, rows).withColumn("ingested_at", read_at)
    assert [row["status"] for row in consent_status(ledger, AT).collect()] == ["opt_out"]
    renewed = ledger_frame(spark, [("one", CONTACT, "opt_in", MAR, MAR)])
    assert [row["status"] for row in consent_status(ledger.unionByName(renewed), AT).collect()] == ["opt_in"]


def test_an_opt_in_takes_effect_at_its_fraction_of_a_second(spark: SparkSession) -> None:
    frame = ledger_frame(
        spark,
        [("one", CONTACT, "opt_out", JAN, JAN), ("one", CONTACT, "opt_in", "2023-06-01T00:00:00.500", MAR)],
    )
    before, after = AT + dt.timedelta(seconds=0.4), AT + dt.timedelta(seconds=0.9)
    assert [row["status"] for row in consent_status(frame, before).collect()] == ["opt_out"]
    assert [row["status"] for row in consent_status(frame, after).collect()] == ["opt_in"]


def test_customers_are_eligible_only_for_purposes_they_opted_in_to(
    make_context: Callable[..., RunContext],
) -> None:
    ctx = make_context()
    publish(
        ctx,
        [],
        {
            "both": ("opt_in", "opt_in"),
            "training": ("opt_in", None),
            "contact": ("opt_out", "opt_in"),
            "none": ("opt_out", "opt_out"),
        },
    )

    def keys(purpose: str) -> list[str]:
        customers = eligible_customers(ctx.tables, ctx.cache, purpose, ctx.started_at)
        return sorted(row["customer_key"] for row in customers.collect())

    assert keys("model_training") == ["both", "training"]
    assert keys(CONTACT) == ["both", "contact"]
    assert ctx.tables.read_versions["consent"] == ctx.tables.version("consent")
    with pytest.raises(ConsentError, match="no customer is eligible for the purpose 'profiling'") as raised:
        eligible_customers(ctx.tables, ctx.cache, "profiling", ctx.started_at)
    assert raised.value.exit_code == 4
    with pytest.raises(ConsentError, match="no customer is eligible"):
        eligible_customers(ctx.tables, ctx.cache, CONTACT, dt.datetime(2022, 12, 31, tzinfo=dt.UTC))
    customers = local_frame(ctx.spark, [("both",), ("none",), ("stranger",)], "customer_key STRING")
    counts = count_by_status(ctx.tables, (CONTACT, "model_training"), ctx.started_at, customers)
    assert counts[CONTACT] == StatusCounts(opted_in=1, opted_out=1, unclear=0, never_asked=1)
    assert counts["model_training"] == counts[CONTACT]


def new_and_read(ctx: RunContext) -> tuple[int, int]:
    """Statements that a refresh found new, and all that it read."""
    result = update_consent(ctx)
    return result.statements_new, result.statements_in


def test_a_rerun_inserts_no_statement(make_context: Callable[..., RunContext], tmp_path: Path) -> None:
    raw = tmp_path / "shop" / "raw"
    first = [statement(raw_id(1), CONTACT, "opt_in", JAN), statement(raw_id(2), CONTACT, None, JAN)]
    write_inputs(raw, statements=[*first, first[0]])
    ctx = make_context()
    assert [new_and_read(ctx), new_and_read(ctx)] == [(2, 3), (0, 3)]
    write_inputs(raw, statements=[*first, statement(raw_id(1), CONTACT, "opt_out", FEB)])
    assert new_and_read(ctx) == (1, 3)
    keys = {key_of(raw_id(n)): n for n in (1, 2)}
    stored = [(keys[row["customer_key"]], row["state"]) for row in ctx.tables.read("consent").collect()]
    assert sorted(stored, key=str) == [(1, "opt_in"), (1, "opt_out"), (2, None)]


def test_only_checked_statements_are_inserted(
    make_context: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source changes between check and insertion. The next run checks the new statements."""
    valid = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in (1, 2)]
    raw = tmp_path / "shop" / "raw"
    write_inputs(raw, statements=valid)

    resolve = ledger.resolve_customers

    def change_source(tables: Tables, statements: DataFrame, secret: Secret) -> DataFrame:
        write_inputs(raw, statements=[valid[0] | {"effective_at": None}, valid[1] | {"effective_at": None}])
        return resolve(tables, statements, secret)

    monkeypatch.setattr(ledger, "resolve_customers", change_source)
    ctx = make_context()
    assert new_and_read(ctx) == (2, 2)
    assert ctx.tables.read("consent").where("effective_at IS NULL").isEmpty()
    with pytest.raises(ConsentError, match="2 of 2 consent statements lack"):
        update_consent(ctx)


def test_a_ledger_without_statements_is_refused(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    write_inputs(tmp_path / "shop" / "raw")
    with pytest.raises(ConsentError, match="the consent ledger has no statements"):
        update_consent(make_context())
    assert not (tmp_path / "shop" / "tables").exists()


def test_an_incomplete_statement_refuses_all_statements(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    valid = statement(raw_id(1), CONTACT, "opt_in", JAN)
    incomplete = [valid | {"customer": text} for text in (None, "  ", " \t", NO_BREAK_SPACE, "RAW-\ufffd")]
    incomplete += [valid | {"purpose": None}, valid | {"purpose": " "}, valid | {"effective_at": None}]
    write_inputs(tmp_path / "shop" / "raw", statements=[valid, *incomplete])
    with pytest.raises(
        ConsentError, match="8 of 9 consent statements lack a readable customer, purpose or time"
    ):
        update_consent(make_context())
    assert not (tmp_path / "shop" / "tables").exists()


def test_white_space_around_ids_and_purposes_is_ignored(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    padded = [f" {raw_id(2)}", f"{raw_id(3)}\t", f"{NO_BREAK_SPACE}{raw_id(4)} "]
    statements = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in (1, 2, 3, 4)]
    statements += [statement(customer, CONTACT, "opt_out", FEB) for customer in padded]
    # Padded as in a column of fixed width. Events and statements get the same customer key.
    statements += [statement(f"{raw_id(5)}  ", f" {CONTACT} ", "opt_in", JAN)]
    write_inputs(
        tmp_path / "shop" / "raw",
        [purchase(f"  {raw_id(5)} ", AT), purchase(raw_id(5), AT, 2)],
        [],
        [],
        statements,
    )
    ctx = make_context(channels={"shop": settings(tmp_path / "shop")["channels"]["shop"]})
    update_consent(ctx)
    ingest(ctx)
    keys = {key_of(raw_id(n)): n for n in (1, 2, 3, 4, 5)}
    customers = eligible_customers(ctx.tables, ctx.cache, CONTACT, ctx.started_at).collect()
    assert sorted(keys[row["customer_key"]] for row in customers) == [1, 5]
    assert [keys[row["customer_key"]] for row in ctx.tables.read("events").collect()] == [5, 5]


def test_a_consent_select_without_a_required_column_is_refused(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    write_inputs(tmp_path / "shop" / "raw", statements=[statement(raw_id(1), CONTACT, "opt_in", JAN)])
    select = "SELECT customer AS customer_id, purpose, state, recorded_at, source FROM consent_statements"
    with pytest.raises(ConfigError, match=r"consent\.select must yield .*; it lacks effective_at"):
        update_consent(make_context(consent={"select": select}))


def test_statements_without_a_source_are_inserted_once(
    make_context: Callable[..., RunContext], tmp_path: Path
) -> None:
    """NULL is compared like a value."""
    original_select = settings(tmp_path / "shop")["consent"]["select"]
    select = original_select.replace("recorded_at, source", "recorded_at, CAST(NULL AS STRING) AS source")
    assert select != original_select
    new_statements = []
    for number in (1, 2, 2):
        statements = [statement(raw_id(n), CONTACT, "opt_in", f"{JAN}Z") for n in range(number)]
        write_inputs(tmp_path / "shop" / "raw", statements=statements)
        ctx = make_context(consent={"select": select})
        new_statements.append(update_consent(ctx).statements_new)
    assert new_statements == [1, 1, 0]
