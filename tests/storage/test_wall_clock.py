"""Instants, local days and SQL of the configuration give the same results in a session of any time zone."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.config import InputConfig
from lam_spark.sources.inputs import Inputs, open_input
from lam_spark.storage.dataframes import local_frame, one_row
from lam_spark.storage.session_settings import CONFIGURED_SQL, configured_sql
from lam_spark.storage.time import instant, micros, sql_literal
from lam_spark.storage.wall_clock import local_day, plus_days, plus_local_days, start_of_local_day

BERLIN = "Europe/Berlin"


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def session(spark: SparkSession, request: pytest.FixtureRequest) -> SparkSession:
    """A session of its own, in this time zone and without ANSI mode."""
    session = spark.newSession()
    session.conf.set("spark.sql.session.timeZone", request.param)
    session.conf.set("spark.sql.ansi.enabled", "false")
    return session


@pytest.fixture
def kept_settings(session: SparkSession) -> Iterator[None]:
    """Checks that the session's settings are those from before the test."""
    before = {key: session.conf.get(key, None) for key in CONFIGURED_SQL}
    yield
    assert {key: session.conf.get(key, None) for key in CONFIGURED_SQL} == before


@pytest.mark.parametrize(
    "text", ["2023-03-26T01:30:00.123456", "0999-01-01T00:00:00", "9999-12-31T23:59:59.999999"]
)
def test_a_literal_names_its_zone(session: SparkSession, text: str) -> None:
    at = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
    assert one_row(session.range(1).select(F.unix_micros(F.expr(sql_literal(at)))))[0] == micros(at)


def test_an_instant_of_another_offset_is_written_in_utc() -> None:
    at = dt.datetime(2023, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo(BERLIN))
    assert sql_literal(at) == "TIMESTAMP '2023-07-01 10:00:00.000000Z'"


def test_local_days_follow_the_zone_of_the_data(session: SparkSession) -> None:
    """Around both clock changes, and at the last microsecond of a local day."""
    texts = [
        "2023-03-25T22:59:59.999999",
        "2023-03-25T23:00:00",
        "2023-10-29T22:59:59",
        "1969-12-31T22:59:59",
    ]
    instants = [dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC) for text in texts]
    frame = local_frame(session, [(at,) for at in instants], "at TIMESTAMP")
    day = local_day(F.col("at"), BERLIN)
    end = plus_local_days(F.col("at"), F.lit(28), BERLIN)
    rows = frame.select(
        day.cast("string"),
        F.unix_micros(start_of_local_day(day, BERLIN)),
        F.unix_micros(end),
        F.unix_micros(plus_days(F.col("at"), -2)),
    ).collect()
    zone = zoneinfo.ZoneInfo(BERLIN)
    for at, (day_text, start_micros, end_micros, before) in zip(instants, rows, strict=True):
        local = at.astimezone(zone)
        midnight = dt.datetime.combine(local.date(), dt.time(), zone)
        later = (local.replace(tzinfo=None) + dt.timedelta(days=28)).replace(tzinfo=zone)
        assert day_text == str(local.date())
        assert instant(start_micros) == midnight.astimezone(dt.UTC)
        assert instant(end_micros) == later.astimezone(dt.UTC)
        assert instant(before) == at - dt.timedelta(days=2)


@pytest.mark.usefixtures("kept_settings")
def test_configured_sql_reads_times_without_zone_as_utc(session: SparkSession) -> None:
    inputs = Inputs(session, {}, {"midnights": "SELECT DATE '2023-03-26' AS day"})
    select = "SELECT TIMESTAMP '2023-03-26 02:30:00' AS at, CAST(day AS TIMESTAMP) AS start FROM midnights"
    frame = inputs.select(select, "a key")
    expected = (dt.datetime(2023, 3, 26, 2, 30, tzinfo=dt.UTC), dt.datetime(2023, 3, 26, tzinfo=dt.UTC))
    row = one_row(frame.select(F.unix_micros("at"), F.unix_micros("start")))
    assert tuple(map(instant, row)) == expected


@pytest.mark.usefixtures("kept_settings")
def test_times_without_zone_in_files_and_folder_names_are_utc(session: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "visits" / "night=2023-03-26 00%3A00%3A00"
    folder.mkdir(parents=True)
    (folder / "1.csv").write_text("at\n2023-03-26 02:30:00\n")
    (tmp_path / "calls.jsonl").write_text('{"at": "2023-03-26 02:30:00"}\n')
    visits = InputConfig(format="csv", path=str(tmp_path / "visits"), columns="at TIMESTAMP, night TIMESTAMP")
    calls = InputConfig(format="json", path=str(tmp_path / "calls.jsonl"), columns="at TIMESTAMP")
    at, night = dt.datetime(2023, 3, 26, 2, 30, tzinfo=dt.UTC), dt.datetime(2023, 3, 26, tzinfo=dt.UTC)
    visit = one_row(
        open_input(session, "visits", visits).rows.select(F.unix_micros("at"), F.unix_micros("night"))
    )
    assert tuple(map(instant, visit)) == (at, night)
    call = one_row(open_input(session, "calls", calls).rows.select(F.unix_micros("at")))
    assert instant(call[0]) == at


@pytest.mark.usefixtures("kept_settings")
def test_wall_clock_columns_of_files_keep_their_digits(session: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "visits")
    session.sql("SELECT TIMESTAMP_NTZ '2023-03-26 02:30:00' AS at").write.format("delta").save(path)
    spec = InputConfig(format="delta", path=path, columns="at TIMESTAMP")
    rows = open_input(session, "visits", spec).rows
    assert instant(one_row(rows.select(F.unix_micros("at")))[0]) == dt.datetime(
        2023, 3, 26, 2, 30, tzinfo=dt.UTC
    )


@pytest.mark.usefixtures("kept_settings")
def test_configured_sql_reads_neither_files_nor_variables(session: SparkSession, tmp_path: Path) -> None:
    """Beyond the check of the configuration: the settings under which Spark analyses the SQL."""
    session.range(1).write.format("delta").save(str(tmp_path / "table"))
    (tmp_path / "table.csv").write_text("id\n1\n")
    with configured_sql(session):
        texts = session.sql("SELECT '${env:HOME}' AS text, \"a\" AS other")
        for path in (f"delta.`{tmp_path}/table`", f"csv.`{tmp_path}/table.csv`"):
            with pytest.raises(AnalysisException, match=r"TABLE_OR_VIEW_NOT_FOUND|UNSUPPORTED_DATASOURCE"):
                session.sql(f"SELECT * FROM {path}")
    assert one_row(texts)["text"] == "${env:HOME}"
