"""The first and the last event, whether `as_of` lies within reach of them, and up to when events are known."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run, sql_literal

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def micros(instant: dt.datetime) -> int:
    """Microseconds since 1970 (UTC), exactly."""
    return (instant - _EPOCH) // dt.timedelta(microseconds=1)


def instant(microseconds: int) -> dt.datetime:
    """Inverse of `micros`."""
    return _EPOCH + dt.timedelta(microseconds=microseconds)


def bounds_of(events: DataFrame) -> tuple[int, int]:
    """First and last `event_time`, microseconds UTC.

    Raises:
        DataQualityError: there is no event.
    """
    row = events.agg(F.unix_micros(F.min("event_time")), F.unix_micros(F.max("event_time"))).first()
    if row is None or row[0] is None:
        raise DataQualityError("the table events is empty: run the stage 'ingest' over inputs that have rows")
    return int(row[0]), int(row[1])


def check_as_of(run: Run, first: int, last: int) -> None:
    """Hold `as_of` against the first and the last event.

    Raises:
        ConfigError: it is not after the first, or longer after the last than the configuration allows.
    """
    stale = dt.timedelta(days=run.config.quality.max_staleness_days)
    if not instant(first) < run.as_of <= instant(last) + stale:
        raise ConfigError(
            f"as_of {run.config.as_of} is outside the data: events run from {instant(first):%Y-%m-%d} to "
            f"{instant(last):%Y-%m-%d} (UTC), and as_of may be at most quality.max_staleness_days = "
            f"{stale.days} days after the last"
        )


def observed_until(run: Run, events: DataFrame, last: int) -> dt.datetime:
    """Up to when it is known what happened: `as_of`, or the end of the local day of the last event before it.

    `as_of` may lie some days after what was delivered; in these nothing is known to have happened or not. The last
    event counts whoever's and of whatever channel it is: the kind that a target waits for may be rare, and a quiet
    week of it is an answer. Events from `as_of` on do not count: a run of an earlier day finds what it found then.

    Args:
        run: its `as_of` lies after the first event (`check_as_of`).
        events: of everybody.
        last: of them, by `bounds_of`; only where it is not before `as_of` are they looked at once more.
    """
    if instant(last) >= run.as_of:
        _, last = bounds_of(events.where(F.col("event_time") < F.expr(sql_literal(run.as_of))))
    last_day = instant(last).astimezone(zoneinfo.ZoneInfo(run.config.time_zone)).date()
    return min(run.as_of, run.config.instant(last_day + dt.timedelta(days=1)))
