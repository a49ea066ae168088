"""Commits of other programs between ours are neither taken back nor misread."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from lam_spark.errors import DataQualityError
from lam_spark.runtime.context import RunContext
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.log import OwnCommit
from lam_spark.storage.tables.publish import roll_back
from lam_spark.storage.tables.store import Tables

USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"


class Events:
    """A table `events` with one customer a row, as this package and another program write it."""

    def __init__(self, ctx: RunContext) -> None:
        self.spark: SparkSession = ctx.spark
        self.tables: Tables = ctx.tables

    def rows(self, *customers: str) -> DataFrame:
        values = [(customer, f"event of {customer}") for customer in customers]
        frame = local_frame(self.spark, values, "customer_key STRING, event_id STRING")
        return frame.selectExpr(
            "*", "timestamp'2024-01-01' AS event_time", "event_time AS known_at", "'shop' AS source"
        )

    @property
    def sql_name(self) -> str:
        return f"delta.`{self.tables.path('events')}`"

    def sql(self, statement: str) -> None:
        """A statement of another program."""
        self.spark.sql(statement.format(self.sql_name))

    def erase(self, customer: str) -> None:
        self.sql(f"DELETE FROM {{}} WHERE customer_key = '{customer}'")

    @property
    def customers(self) -> list[str]:
        return sorted(row["customer_key"] for row in self.tables.read("events").collect())

    def die_while_publishing(self, *customers: str) -> None:
        """Leave what a killed run leaves: the marker, and one of its commits."""
        marker = self.tables.folder / "publication.json"
        marker.write_text(json.dumps({"events": self.tables.version("events"), "links": None}))
        self.tables.append(self.rows(*customers), "events")


@pytest.fixture
def events(make_context: Callable[..., RunContext]) -> Events:
    events = Events(make_context())
    events.tables.overwrite(events.rows("ann", "bob"), "events", metadata={"made": 1})
    return events


def test_an_erased_customer_does_not_return_when_a_publication_is_rolled_back(events: Events) -> None:
    events.die_while_publishing("cid")
    events.erase("ann")
    assert roll_back(events.tables) == ["events"]
    assert events.customers == ["bob"]
    assert events.tables.commit_metadata("events") == {"made": 1}
    assert roll_back(events.tables) == []


def test_maintenance_and_properties_stay_when_a_publication_is_rolled_back(events: Events) -> None:
    events.die_while_publishing("cid")
    events.sql("OPTIMIZE {}")
    events.sql("ALTER TABLE {} SET TBLPROPERTIES ('cost_center' = '7')")
    assert roll_back(events.tables) == ["events"]
    assert events.customers == ["ann", "bob"]
    properties = events.spark.sql(f"SHOW TBLPROPERTIES {events.sql_name}").collect()
    assert {row["key"]: row["value"] for row in properties}["cost_center"] == "7"


@pytest.mark.parametrize("is_vacuumed", [False, True])
def test_what_cannot_be_rolled_back_says_how_to_go_on(events: Events, is_vacuumed: bool) -> None:
    events.die_while_publishing("cid")
    if is_vacuumed:
        events.erase("ann")
        with session_settings(
            events.spark, {"spark.databricks.delta.retentionDurationCheck.enabled": "false"}
        ):
            DeltaTable.forPath(events.spark, events.tables.path("events")).vacuum(0)
    else:
        events.sql("UPDATE {} SET source = 'web' WHERE customer_key = 'ann'")
    reason = "VACUUM has removed its files" if is_vacuumed else "UPDATE of another program came after it"
    for _ in range(2):  # the next night too
        with pytest.raises(
            DataQualityError, match=rf"{reason}\. Make the tables again .* ingest\.rebuild=true"
        ):
            roll_back(events.tables)
    assert "ann" not in events.customers or not is_vacuumed


@pytest.mark.parametrize("metadata", ["erasure GDPR-1234", '{"ticket": 7}', "[1]", "null"])
def test_user_metadata_of_another_program_is_not_ours(events: Events, metadata: str) -> None:
    with session_settings(events.spark, {USER_METADATA: metadata}):
        events.erase("ann")
    assert events.tables.commit_metadata("events") == {"made": 1}
    assert events.customers == ["bob"]


def test_rows_that_another_program_wrote_have_no_metadata_of_ours(events: Events) -> None:
    events.sql("UPDATE {} SET source = 'web' WHERE customer_key = 'ann'")
    assert events.tables.commit_metadata("events") is None


def test_counts_are_those_of_our_commit_when_small_files_are_joined_after_it(events: Events) -> None:
    automatic = {
        "spark.databricks.delta.autoCompact.enabled": "true",
        "spark.databricks.delta.autoCompact.minNumFiles": "2",
    }
    with session_settings(events.spark, automatic):
        counts = [events.tables.append(events.rows(f"new {n}"), "events", {"made": n}) for n in range(2, 5)]
    assert counts == [1, 1, 1]
    log = events.tables.log("events")
    assert "OPTIMIZE" in {log.commit_info(version)["operation"] for version in log.versions()}
    assert events.tables.commit_metadata("events") == {"made": 4}


def test_only_our_user_metadata_is_read() -> None:
    own = OwnCommit("abc", {"made": 1})
    assert OwnCommit.from_text(own.to_text()) == own
    assert [OwnCommit.from_text(text) for text in (None, "", "x", '{"metadata": {}}', "3")] == [None] * 5
