"""Hours of the week in local time."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.sequences.entries import hour_of_week, local_hour_of_week
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import ZONE
from tests.support.tables import utc

# On Sunday, 26 March 2023 at 01:00 UTC, clocks in Berlin went from 02:00 to 03:00; on 29 October back again.
HOURS = {
    "2023-03-25 22:59:59": 6 * 24 + 23,
    "2023-03-25 23:00:00": 0,
    "2023-03-26 00:59:59": 1,
    "2023-03-26 01:00:00": 3,
    "2023-03-26 22:00:00": 24,
    "2023-10-29 00:30:00": 2,
    "2023-10-29 01:30:00": 2,
    "2023-10-29 02:00:00": 3,
}


def test_hours_of_the_week_are_local_across_a_clock_change(spark: SparkSession) -> None:
    frame = local_frame(spark, [(at,) for at in HOURS], "at STRING")
    local = F.from_utc_timestamp(F.col("at").cast("timestamp"), ZONE)
    rows = frame.select("at", hour_of_week(local).alias("hour")).collect()
    assert {row["at"]: row["hour"] for row in rows} == HOURS


def test_the_hour_of_one_instant_needs_no_spark() -> None:
    assert {at: local_hour_of_week(utc(at), ZONE) for at in HOURS} == HOURS
