"""Events as the entries of a sequence: times, token ids and numbers, no text."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sequences.vocabulary import encode

# The hour of the week of 1970-01-01 00:00, a Thursday, counted from Sunday 00:00.
_FIRST_HOUR = 4 * 24
_HOURS = 168


def entry_types(config: Config) -> dict[str, str]:
    """Column -> Spark type of an entry. Entries of a customer are ordered by these columns from the left.

    `event_order` stands for `event_id`, as in `events`: the order is that of (event_time, event_id).
    """
    return {
        "event_time": "bigint",  # microseconds UTC
        "event_order": "bigint",
        "hour_of_week": "int",
        **dict.fromkeys(config.categorical, "int"),
        **dict.fromkeys(config.numeric, "float"),
    }


def entries_of(events: DataFrame, vocabulary: DataFrame, config: Config, *carried: str) -> DataFrame:
    """The columns of `entry_types` and those `carried` along; grain: an event."""
    encoded = encode(events, vocabulary, config.categorical)
    local = F.from_utc_timestamp("event_time", config.time_zone)
    return encoded.select(
        *carried,
        F.unix_micros("event_time").alias("event_time"),
        "event_order",
        hour_of_week(local).alias("hour_of_week"),
        *config.categorical,
        *(F.col(name).cast("float").alias(name) for name in config.numeric),
    )


def entry(config: Config, of: Column | None = None) -> Column:
    """The columns of `entry_types` (those of the struct `of`, if given) as one struct.

    Its last field, `_lacking`, is a number that tells which of the numeric ones are null.
    """
    names = list(entry_types(config))
    columns = {name: (F.col(name) if of is None else of[name]) for name in names}
    lacking = F.xxhash64(*(columns[name].isNull() for name in config.numeric), F.lit(0))
    return F.struct(*(column.alias(name) for name, column in columns.items()), lacking.alias("_lacking"))


def hour_of_week(local: Column) -> Column:
    """0 for Sunday 00:00 to 167 for Saturday 23:00, from a local wall-clock timestamp."""
    # Counted from the seconds: taking weekday and hour apart would ask the calendar twice for each event.
    return F.pmod(F.floor(F.unix_seconds(local) / 3600) + _FIRST_HOUR, F.lit(_HOURS)).cast("int")


def local_hour_of_week(instant: dt.datetime, time_zone: str) -> int:
    """The same of one instant, without a query to Spark."""
    local = instant.astimezone(zoneinfo.ZoneInfo(time_zone))
    return local.isoweekday() % 7 * 24 + local.hour
