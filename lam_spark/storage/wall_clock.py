"""Local days and calendar arithmetic on Spark columns, independent of the session's time zone.

Spark's own `to_date`, casts between dates and timestamps, and `timestamp + interval` use the session's time zone.
`from_utc_timestamp` and `to_utc_timestamp` do not: they shift an instant by the offset of a zone. All functions here
count seconds or microseconds between such shifts.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

_DAY_SECONDS = 86_400
_DAY_MICROS = _DAY_SECONDS * 1_000_000


def local_day(instant: Column, zone: str) -> Column:
    """The local day (DATE) of an instant (TIMESTAMP) in an IANA zone."""
    seconds = F.unix_seconds(F.from_utc_timestamp(instant, zone))
    return F.date_from_unix_date(F.floor(seconds / _DAY_SECONDS).cast("int"))


def start_of_local_day(day: Column, zone: str) -> Column:
    """The instant (TIMESTAMP) of midnight at the start of a local day (DATE) in an IANA zone."""
    midnight = F.timestamp_seconds(F.unix_date(day).cast("bigint") * _DAY_SECONDS)
    return F.to_utc_timestamp(midnight, zone)


def end_of_local_day(day: Column, zone: str) -> Column:
    """The last microsecond (TIMESTAMP) of a local day (DATE) in an IANA zone; null stays null."""
    return F.timestamp_micros(F.unix_micros(start_of_local_day(F.date_add(day, 1), zone)) - 1)


def plus_local_days(instant: Column, days: Column, zone: str) -> Column:
    """The instant that many local days later, at the same local time; `days` is an integer, null stays null."""
    local = F.unix_micros(F.from_utc_timestamp(instant, zone)) + days.cast("bigint") * _DAY_MICROS
    return F.to_utc_timestamp(F.timestamp_micros(local), zone)


def plus_days(instant: Column, days: int) -> Column:
    """The instant that many times 24 hours later."""
    return F.timestamp_micros(F.unix_micros(instant) + days * _DAY_MICROS)
