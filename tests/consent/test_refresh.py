"""Stages that read customers use the ledger as its source is now, or stop."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lam_spark.consent.record import RefreshRecord, last_refresh
from lam_spark.consent.refresh import require_current_ledger, source_fingerprint
from lam_spark.consent.stage import update_consent
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.events.stage import ingest
from lam_spark.runtime.context import RunContext
from lam_spark.runtime.runner import run_stages
from lam_spark.stages import STAGES
from tests.support.shop import (
    PURPOSES,
    STARTED_AT,
    key_of,
    purchase,
    raw_id,
    settings,
    statement,
    write_inputs,
)

JAN, FEB = "2023-01-01T00:00:00Z", "2023-02-01T00:00:00Z"
OPT_INS = [statement(raw_id(n), purpose, "opt_in", JAN) for n in range(3) for purpose in PURPOSES]
OPT_OUT = [statement(raw_id(2), purpose, "opt_out", FEB) for purpose in PURPOSES]
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)


def test_every_stage_that_asks_for_consent_is_checked_by_the_runner() -> None:
    """`consent` and `deliver` read the ledger's source themselves."""
    readers = {name for name, stage in STAGES.items() if "`consent`" in stage.reads}
    assert readers == {name for name, stage in STAGES.items() if stage.reads_customers}
    assert {name for name, stage in STAGES.items() if "the ledger's source" in stage.reads} == {
        "consent",
        "deliver",
    }


@pytest.fixture
def ctx(make_context: Callable[..., RunContext], tmp_path: Path) -> RunContext:
    """A workspace whose ledger was refreshed at `STARTED_AT`."""
    write_inputs(tmp_path / "shop" / "raw", statements=OPT_INS)
    ctx = make_context()
    update_consent(ctx)
    return ctx


def require(ctx: RunContext, after: dt.timedelta) -> None:
    """The check of a stage that runs so long after the refresh."""
    require_current_ledger(ctx.tables, ctx.cache, ctx.config, lambda: STARTED_AT + after, ctx.log)


def change_source(ctx: RunContext) -> None:
    write_inputs(ctx.config.workspace / "raw", statements=[*OPT_INS, *OPT_OUT])


def test_with_the_secret_a_changed_source_is_read_first(ctx: RunContext) -> None:
    before = ctx.tables.version("consent")
    require(ctx, 2 * HOUR)
    assert ctx.tables.version("consent") == before
    change_source(ctx)
    require(ctx, 2 * HOUR)
    assert ctx.tables.read("consent").where("state = 'opt_out'").count() == 2


def test_a_refresh_is_recorded_even_if_nothing_is_new(ctx: RunContext) -> None:
    first = last_refresh(ctx.tables)
    update_consent(dataclasses.replace(ctx, clock=lambda: STARTED_AT + HOUR))
    second = last_refresh(ctx.tables)
    assert first
    assert second == dataclasses.replace(first, refreshed_at=(STARTED_AT + HOUR).isoformat())
    assert ctx.tables.log("consent").has_same_rows_since(0)
    assert set(second.fingerprint) == {"consent_statements", "configuration"}


def test_without_the_secret_an_old_or_changed_ledger_stops_the_stage(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAM_SPARK_SECRET")
    require(ctx, 36 * HOUR)
    with pytest.raises(
        ConsentError, match=r"last refreshed at 2024-01-02 09:00 \(UTC\), more than .* = 36 ago"
    ):
        require(ctx, 36 * HOUR + MINUTE)
    change_source(ctx)
    require(ctx, 60 * MINUTE)
    with pytest.raises(
        ConsentError, match=r"source changed since its last refresh .* = 60 ago: run the stage"
    ):
        require(ctx, 61 * MINUTE)


def test_without_the_secret_a_source_that_cannot_be_reached_counts_by_its_age(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAM_SPARK_SECRET")
    (ctx.config.workspace / "raw" / "consent_statements.csv").unlink()
    require(ctx, 35 * HOUR)
    with pytest.raises(ConfigError, match="found nothing"):
        source_fingerprint(ctx.spark, ctx.config)


def test_a_ledger_that_another_program_changed_is_not_used_without_the_secret(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.tables.append(ctx.tables.read("consent").limit(1), "consent")
    monkeypatch.delenv("LAM_SPARK_SECRET")
    with pytest.raises(ConsentError, match="does not record when its source was last read"):
        require(ctx, MINUTE)


def test_a_source_whose_changes_cannot_be_noticed_is_never_as_it_was() -> None:
    record = RefreshRecord(STARTED_AT.isoformat(), {"crm": None}, 1, None, 0, 0)
    assert not record.is_of({"crm": None})
    assert dataclasses.replace(record, fingerprint={"crm": "1:2"}).is_of({"crm": "1:2"})
    assert RefreshRecord.from_metadata({"format": 0}) is None


def test_a_stage_alone_obeys_a_withdrawal_in_the_source(
    make_context: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Customers withdraw between two stages that are run alone; then the secret is not there."""
    root = tmp_path / "shop"
    bought = [
        purchase(raw_id(n), dt.datetime(2023, month, 16, tzinfo=dt.UTC), 12 * n + month)
        for n in range(3)
        for month in range(1, 13)
    ]
    write_inputs(root / "raw", bought, [], [], OPT_INS)
    ctx = make_context(channels={"shop": settings(root)["channels"]["shop"]})
    ingest(ctx)
    update_consent(ctx)
    change_source(ctx)

    def run(hours: int) -> None:
        clock = STARTED_AT + hours * HOUR
        run_stages(ctx.config, ["sequences"], session=ctx.spark, clock=lambda: clock)

    run(hours=2)
    keys = {row["customer_key"] for row in ctx.tables.read("sequences").collect()}
    assert keys == {key_of(raw_id(n)) for n in (0, 1)}
    monkeypatch.delenv("LAM_SPARK_SECRET")
    write_inputs(root / "raw", bought, [], [], [*OPT_INS, *OPT_OUT, OPT_OUT[0] | {"customer": raw_id(1)}])
    with pytest.raises(ConsentError, match="source changed since its last refresh"):
        run(hours=5)
    last = ctx.tables.read("audit").orderBy("sequence", ascending=False).first()
    assert last
    assert (last["stage"], last["status"]) == ("sequences", "failed")
    assert "ConsentError" in json.loads(last["entry"])["error"]
