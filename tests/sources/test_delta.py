"""A Delta table as an input: a run ingests what came after the last version, with or without a change feed."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError
from lam_spark.events.stage import ingest
from lam_spark.sources.fingerprint import input_fingerprint
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import STARTED_AT, context_builder, raw_id, settings

Night = Callable[[], dict[str, int]]
CHANGE_FEED = "delta.enableChangeDataFeed"


class Source:
    """A Delta table of purchases."""

    def __init__(self, spark: SparkSession, path: Path) -> None:
        self.spark, self.path = spark, path

    def add(self, *numbers: int) -> None:
        rows = [(raw_id(number % 3), number) for number in numbers]
        at = "timestamp'2023-03-01 12:00:00' + make_dt_interval(0, number)"
        frame = local_frame(self.spark, rows, "who STRING, number INT").selectExpr("*", f"{at} AS at")
        frame.write.format("delta").mode("append").save(str(self.path))

    def sql(self, statement: str) -> None:
        self.spark.sql(statement.format(table=f"delta.`{self.path}`"))

    def enable_change_feed(self) -> None:
        self.sql(f"ALTER TABLE {{table}} SET TBLPROPERTIES ({CHANGE_FEED} = true)")


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> Source:
    table = Source(spark, tmp_path / "deeds")
    table.add(1, 2, 3)
    return table


@pytest.fixture
def night(spark: SparkSession, tmp_path: Path, source: Source) -> Night:
    """Ingests new rows; returns counts of rows."""
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
    build = context_builder(spark, root)
    nights = iter(range(99))

    def run() -> dict[str, int]:
        ctx = build(started_at=STARTED_AT + dt.timedelta(days=next(nights)), **sections)
        counts = ingest(ctx).counts
        return {name: counts[name] for name in ("rows_in", "events", "duplicates")}

    return run


def test_with_a_change_feed_only_changes_are_read(source: Source, night: Night) -> None:
    source.enable_change_feed()
    source.add(4)
    assert night() == {"rows_in": 4, "events": 4, "duplicates": 0}
    assert night() == {"rows_in": 0, "events": 0, "duplicates": 0}
    source.add(5, 6)
    source.sql("DELETE FROM {table} WHERE number = 5")
    source.sql("UPDATE {table} SET at = at + INTERVAL 1 DAY WHERE number = 6")  # another event
    assert night() == {"rows_in": 3, "events": 3, "duplicates": 0}


def test_a_table_whose_change_feed_starts_later_is_read_whole_once_more(source: Source, night: Night) -> None:
    assert night() == {"rows_in": 3, "events": 3, "duplicates": 0}
    source.add(4)  # in no change feed
    source.enable_change_feed()
    source.add(5)
    assert night() == {"rows_in": 5, "events": 2, "duplicates": 3}
    source.add(6)
    assert night() == {"rows_in": 1, "events": 1, "duplicates": 0}


def test_a_replaced_table_is_refused(source: Source, night: Night) -> None:
    source.add(4)
    assert night()["events"] == 4
    shutil.rmtree(source.path)
    source.add(9)
    with pytest.raises(ConfigError) as caught:
        night()
    assert str(caught.value) == (
        f"inputs.deeds: {source.path} is at version 0, but 'shop' has ingested version 1: the table was replaced. "
        "Run once with --set ingest.rebuild=true"
    )


def test_the_fingerprint_changes_with_the_version_and_with_the_table(source: Source) -> None:
    spec = InputConfig(format="delta", path=str(source.path), columns="number INT")
    prints = [input_fingerprint(source.spark, "deeds", spec)]
    assert input_fingerprint(source.spark, "deeds", spec) == prints[0]
    source.add(4)
    prints.append(input_fingerprint(source.spark, "deeds", spec))
    shutil.rmtree(source.path)
    source.add(1, 2, 3)
    prints.append(input_fingerprint(source.spark, "deeds", spec))
    assert len(set(prints)) == 3
