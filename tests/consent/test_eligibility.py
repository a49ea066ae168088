"""Consent: default deny, the newest effective statement decides, and the ledger only grows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from lam_spark.consent import stage as ledger
from lam_spark.consent.eligibility import count_standings, eligible, standing
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.events import stage as ingest
from lam_spark.identity.pseudonyms import keyed_pseudonym, resolve
from lam_spark.runtime.context import Run
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import SECRET, purchase, raw_id, settings, statement, write_inputs
from tests.support.tables import ledger_frame, publish, table_versions

CONTACT = "direct_marketing"
NO_BREAK_SPACE = "\u00a0"
JAN, FEB, MAR, LATER = (f"2023-{month:02d}-01T00:00:00" for month in (1, 2, 3, 9))
AT = dt.datetime(2023, 6, 1, tzinfo=dt.UTC)

# Customer -> statements (state, effective, recorded), and where they stand.
CASES: dict[str, tuple[list[tuple[str | None, str, str]], str | None]] = {
    "in": ([("opt_in", JAN, JAN)], "opt_in"),
    "out": ([("opt_out", JAN, JAN)], "opt_out"),
    "in then out": ([("opt_in", JAN, JAN), ("opt_out", FEB, FEB)], "opt_out"),
    "in, out and back": ([("opt_in", JAN, JAN), ("opt_out", FEB, FEB), ("opt_in", MAR, MAR)], "opt_in"),
    "out in the future": ([("opt_in", JAN, JAN), ("opt_out", LATER, FEB)], "opt_in"),
    "in in the future": ([("opt_in", LATER, JAN)], None),
    "effective at the instant": ([("opt_in", JAN, JAN), ("opt_out", "2023-06-01T00:00:00", FEB)], "opt_out"),
    "corrected": ([("opt_in", JAN, JAN), ("opt_out", JAN, FEB)], "opt_out"),
    "a tie that disagrees": ([("opt_in", JAN, JAN), ("opt_out", JAN, JAN)], "unclear"),
    "a tie that agrees": ([("opt_in", JAN, JAN), ("opt_in", JAN, JAN)], "opt_in"),
    "unknown state": ([("OPT_IN", JAN, JAN)], "unclear"),
    "null state": ([(None, JAN, JAN)], "unclear"),
    "a tie with null": ([("opt_in", JAN, JAN), (None, JAN, JAN)], "unclear"),
    "unclear, then clear": ([(None, JAN, JAN), ("opt_in", FEB, FEB)], "opt_in"),
}


def test_where_each_customer_stands(spark: SparkSession) -> None:
    rows = [
        (name, CONTACT, state, effective, recorded)
        for name, (statements, _) in CASES.items()
        for state, effective, recorded in statements
    ]
    rows.append(("another purpose", "model_training", "opt_in", JAN, JAN))
    stands = standing(ledger_frame(spark, rows), AT).collect()
    found = {row["customer_key"]: row["standing"] for row in stands if row["purpose"] == CONTACT}
    assert found == {name: wanted for name, (_, wanted) in CASES.items() if wanted}
    assert [row["customer_key"] for row in stands if row["purpose"] != CONTACT] == ["another purpose"]
    assert len(stands) == len(found) + 1


def test_an_opt_out_counts_from_its_fraction_of_a_second(spark: SparkSession) -> None:
    frame = ledger_frame(
        spark,
        [("one", CONTACT, "opt_in", JAN, JAN), ("one", CONTACT, "opt_out", "2023-06-01T00:00:00.500", MAR)],
    )
    before, after = AT + dt.timedelta(seconds=0.4), AT + dt.timedelta(seconds=0.9)
    assert [row["standing"] for row in standing(frame, before).collect()] == ["opt_in"]
    assert [row["standing"] for row in standing(frame, after).collect()] == ["opt_out"]


def test_eligible_is_who_opted_in_to_that_purpose(make_run: Callable[..., Run]) -> None:
    run = make_run()
    publish(
        run,
        [],
        {
            "both": ("opt_in", "opt_in"),
            "training": ("opt_in", None),
            "contact": ("opt_out", "opt_in"),
            "none": ("opt_out", "opt_out"),
        },
    )

    def keys(purpose: str) -> list[str]:
        return sorted(row["customer_key"] for row in eligible(run, purpose).collect())

    assert keys("model_training") == ["both", "training"]
    assert keys(CONTACT) == ["both", "contact"]
    assert run.tables.read_versions["consent"] == run.tables.version("consent")
    with pytest.raises(ConsentError, match="no customer is eligible for the purpose 'profiling'") as caught:
        eligible(run, "profiling")
    assert caught.value.exit_code == 4
    with pytest.raises(ConsentError, match="no customer is eligible"):
        eligible(run, CONTACT, at=dt.datetime(2022, 12, 31, tzinfo=dt.UTC))
    known = local_frame(run.spark, [("both",), ("none",), ("stranger",)], "customer_key STRING")
    everybody = count_standings(run, (CONTACT, "model_training"), known)
    assert everybody[CONTACT] == {"opted_in": 1, "opted_out": 1, "unclear": 0, "never_asked": 1}
    assert everybody["model_training"] == everybody[CONTACT]


def test_the_ledger_only_grows_and_a_rerun_adds_nothing(make_run: Callable[..., Run], tmp_path: Path) -> None:
    first = [
        statement(raw_id(1), CONTACT, "opt_in", JAN),
        statement(raw_id(1), CONTACT, "opt_in", JAN),
        statement(raw_id(2), CONTACT, None, JAN),
    ]
    raw = tmp_path / "shop" / "raw"
    write_inputs(raw, statements=first)
    run = make_run()
    assert ledger.run(run).counts == {"statements_in": 3, "statements_new": 2}
    assert ledger.run(run).counts == {"statements_in": 3, "statements_new": 0}
    # The source forgets what it said and says something new: what was stated stays.
    write_inputs(raw, statements=[statement(raw_id(1), CONTACT, "opt_out", FEB)])
    assert ledger.run(run).counts == {"statements_in": 1, "statements_new": 1}
    keys = {keyed_pseudonym(SECRET.encode(), raw_id(n)): n for n in (1, 2)}
    kept = [(keys[row["customer_key"]], row["state"]) for row in run.tables.read("consent").collect()]
    assert sorted(kept, key=str) == [(1, "opt_in"), (1, "opt_out"), (2, None)]


def test_what_is_checked_is_what_is_taken(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live source states more, and worse, between the check and the insertion: the next night's check sees it."""
    good = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in (1, 2)]
    raw = tmp_path / "shop" / "raw"
    write_inputs(raw, statements=good)

    def meanwhile(run: Run, stated: DataFrame) -> DataFrame:
        write_inputs(raw, statements=[good[0] | {"effective_at": None}, good[1] | {"effective_at": None}])
        return resolve(run, stated)

    monkeypatch.setattr(ledger, "resolve", meanwhile)
    run = make_run()
    assert ledger.run(run).counts == {"statements_in": 2, "statements_new": 2}
    assert run.tables.read("consent").where("effective_at IS NULL").isEmpty()
    with pytest.raises(ConsentError, match="2 of 2 consent statements lack"):
        ledger.run(run)


def test_a_ledger_without_statements_is_refused(make_run: Callable[..., Run], tmp_path: Path) -> None:
    write_inputs(tmp_path / "shop" / "raw")
    with pytest.raises(ConsentError, match="the consent ledger has no statements"):
        ledger.run(make_run())
    assert not (tmp_path / "shop" / "tables").exists()


def test_one_incomplete_statement_refuses_all(make_run: Callable[..., Run], tmp_path: Path) -> None:
    good = statement(raw_id(1), CONTACT, "opt_in", JAN)
    bad = [good | {"customer": text} for text in (None, "  ", " \t", NO_BREAK_SPACE, "RAW-\ufffd")]
    bad += [good | {"purpose": None}, good | {"purpose": " "}, good | {"effective_at": None}]
    write_inputs(tmp_path / "shop" / "raw", statements=[good, *bad])
    with pytest.raises(
        ConsentError, match="8 of 9 consent statements lack a readable customer, purpose or time"
    ):
        ledger.run(make_run())
    assert not (tmp_path / "shop" / "tables").exists()


def test_white_space_around_an_id_hides_no_opt_out(make_run: Callable[..., Run], tmp_path: Path) -> None:
    padded = [f" {raw_id(2)}", f"{raw_id(3)}\t", f"{NO_BREAK_SPACE}{raw_id(4)} "]
    statements = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in (1, 2, 3, 4)]
    statements += [statement(customer, CONTACT, "opt_out", FEB) for customer in padded]
    # Padded everywhere, as a column of fixed width is: the events' customer is the same one.
    statements += [statement(f"{raw_id(5)}  ", f" {CONTACT} ", "opt_in", JAN)]
    write_inputs(
        tmp_path / "shop" / "raw",
        [purchase(f"  {raw_id(5)} ", AT), purchase(raw_id(5), AT, 2)],
        [],
        [],
        statements,
    )
    run = make_run(channels={"shop": settings(tmp_path / "shop")["channels"]["shop"]})
    ledger.run(run)
    ingest.run(run)
    keys = {keyed_pseudonym(SECRET.encode(), raw_id(n)): n for n in (1, 2, 3, 4, 5)}
    assert sorted(keys[row["customer_key"]] for row in eligible(run, CONTACT).collect()) == [1, 5]
    assert [keys[row["customer_key"]] for row in run.tables.read("events").collect()] == [5, 5]


def test_pseudonyms_of_ids_with_white_space_are_refused(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """Of an earlier version: events stand under them, whose customer may have opted out under the bare id."""
    write_inputs(tmp_path / "shop" / "raw", statements=[statement(raw_id(1), CONTACT, "opt_in", JAN)])
    run = make_run()
    ledger.run(run)
    known = run.tables.read("identity").limit(1)
    run.tables.append(
        known.selectExpr("id_kind", "raw_id || ' ' AS raw_id", "id_key", "key_check"), "identity"
    )
    before = table_versions(run)
    with pytest.raises(
        ConfigError, match=r"expected ids without white space around them, .* holds 1 with it"
    ):
        ledger.run(run)
    assert table_versions(run) == before


def test_a_ledger_select_that_lacks_a_column(make_run: Callable[..., Run], tmp_path: Path) -> None:
    write_inputs(tmp_path / "shop" / "raw", statements=[statement(raw_id(1), CONTACT, "opt_in", JAN)])
    select = "SELECT customer AS customer_id, purpose, state, effective_at, source FROM consent_statements"
    with pytest.raises(ConfigError, match=r"consent\.select must yield .*; it lacks recorded_at"):
        ledger.run(make_run(consent={"select": select}))


def test_statements_without_a_source_are_taken_once(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """A missing part of a statement is like any other: a night without news writes none and counts none."""
    known = settings(tmp_path / "shop")["consent"]["select"]
    select = known.replace("recorded_at, source", "recorded_at, CAST(NULL AS STRING) AS source")
    assert select != known
    stated, new, versions = [], [], []
    for number in (1, 2, 2):
        stated = [statement(raw_id(n), CONTACT, "opt_in", f"{JAN}Z") for n in range(number)]
        write_inputs(tmp_path / "shop" / "raw", statements=stated)
        run = make_run(consent={"select": select})
        new.append(ledger.run(run).counts["statements_new"])
        versions.append(run.tables.version("consent"))
    assert new == [1, 1, 0]
    assert versions[1] == versions[2]
