"""Conversions between UTC instants, microseconds since 1970 and Spark SQL literals."""

from __future__ import annotations

import datetime as dt

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def micros(instant: dt.datetime) -> int:
    """Microseconds since 1970 (UTC), exact."""
    return (instant - _EPOCH) // dt.timedelta(microseconds=1)


def instant(microseconds: int) -> dt.datetime:
    """UTC instant of microseconds since 1970; inverse of `micros`."""
    return _EPOCH + dt.timedelta(microseconds=microseconds)


def sql_literal(instant: dt.datetime) -> str:
    """Spark SQL timestamp literal of an instant, with microseconds and its zone.

    Without the `Z`, Spark would read the text in the time zone of the session.
    """
    return f"TIMESTAMP '{instant.astimezone(dt.UTC).replace(tzinfo=None).isoformat(' ', 'microseconds')}Z'"
