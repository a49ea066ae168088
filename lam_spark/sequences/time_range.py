"""First and last event, and the check of `as_of` against them."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import QualityConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.time import instant


def time_range(events: DataFrame) -> tuple[int, int]:
    """First and last `event_time`, microseconds UTC.

    Raises:
        DataQualityError: There is no event.
    """
    first, last = one_row(events.agg(F.unix_micros(F.min("event_time")), F.unix_micros(F.max("event_time"))))
    if first is None:
        raise DataQualityError("the table events is empty: run the stage 'ingest' over inputs that have rows")
    return int(first), int(last)


def require_as_of_within(
    as_of: dt.datetime, first: int, last: int, quality: QualityConfig, time_zone: str
) -> None:
    """Check `as_of` against the first and the last event.

    Args:
        as_of: Instant before which everything is visible.
        first: First event, microseconds UTC.
        last: Last event, microseconds UTC.
        quality: Section `quality` of the configuration.
        time_zone: IANA zone of the data set, for the message.

    Raises:
        ConfigError: `as_of` is not after the first event, or longer after the last one than allowed.
    """
    staleness = dt.timedelta(days=quality.max_staleness_days)
    if not instant(first) < as_of <= instant(last) + staleness:
        raise ConfigError(
            f"as_of {_local_day(as_of, time_zone)} is outside the data: events run from {instant(first):%Y-%m-%d} to "
            f"{instant(last):%Y-%m-%d} (UTC), and as_of may be at most quality.max_staleness_days = "
            f"{staleness.days} days after the last"
        )


def _local_day(at: dt.datetime, time_zone: str) -> dt.date:
    return at.astimezone(zoneinfo.ZoneInfo(time_zone)).date()
