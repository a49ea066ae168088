"""Up to which instant the events of each channel are complete, and which channels are silent for too long.

A label says what a customer did not do only if the channel that would show it was still delivering. A channel without
events is an observation as long as it is not silent for longer than usual (`max_silence_days`); after that it is
stale, and nothing is known since the last day that it delivered completely.
"""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import MEASURED, ChannelConfig
from lam_spark.storage.time import sql_literal
from lam_spark.storage.wall_clock import local_day

# Events before this are not read: a channel that has none since is stale, however long its usual gaps are.
_YEAR = dt.timedelta(days=365)
# The usual gap of a channel is the longest of these days before its last event.
_GAP_DAYS = 90
_LEAST_SILENCE_DAYS = 7


@dataclass(frozen=True)
class ChannelCompleteness:
    """How far the events of a channel go.

    Attributes:
        last_day: Local day of the last event in the year before `as_of`; None if there is none.
        max_silence_days: Days without events that still are an observation; None: any number.
        silent_days: Whole local days without an event until the data end.
        complete_until: Instant before which all events have arrived.
    """

    last_day: dt.date | None
    max_silence_days: int | None
    silent_days: int
    complete_until: dt.datetime

    @property
    def is_stale(self) -> bool:
        """Whether the silence is longer than is usual for the channel."""
        return self.max_silence_days is not None and self.silent_days > self.max_silence_days

    @property
    def sentence(self) -> str:
        """The silence in words."""
        since = f"since {self.last_day}" if self.last_day else f"in the {_YEAR.days} days before as_of"
        return (
            f"no event {since}, silent for {self.silent_days} days (usual: at most {self.max_silence_days}); what "
            f"customers did there is unknown from {self.complete_until:%Y-%m-%d %H:%M} (UTC) on"
        )


@dataclass(frozen=True)
class ActiveDays:
    """Days on which a channel had events, in the year before `as_of`.

    Attributes:
        days: Local days, ascending.
        targets: Targets with an event that may be an outcome.
    """

    days: tuple[dt.date, ...] = ()
    targets: frozenset[str] = frozenset()


def active_days(
    events: DataFrame, as_of: dt.datetime, time_zone: str, outcomes: Mapping[str, Column] | None = None
) -> dict[str, ActiveDays]:
    """Days with events by source.

    Cost: one pass over the events of a year before `as_of`; at most 366 rows a source come to the driver.

    Args:
        events: Events of all customers.
        as_of: Later events do not count, so that a rerun of an earlier day gives the same result.
        time_zone: IANA zone of the data set.
        outcomes: Target -> condition for events that may be its outcomes.
    """
    outcomes = outcomes or {}
    first, end = sql_literal(as_of - _YEAR), sql_literal(as_of)
    rows = (
        events.where(f"event_time >= {first} AND event_time < {end}")
        .groupBy("source", local_day(F.col("event_time"), time_zone).alias("_day"))
        .agg(
            F.count("*").alias("_events"),
            *(F.max(F.coalesce(condition, F.lit(False))).alias(f"_{t}") for t, condition in outcomes.items()),
        )
        .orderBy("source", "_day")
    )
    days: dict[str, list[dt.date]] = {}
    targets: dict[str, set[str]] = {}
    for row in rows.toLocalIterator():
        days.setdefault(row["source"], []).append(row["_day"])
        targets.setdefault(row["source"], set()).update(t for t in outcomes if row[f"_{t}"])
    return {source: ActiveDays(tuple(days[source]), frozenset(targets[source])) for source in days}


def data_end(active: Mapping[str, ActiveDays], as_of: dt.datetime, time_zone: str) -> dt.datetime:
    """Where the data end: `as_of`, or the end of the local day of the last event of any channel before it.

    `as_of` may be some days after that event; whether anything happened in these days is unknown.
    """
    last_days = [of_source.days[-1] for of_source in active.values()]
    if not last_days:
        return as_of
    return min(as_of, _midnight(max(last_days) + dt.timedelta(days=1), zoneinfo.ZoneInfo(time_zone)))


def channel_completeness(
    channels: Mapping[str, ChannelConfig],
    active: Mapping[str, ActiveDays],
    as_of: dt.datetime,
    time_zone: str,
) -> dict[str, ChannelCompleteness]:
    """Completeness of each channel: until the data end, less its `arrival_delay`.

    A stale channel is complete until the start of its last day with events: that day may be half.

    Args:
        channels: Channels by name.
        active: Days with events by source (`active_days`).
        as_of: Instant before which everything is visible.
        time_zone: IANA zone of the data set.
    """
    zone = zoneinfo.ZoneInfo(time_zone)
    end = data_end(active, as_of, time_zone)
    end_day = (end - dt.timedelta(microseconds=1)).astimezone(zone).date()
    completeness = {}
    for name, channel in channels.items():
        days = active.get(name, ActiveDays()).days
        last = days[-1] if days else None
        silent = (end_day - last).days if last else _YEAR.days
        max_silence = channel.max_silence_days
        if max_silence == MEASURED:
            max_silence = _usual_silence_days(days)
        is_stale = max_silence is not None and silent > max_silence
        until = end
        if is_stale:
            until = _midnight(last, zone) if last else as_of - _YEAR
        completeness[name] = ChannelCompleteness(last, max_silence, silent, until - channel.arrival_delay)
    return completeness


def stale_channels(completeness: Mapping[str, ChannelCompleteness]) -> dict[str, str]:
    """Channels that are silent for too long, with the silence in words."""
    return {name: of_channel.sentence for name, of_channel in completeness.items() if of_channel.is_stale}


def _usual_silence_days(days: Sequence[dt.date]) -> int:
    """Twice the longest gap that ended in the days before the last event, at least a week."""
    first = days[-1] - dt.timedelta(days=_GAP_DAYS) if days else dt.date.max
    gaps = [(later - day).days for day, later in itertools.pairwise(days) if later > first]
    return max(_LEAST_SILENCE_DAYS, 2 * max(gaps, default=0))


def _midnight(day: dt.date, zone: dt.tzinfo) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), zone).astimezone(dt.UTC)
