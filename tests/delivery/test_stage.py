"""The last question to the ledger: what its source says now, at the present instant, hours after the run began."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.consent import stage as ledger
from lam_spark.delivery import stage as deliver
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import SECRET, STARTED_AT, raw_id, statement, write_inputs
from tests.support.tables import table_versions

CONTACT, JAN = "direct_marketing", "2023-01-01T00:00:00Z"
KEYS = {keyed_pseudonym(SECRET.encode(), raw_id(n)): n for n in (1, 2, 3, 4)}
AGREED = [statement(raw_id(n), CONTACT, "opt_in", JAN) for n in KEYS.values()]
# Of customer 3: while the run, which takes a day, is at work.
LATER = statement(raw_id(3), CONTACT, "opt_out", "2024-01-02T19:00:00Z", JAN)
WITHDRAWN = statement(raw_id(2), CONTACT, "opt_out", "2024-01-02T12:00:00Z")
# As the world writes.
MAIL = '20" pizza, "free"'


def happened(run: Run) -> DataFrame:
    """An event of each customer, a day before the scores' date."""
    rows = [(key, f"event {number}") for key, number in KEYS.items()]
    events = local_frame(run.spark, rows, "customer_key STRING, event_id STRING")
    day_before = F.expr(f"{sql_literal(run.as_of)} - INTERVAL 1 DAY")
    return events.withColumns({"event_time": day_before, "source": F.lit("web")})


@pytest.fixture
def run(make_run: Callable[..., Run], tmp_path: Path) -> Run:
    """A run that has scored four customers and now stands a day after its start."""
    write_inputs(tmp_path / "shop" / "raw", statements=[*AGREED, LATER])
    run = make_run()
    ledger.run(run)
    run.tables.overwrite(happened(run), "events")
    rows = [(key, number / 10) for key, number in KEYS.items()]
    # In several files, as a job leaves them.
    scores = (
        local_frame(run.spark, rows, "customer_key STRING, calibrated DOUBLE")
        .repartition(3)
        .selectExpr(
            "*",
            "'response' AS target",
            "'mail' AS proposal_id",
            f"'{MAIL}' AS description",
            f"{sql_literal(run.as_of)} AS as_of",
            "'digest' AS model_digest",
            f"{run.tables.version('events')} AS events_version",
            f"'{run.run_id}' AS run_id",
        )
    )
    run.tables.overwrite(scores, "scores")
    return dataclasses.replace(make_run(), clock=lambda: STARTED_AT + dt.timedelta(days=1))


def test_who_withdrew_while_the_run_was_at_work_is_withheld(run: Run, tmp_path: Path) -> None:
    write_inputs(tmp_path / "shop" / "raw", statements=[*AGREED, LATER, WITHDRAWN])
    result = deliver.run(run)
    assert result.counts == {
        "statements_in": 6,
        "statements_new": 1,
        "customers_scored": 4,
        "suppressed_by_consent": 2,
        "below_capacity": 0,
        "delivered": 2,
    }
    listed = run.tables.read("contact_list").orderBy("rank").collect()
    assert [KEYS[row["customer_key"]] for row in listed] == [4, 1]
    newest = run.tables.version("consent")
    assert {row["consent_version"] for row in listed} == {newest}
    # What goes on record of the stage.
    assert run.tables.read_versions["consent"] == newest == run.tables.written_versions["consent"]


def test_a_source_that_is_refused_delivers_nobody(run: Run, tmp_path: Path) -> None:
    before = table_versions(run)
    write_inputs(tmp_path / "shop" / "raw", statements=[*AGREED, WITHDRAWN | {"customer": None}])
    with pytest.raises(ConsentError, match="1 of 5 consent statements lack a readable customer"):
        deliver.run(run)
    (tmp_path / "shop" / "raw" / "consent_statements.csv").unlink()
    with pytest.raises(ConfigError, match="consent_statements"):
        deliver.run(run)
    assert table_versions(run) == before


def test_a_list_of_nobody_is_empty_and_says_so(run: Run, tmp_path: Path) -> None:
    """All who were scored have withdrawn, somebody else agrees, and there is a list of the day before."""
    deliver.run(run)
    earlier = run.tables.read("contact_list").withColumn("as_of", F.expr("as_of - INTERVAL 1 DAY"))
    assert run.tables.overwrite(earlier, "contact_list") == 3
    out = [statement(raw_id(n), CONTACT, "opt_out", "2024-01-02T12:00:00Z") for n in KEYS.values()]
    other = statement(raw_id(9), CONTACT, "opt_in", JAN)
    write_inputs(tmp_path / "shop" / "raw", statements=[*AGREED, *out, other])
    counts = deliver.run(run).counts
    assert (counts["suppressed_by_consent"], counts["below_capacity"], counts["delivered"]) == (4, 0, 0)
    assert run.tables.read("contact_list").count() == 3


def test_the_file_is_read_as_the_table_is(run: Run) -> None:
    with Path(deliver.run(run).facts["path"]).open(newline="") as file:
        read = [
            (row["customer_key"], row["description"], row["proposal_necessity"])
            for row in csv.DictReader(file)
        ]
    listed = run.tables.read("contact_list").orderBy("rank").collect()
    assert [row["description"] for row in listed] == [MAIL] * 3
    assert read == [(row["customer_key"], MAIL, str(row["proposal_necessity"])) for row in listed]


def test_scores_of_events_that_now_belong_to_somebody_else_are_not_delivered(run: Run) -> None:
    """A late link says that it was another customer's phone, and that customer does not agree."""
    events = run.tables.read("events").where("event_id = 'event 4'")
    moved = events.select("event_id", F.lit("somebody else").alias("customer_key"))
    run.tables.amend(moved, "events", "event_id", update=["customer_key"])
    with pytest.raises(
        ConsentError,
        match=r"1 events that may be in the table 'scores' .* run the stages 'sequences' and 'score' again",
    ):
        deliver.run(run)
    assert not run.tables.exists("contact_list")
