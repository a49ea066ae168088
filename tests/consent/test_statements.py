"""What the ledger's source states is understood or refused, never ignored: spellings, purposes, ids, times, files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lam_spark.consent.eligibility import eligible_customers
from lam_spark.consent.stage import update_consent
from lam_spark.errors import ConfigError, ConsentError, LamSparkError
from lam_spark.events.stage import ingest
from lam_spark.runtime.context import RunContext
from tests.support.shop import STARTED_AT, key_of, purchase, raw_id, settings, statement, write_inputs

TRAINING, CONTACT = "model_training", "direct_marketing"
FULL_WIDTH = "".join(chr(ord(letter) + 0xFEE0) for letter in CONTACT)
JAN, FEB = "2023-01-01T00:00:00Z", "2023-02-01T00:00:00Z"
COLUMNS = "customer AS customer_id, purpose, state, effective_at, recorded_at, source"

Make = Callable[..., RunContext]
Row = dict[str, Any]


@pytest.fixture
def refresh(make_context: Make, tmp_path: Path) -> Callable[..., RunContext]:
    """Refreshes the ledger from these statements; keywords are keys of the section `consent`."""

    def build(statements: Iterable[Row], columns: str = COLUMNS, **consent: Any) -> RunContext:
        write_inputs(tmp_path / "shop" / "raw", statements=list(statements))
        select = f"SELECT {columns} FROM consent_statements"
        ctx = make_context(consent={"select": select, **consent})
        update_consent(ctx)
        return ctx

    return build


def opt_ins(count: int) -> list[Row]:
    return [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in range(count)]


def contacts(ctx: RunContext, count: int) -> set[int]:
    """Numbers of the customers who may be contacted."""
    numbers = {key_of(raw_id(n)): n for n in range(count)}
    rows = eligible_customers(ctx.tables, ctx.cache, CONTACT, ctx.started_at).collect()
    return {numbers[row["customer_key"]] for row in rows}


def test_a_withdrawal_in_another_spelling_counts(refresh: Callable[..., RunContext]) -> None:
    spellings = [
        statement(
            f"\ufeff{raw_id(1)}", CONTACT, "opt_out", FEB
        ),  # a file with a byte order mark was appended
        statement(
            f"{raw_id(2)}\x00\x00", CONTACT, "opt_out", FEB
        ),  # a column of fixed length, filled with NUL
        statement(f"{raw_id(3)}\u200b", CONTACT, "opt_out", FEB),  # copied from a web page: zero-width space
        statement(raw_id(4), "Direct_Marketing ", "opt_out", FEB),
        statement(raw_id(5), FULL_WIDTH, "opt_out", FEB),
        statement(raw_id(6), CONTACT, "OPT_OUT  ", FEB),
        statement(raw_id(7), CONTACT, "opted out", FEB),
        statement(raw_id(8), CONTACT, "opt_out", "2204-02-01T00:00:00Z"),  # a mistyped year
    ]
    ctx = refresh([*opt_ins(9), *spellings])
    assert contacts(ctx, 9) == {0}
    states = {row["state"] for row in ctx.tables.read("consent").select("state").collect()}
    assert states == {"opt_in", "opt_out", "opted out"}


def test_unknown_states_are_counted(make_context: Make, tmp_path: Path) -> None:
    statements = [*opt_ins(1), statement(raw_id(1), CONTACT, "maybe", JAN)]
    write_inputs(tmp_path / "shop" / "raw", statements=statements)
    result = update_consent(make_context())
    assert result.unknown_states == 1
    assert result.details == ("1 statements with an unknown state, which counts as a withdrawal",)


def test_purposes_are_mapped_to_one_or_several_or_none(refresh: Callable[..., RunContext]) -> None:
    purposes = {"Calls": CONTACT, "all": [TRAINING, CONTACT], "parcel locker": None}
    ctx = refresh(
        [
            *opt_ins(3),
            statement(raw_id(0), "calls", "opt_out", FEB),
            statement(raw_id(1), " ALL ", "opt_out", FEB),
            statement(raw_id(2), "Parcel Locker", "opt_out", FEB),
        ],
        purposes=purposes,
    )
    assert contacts(ctx, 3) == {2}
    rows = (
        ctx.tables.read("consent")
        .where(f"customer_key = '{key_of(raw_id(1))}' AND state = 'opt_out'")
        .collect()
    )
    assert sorted(row["purpose"] for row in rows) == [CONTACT, TRAINING]


def test_purposes_that_are_not_mapped_are_listed(refresh: Callable[..., RunContext], tmp_path: Path) -> None:
    more = [statement(raw_id(0), purpose, "opt_out", FEB) for purpose in ("all", "newsletter")]
    with pytest.raises(
        ConsentError,
        match="has 2 purposes that are not mapped: 'all', 'newsletter'; an opt-out may be among them",
    ):
        refresh([*opt_ins(1), *more])
    assert not (tmp_path / "shop" / "tables").exists()


def test_many_unknown_purposes_are_not_shown_because_they_may_be_ids(
    refresh: Callable[..., RunContext],
) -> None:
    swapped = [statement(CONTACT, raw_id(n), "opt_in", JAN) for n in range(30)]
    with pytest.raises(ConsentError, match="30 purposes that are not mapped; ") as raised:
        refresh(swapped)
    assert "RAW-CUSTOMER" not in str(raised.value)


# Statements in addition to an opt-in, keys of `consent`, columns of the select, and what the refusal says.
REFUSED: dict[str, tuple[list[Row], Row, str, type[LamSparkError], str]] = {
    "an id with a zero-width space inside": (
        [statement("RAW-\u200bCUSTOMER", CONTACT, "opt_out", FEB)],
        {},
        COLUMNS,
        ConsentError,
        "1 of 2 consent statements have a customer id with a control or format character inside",
    ),
    "a floating id": (
        [],
        {},
        COLUMNS.replace("customer AS", "CAST(1.5 AS DOUBLE) AS"),
        ConfigError,
        "consent.select yields customer_id as double: a floating number has no exact text",
    ),
    "a number as a time": (
        [],
        {},
        COLUMNS.replace("recorded_at,", "unix_seconds(recorded_at) AS recorded_at,"),
        ConfigError,
        r"yields recorded_at as bigint, which does not say its unit: write timestamp_seconds\(recorded_at\) or",
    ),
    "milliseconds read as seconds": (
        [],
        {},
        COLUMNS.replace("effective_at,", "timestamp_seconds(unix_millis(effective_at)) AS effective_at,"),
        ConsentError,
        r"have a time after the year 9999 \(milliseconds that were read as seconds\?",
    ),
    "seconds of a withdrawal read as milliseconds": (
        [statement(raw_id(1), CONTACT, "opt_out", FEB)],
        {},
        COLUMNS.replace("effective_at,", "timestamp_millis(unix_seconds(effective_at)) AS effective_at,"),
        ConsentError,
        "1 of 2 consent statements are withdrawals dated before 1980",
    ),
    "an opt-in of the future": (
        [statement(raw_id(1), CONTACT, "opt_in", JAN, "2024-01-02T09:06:00Z")],
        {},
        COLUMNS,
        ConsentError,
        r"1 of 2 consent statements are opt-ins recorded after this refresh at 2024-01-02 09:00 UTC .*consent\.clock",
    ),
    "a clock with a wrong pattern": (
        [],
        {"clock": {"zone": "Asia/Tokyo", "format": "b"}},
        COLUMNS,
        ConfigError,
        "consent.clock.format 'b'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_ledger_that_cannot_be_understood_is_refused(
    refresh: Callable[..., RunContext], tmp_path: Path, name: str
) -> None:
    more, consent, columns, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        refresh([*opt_ins(1), *more], columns, **consent)
    assert not (tmp_path / "shop" / "tables").exists()


def test_clocks_may_differ_by_five_minutes(refresh: Callable[..., RunContext]) -> None:
    at = STARTED_AT + dt.timedelta(minutes=4)
    assert contacts(refresh([statement(raw_id(0), CONTACT, "opt_in", JAN, at.isoformat())]), 1) == {0}


def test_a_source_with_one_time_uses_it_for_both(refresh: Callable[..., RunContext]) -> None:
    ctx = refresh(opt_ins(1), COLUMNS.replace("recorded_at, ", ""))
    (row,) = ctx.tables.read("consent").collect()
    assert row["effective_at"] == row["recorded_at"]


def test_local_times_are_read_by_the_clock_of_the_ledger(refresh: Callable[..., RunContext]) -> None:
    """Of a local time that occurs twice, a withdrawal takes the later instant."""
    texts = "to_timestamp_ntz(replace(source, 'T', ' '))"
    select = COLUMNS.replace("effective_at,", f"{texts} AS effective_at,").replace("recorded_at,", "")
    local = {0: "2023-07-01T12:00:00", 1: "2023-10-29T02:15:00", 2: "2023-10-29T02:15:00"}
    states = {0: "opt_in", 1: "opt_in", 2: "opt_out"}
    statements = [statement(raw_id(n), CONTACT, states[n], JAN) | {"source": at} for n, at in local.items()]
    ctx = refresh(statements, select, clock={"zone": "Europe/Berlin"})
    numbers = {key_of(raw_id(n)): n for n in local}
    instants = {
        numbers[row["customer_key"]]: row["at"]
        for row in ctx.tables.read("consent")
        .selectExpr("customer_key", "string(effective_at) AS at")
        .collect()
    }
    assert instants == {0: "2023-07-01 10:00:00", 1: "2023-10-29 00:15:00", 2: "2023-10-29 01:15:00"}


def test_a_text_with_an_offset_is_the_instant_that_it_says_under_a_clock(
    refresh: Callable[..., RunContext],
) -> None:
    select = COLUMNS.replace("effective_at,", "source AS effective_at,").replace("recorded_at,", "")
    statements = [
        statement(raw_id(n), CONTACT, "opt_in", JAN) | {"source": at}
        for n, at in enumerate(("2023-07-01T12:00:00+09:00", "2023-07-01 12:00:00"))
    ]
    ctx = refresh(statements, select, clock={"zone": "Europe/Berlin"})
    rows = ctx.tables.read("consent").selectExpr("string(effective_at) AS at").collect()
    assert sorted(row["at"] for row in rows) == ["2023-07-01 03:00:00", "2023-07-01 10:00:00"]


def write_ledger(path: Path, header: str, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


LEDGER_HEADER = "customer,purpose,state,effective_at,recorded_at,source"


@pytest.fixture
def from_folder(make_context: Make, tmp_path: Path) -> tuple[Path, Callable[[], RunContext]]:
    """A folder of the ledger's files, and what refreshes the ledger from it."""
    folder, raw = tmp_path / "ledger", tmp_path / "shop" / "raw"

    def build() -> RunContext:
        write_inputs(raw)
        inputs = settings(tmp_path / "shop")["inputs"]
        inputs["consent_statements"]["path"] = str(folder)
        ctx = make_context(inputs=inputs)
        update_consent(ctx)
        return ctx

    return folder, build


def test_a_file_with_its_columns_in_another_order_is_refused(
    from_folder: tuple[Path, Callable[[], RunContext]],
) -> None:
    folder, build = from_folder
    write_ledger(folder / "2023-01.csv", LEDGER_HEADER, f"{raw_id(0)},{CONTACT},opt_in,{JAN},{JAN},web")
    swapped = "customer,state,purpose,effective_at,recorded_at,source"
    write_ledger(folder / "2023-02.csv", swapped, f"{raw_id(0)},opt_out,{CONTACT},{FEB},{FEB},web")
    # Spark compares the header of one file before rows are read, and of each file while they are read.
    message = (
        r"expected the header customer,purpose,|the header of the CSV file \S+/2023-02\.csv does not give"
    )
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_byte_order_mark_before_a_header_is_no_part_of_it(
    from_folder: tuple[Path, Callable[[], RunContext]],
) -> None:
    folder, build = from_folder
    write_ledger(folder / "1.csv", f"\ufeff{LEDGER_HEADER}", f"{raw_id(0)},{CONTACT},opt_in,{JAN},{JAN},web")
    write_ledger(folder / "2.csv", f"\ufeff{LEDGER_HEADER}", f"{raw_id(0)},{CONTACT},opt_out,{FEB},{FEB},web")
    assert build().tables.read("consent").count() == 2


def test_ids_that_differ_only_in_case_are_counted_or_folded(make_context: Make, tmp_path: Path) -> None:
    statements = [statement(raw_id(n).lower(), CONTACT, "opt_in", JAN) for n in range(2)]
    bought_at = dt.datetime(2023, 6, 1, tzinfo=dt.UTC)
    purchases = [purchase(raw_id(n), bought_at, n) for n in range(2)]
    for root in ("shop", "folded"):
        write_inputs(tmp_path / root / "raw", purchases, [], [], statements)
    shop = {"channels": {"shop": settings(tmp_path / "shop")["channels"]["shop"]}}
    ctx = make_context(**shop)
    ingest(ctx)
    result = update_consent(ctx)
    assert result.ids_in_other_case == 2
    assert "2 ids differ from those of events only in case (identity.fold_case)" in result.details
    folded = make_context(**shop, identity={"fold_case": ["customer"]}, root=str(tmp_path / "folded"))
    ingest(folded)
    assert update_consent(folded).ids_in_other_case == 0
    keys = {row["customer_key"] for row in folded.tables.read("events").collect()}
    assert keys == {row["customer_key"] for row in folded.tables.read("consent").collect()}
