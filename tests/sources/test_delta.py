"""A raw input that is a Delta table: a night takes what came since the version before, whatever the table tells."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError
from lam_spark.events import stage as ingest
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import STARTED_AT, raw_id, run_builder, settings

Night = Callable[[], dict[str, int]]
FEED = "delta.enableChangeDataFeed"


class Source:
    """The shop's table of deeds."""

    def __init__(self, spark: SparkSession, path: Path) -> None:
        self.spark, self.path = spark, path

    def add(self, *numbers: int) -> None:
        rows = [(raw_id(number % 3), number) for number in numbers]
        at = "timestamp'2023-03-01 12:00:00' + make_dt_interval(0, number)"
        frame = local_frame(self.spark, rows, "who STRING, number INT").selectExpr("*", f"{at} AS at")
        frame.write.format("delta").mode("append").save(str(self.path))

    def sql(self, statement: str) -> None:
        self.spark.sql(statement.format(table=f"delta.`{self.path}`"))

    def tell_changes(self) -> None:
        self.sql(f"ALTER TABLE {{table}} SET TBLPROPERTIES ({FEED} = true)")


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> Source:
    made = Source(spark, tmp_path / "deeds")
    made.add(1, 2, 3)
    return made


@pytest.fixture
def night(spark: SparkSession, tmp_path: Path, source: Source) -> Night:
    """Takes in what is new; returns the counts of rows."""
    root = tmp_path / "shop"
    deeds = {"format": "delta", "path": str(source.path), "columns": "who STRING, number INT, at TIMESTAMP"}
    select = (
        "SELECT who AS customer_id, at AS event_time, number AS event_key, 'purchase' AS action FROM deeds"
    )
    sections = {
        "inputs": settings(root)["inputs"] | {"deeds": deeds},
        "channels": {"shop": {"grain": "deeds", "select": select}},
        "quality": {"max_staleness_days": 400},
    }
    build = run_builder(spark, root)
    nights = iter(range(99))

    def take() -> dict[str, int]:
        run = build(started_at=STARTED_AT + dt.timedelta(days=next(nights)), **sections)
        counts = ingest.run(run).counts
        return {name: counts[name] for name in ("rows_in", "events", "duplicates")}

    return take


def test_of_a_table_that_tells_its_changes_only_they_are_read(source: Source, night: Night) -> None:
    source.tell_changes()
    source.add(4)
    assert night() == {"rows_in": 4, "events": 4, "duplicates": 0}
    assert night() == {"rows_in": 0, "events": 0, "duplicates": 0}
    source.add(5, 6)
    source.sql("DELETE FROM {table} WHERE number = 5")
    source.sql("UPDATE {table} SET at = at + INTERVAL 1 DAY WHERE number = 6")  # another event
    assert night() == {"rows_in": 3, "events": 3, "duplicates": 0}


def test_a_table_that_begins_to_tell_its_changes_is_read_whole_once_more(
    source: Source, night: Night
) -> None:
    assert night() == {"rows_in": 3, "events": 3, "duplicates": 0}
    source.add(4)  # nobody tells of this one
    source.tell_changes()
    source.add(5)
    assert night() == {"rows_in": 5, "events": 2, "duplicates": 3}
    source.add(6)
    assert night() == {"rows_in": 1, "events": 1, "duplicates": 0}


def test_a_table_that_was_made_anew_is_refused(source: Source, night: Night) -> None:
    source.add(4)
    assert night()["events"] == 4
    shutil.rmtree(source.path)
    source.add(9)
    with pytest.raises(
        ConfigError, match=r"is at version 0, 'shop' has taken version 1: the table was made anew"
    ):
        night()
