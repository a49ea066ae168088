"""The contact list: consent is read again from its source before delivery."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config.definition import scores_definition
from lam_spark.consent.stage import update_consent
from lam_spark.delivery.stage import deliver
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.runtime.context import RunContext
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.time import sql_literal
from tests.support.shop import STARTED_AT, key_of, raw_id, statement, write_inputs
from tests.support.tables import table_versions

CONTACT, JAN = "direct_marketing", "2023-01-01T00:00:00Z"
KEYS = {key_of(raw_id(n)): n for n in (1, 2, 3, 4)}
OPT_INS = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in KEYS.values()]
# Customer 3 opts out with an effect during the run; the opt-out counts from its recording.
LATER_OPT_OUT = statement(raw_id(3), CONTACT, "opt_out", "2024-01-02T19:00:00Z", JAN)
NEW_OPT_OUT = statement(raw_id(2), CONTACT, "opt_out", "2024-01-02T12:00:00Z")
# A text with quotes and a comma.
MAIL = '20" pizza, "free"'


def events_frame(ctx: RunContext) -> DataFrame:
    """One event of each customer, a day before `as_of`."""
    rows = [(key, f"event {number}") for key, number in KEYS.items()]
    events = local_frame(ctx.spark, rows, "customer_key STRING, event_id STRING")
    day_before = F.expr(f"{sql_literal(ctx.as_of)} - INTERVAL 1 DAY")
    return events.withColumns({"event_time": day_before, "known_at": day_before, "source": F.lit("web")})


@pytest.fixture
def ctx(make_context: Callable[..., RunContext], tmp_path: Path) -> RunContext:
    """A run with scores of four customers. Its clock is one day after its start."""
    write_inputs(tmp_path / "shop" / "raw", statements=[*OPT_INS, LATER_OPT_OUT])
    ctx = make_context()
    update_consent(ctx)
    ctx.tables.overwrite(events_frame(ctx), "events")
    rows = [(key, number / 10) for key, number in KEYS.items()]
    # Several files, as after a distributed write.
    scores = (
        local_frame(ctx.spark, rows, "customer_key STRING, probability DOUBLE")
        .repartition(3)
        .selectExpr(
            "*",
            "'response' AS target",
            "'mail' AS proposal_id",
            f"'{MAIL}' AS description",
            f"{sql_literal(ctx.as_of)} AS as_of",
            "'digest' AS model_digest",
            f"{ctx.tables.version('events')} AS events_version",
            f"'{json.dumps(scores_definition(ctx.config))}' AS definition",
            "array('shop') AS stale_channels",
            f"'{ctx.run_id}' AS run_id",
        )
    )
    ctx.tables.overwrite(scores, "scores")
    return dataclasses.replace(make_context(), clock=lambda: STARTED_AT + dt.timedelta(days=1))


def test_customers_who_opt_out_during_the_run_are_not_delivered(ctx: RunContext, tmp_path: Path) -> None:
    write_inputs(tmp_path / "shop" / "raw", statements=[*OPT_INS, LATER_OPT_OUT, NEW_OPT_OUT])
    result = deliver(ctx)
    assert result.counts == {
        "statements_in": 6,
        "statements_new": 1,
        "customers_scored": 4,
        "suppressed_by_consent": 2,
        "below_capacity": 0,
        "delivered": 2,
    }
    listed = ctx.tables.read("contact_list").orderBy("rank").collect()
    assert [KEYS[row["customer_key"]] for row in listed] == [4, 1]
    newest = ctx.tables.version("consent")
    assert {row["consent_version"] for row in listed} == {newest}
    # The audit records these versions.
    assert ctx.tables.read_versions["consent"] == newest == ctx.tables.written_versions["consent"]


def test_an_invalid_consent_source_delivers_no_list(ctx: RunContext, tmp_path: Path) -> None:
    before = table_versions(ctx)
    write_inputs(tmp_path / "shop" / "raw", statements=[*OPT_INS, NEW_OPT_OUT | {"customer": None}])
    with pytest.raises(ConsentError, match="1 of 5 consent statements lack a readable customer"):
        deliver(ctx)
    (tmp_path / "shop" / "raw" / "consent_statements.csv").unlink()
    with pytest.raises(ConfigError, match="consent_statements"):
        deliver(ctx)
    assert table_versions(ctx) == before


def test_an_empty_list_is_delivered(ctx: RunContext, tmp_path: Path) -> None:
    """All scored customers have opted out. The list of the previous day remains in the table."""
    deliver(ctx)
    previous_list = ctx.tables.read("contact_list").withColumn("as_of", F.expr("as_of - INTERVAL 1 DAY"))
    assert ctx.tables.overwrite(previous_list, "contact_list") == 3
    opt_outs = [statement(raw_id(n), CONTACT, "opt_out", "2024-01-02T12:00:00Z") for n in KEYS.values()]
    opt_in = statement(raw_id(9), CONTACT, "opt_in", JAN)
    statements = [*OPT_INS, LATER_OPT_OUT, *opt_outs, opt_in]
    write_inputs(tmp_path / "shop" / "raw", statements=statements)
    counts = deliver(ctx).counts
    assert (counts["suppressed_by_consent"], counts["below_capacity"], counts["delivered"]) == (4, 0, 0)
    assert ctx.tables.read("contact_list").count() == 3


def test_the_csv_file_matches_the_table(ctx: RunContext) -> None:
    with Path(deliver(ctx).path).open(newline="") as file:
        csv_rows = [
            (row["customer_key"], row["description"], row["proposal_necessity"])
            for row in csv.DictReader(file)
        ]
    listed = ctx.tables.read("contact_list").orderBy("rank").collect()
    assert [row["description"] for row in listed] == [MAIL] * 3
    assert csv_rows == [(row["customer_key"], MAIL, str(row["proposal_necessity"])) for row in listed]


def test_a_second_delivery_that_fails_leaves_no_list_of_its_day(ctx: RunContext, tmp_path: Path) -> None:
    """The list of another day stays, in the table and as a file."""
    first = deliver(ctx)
    other = Path(first.path).with_name("contact_list_2023-12-19.csv")
    other.write_text("rank\n")
    day_before = ctx.tables.read("contact_list").withColumn("as_of", F.expr("as_of - INTERVAL 1 DAY"))
    ctx.tables.append(day_before, "contact_list")
    write_inputs(tmp_path / "shop" / "raw", statements=[*OPT_INS, NEW_OPT_OUT | {"customer": None}])
    with pytest.raises(ConsentError):
        deliver(ctx)
    assert not Path(first.path).exists()
    assert other.exists()
    assert {row["as_of"] for row in ctx.tables.read("contact_list").collect()} == {
        row["as_of"] for row in day_before.collect()
    }
    manifest = json.loads(Path(first.manifest).read_text())
    assert (manifest["status"], manifest["run_id"]) == ("withdrawn", ctx.run_id)
    assert "sha256" not in manifest


def test_the_manifest_describes_the_list(ctx: RunContext) -> None:
    result = deliver(ctx)
    manifest = json.loads(Path(result.manifest).read_text())
    at = STARTED_AT + dt.timedelta(days=1)
    assert manifest == {
        "format": 1,
        "status": "valid",
        "file": "contact_list_2023-12-20.csv",
        "as_of": "2023-12-19T23:00:00+00:00",
        "run_id": ctx.run_id,
        "target": "response",
        "purpose": CONTACT,
        "consent_version": ctx.tables.version("consent"),
        "consent_checked_at": at.isoformat(),
        "valid_until": (at + dt.timedelta(hours=24)).isoformat(),
        "counts": dict(result.counts),
        "stale_channels": ["shop"],
        "sha256": hashlib.sha256(Path(result.path).read_bytes()).hexdigest(),
    }


def test_the_files_of_a_list_are_private(ctx: RunContext) -> None:
    result = deliver(ctx)
    folder = Path(result.path).parent
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "contact_list_2023-12-20.csv",
        "contact_list_2023-12-20.json",
    ]
    modes = {oct(path.stat().st_mode & 0o777) for path in (Path(result.path), Path(result.manifest))}
    assert (modes, oct(folder.stat().st_mode & 0o777)) == ({"0o600"}, "0o700")


def test_scores_of_reassigned_events_are_not_delivered(ctx: RunContext) -> None:
    """A late link assigns an event to another customer, who is not eligible."""
    events = ctx.tables.read("events").where("event_id = 'event 4'")
    reassigned = events.select("event_id", F.lit("another customer").alias("customer_key"))
    ctx.tables.update(reassigned, "events", "event_id", columns=["customer_key"])
    with pytest.raises(
        ConsentError,
        match=r"1 events that may be in the table 'scores' .* run the stages 'sequences' and 'score' again",
    ):
        deliver(ctx)
    assert not ctx.tables.exists("contact_list")
