"""Up to when the events of a channel are complete, and after how long a silence it is stale."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from lam_spark.config import ChannelConfig
from lam_spark.events.completeness import (
    ActiveDays,
    ChannelCompleteness,
    channel_completeness,
    data_end,
    stale_channels,
)

ZONE = "America/New_York"  # five hours behind UTC in winter
AS_OF = dt.datetime(2024, 12, 30, 5, tzinfo=dt.UTC)
LAST_DAY = dt.date(2024, 12, 29)


def days_before(*ago: int) -> ActiveDays:
    """Days with events, so many days before the last day of the data."""
    return ActiveDays(tuple(LAST_DAY - dt.timedelta(days=days) for days in sorted(ago, reverse=True)))


def completeness(days: ActiveDays, as_of: dt.datetime = AS_OF, **keys: Any) -> ChannelCompleteness:
    """Completeness of a channel beside one with events on the last day."""
    channel = ChannelConfig(grain="rows", select="SELECT 1", **keys)
    active = {"other": days_before(0)} | ({"channel": days} if days.days else {})
    return channel_completeness({"channel": channel}, active, as_of, ZONE)["channel"]


@pytest.mark.parametrize(
    ("days", "max_silence"),
    [
        (days_before(*range(60)), 7),
        (days_before(*range(0, 90, 7)), 14),
        (days_before(0, 28, 56, 84), 56),
        (days_before(0, 91, 182), 182),  # the gap ended in the last 90 days
        (days_before(0, 91, 92, 200), 182),  # an earlier, longer gap does not count
        (days_before(3), 7),
        (ActiveDays(), 7),
    ],
)
def test_the_usual_silence_is_twice_the_longest_recent_gap(days: ActiveDays, max_silence: int) -> None:
    assert completeness(days).max_silence_days == max_silence


@pytest.mark.parametrize(
    ("last", "keys", "is_stale"),
    [
        (7, {}, False),
        (8, {}, True),
        (8, {"max_silence_days": 8}, False),
        (3, {"max_silence_days": 2}, True),
        (300, {"max_silence_days": None}, False),
    ],
)
def test_a_channel_is_stale_after_a_longer_silence(last: int, keys: dict[str, Any], is_stale: bool) -> None:
    found = completeness(days_before(*range(last, last + 30)), **keys)
    assert (found.is_stale, found.silent_days) == (is_stale, last)


def test_a_stale_channel_is_complete_until_the_start_of_its_last_day() -> None:
    found = completeness(days_before(*range(42, 90)))
    assert found.last_day == dt.date(2024, 11, 17)
    assert found.complete_until == dt.datetime(2024, 11, 17, 5, tzinfo=dt.UTC)
    assert found.sentence == (
        "no event since 2024-11-17, silent for 42 days (usual: at most 7); what customers did there is unknown from "
        "2024-11-17 05:00 (UTC) on"
    )


def test_another_channel_is_complete_until_the_data_end_less_its_delay() -> None:
    assert completeness(days_before(2, 3, 4)).complete_until == AS_OF
    delayed = completeness(days_before(2, 3, 4), arrival_delay="36h")
    assert delayed.complete_until == AS_OF - dt.timedelta(hours=36)


def test_days_after_the_last_event_of_all_channels_say_nothing() -> None:
    later = AS_OF + dt.timedelta(days=20)
    assert data_end({"other": days_before(0)}, later, ZONE) == AS_OF
    assert not completeness(days_before(0, 1), later).is_stale
    assert data_end({}, later, ZONE) == later


def test_a_channel_without_events_for_a_year_is_stale_and_named() -> None:
    found = completeness(ActiveDays())
    assert found.complete_until == AS_OF - dt.timedelta(days=365)
    assert list(stale_channels({"channel": found, "other": completeness(days_before(0))})) == ["channel"]
    assert found.sentence.startswith("no event in the 365 days before as_of, silent for 365 days")
