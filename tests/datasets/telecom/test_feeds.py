"""Clocks of the feeds, and agreement of the feeds with the shipped configuration."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lam_spark.config.load import load_config
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, STATEMENTS, format_times, ingested_times
from lam_spark.datasets.telecom.identities import LOOKBACK_DAYS, MAX_CUSTOMERS_PER_ID
from lam_spark.datasets.telecom.parameters import AUTUMN, DAY, SPAN, SPRING, START

CONF = Path(__file__).parents[3] / "conf" / "telecom.yaml"
LISBON = zoneinfo.ZoneInfo("Europe/Lisbon")
STARTED_AT = dt.datetime.fromisoformat(START).replace(tzinfo=dt.UTC)


@given(st.integers(-1_500 * DAY, SPAN))
def test_times_are_formatted_like_the_standard_library(at: int) -> None:
    instant = STARTED_AT + dt.timedelta(seconds=at)
    formatted = {
        clock: format_times(clock, np.array([at]))[0] for clock in ("iso", "millis", "instant", "day")
    }
    assert formatted["iso"] == instant.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert formatted["millis"] == formatted["instant"] // 1_000 == int(instant.timestamp()) * 1_000
    assert dt.date(1970, 1, 1) + dt.timedelta(days=int(formatted["day"])) == instant.date()
    if at >= 0:  # local clocks support the year of the data set only
        local = instant.astimezone(LISBON)
        assert format_times("local", np.array([at]))[0] == local.strftime("%Y-%m-%d %H:%M:%S")
        assert format_times("local_day_first", np.array([at]))[0] == local.strftime("%d/%m/%Y %H:%M:%S")
        naive = dt.datetime(1970, 1, 1) + dt.timedelta(
            microseconds=int(format_times("local_instant", np.array([at]))[0])
        )
        assert naive == local.replace(tzinfo=None)


@pytest.mark.parametrize("shift", [-7_200, -3_601, -3_600, -1, 0, 1, 3_599, 3_600])
@pytest.mark.parametrize("change", [SPRING, AUTUMN])
def test_an_ambiguous_local_time_is_ingested_as_the_earlier_instant(change: int, shift: int) -> None:
    at = np.array([change + shift])
    text = format_times("local", at)[0]
    parsed = dt.datetime.fromisoformat(text).replace(tzinfo=LISBON, fold=0).astimezone(dt.UTC)
    assert ingested_times(CHANNELS["call_centre"], at)[0] == (parsed - STARTED_AT).total_seconds()
    assert ingested_times(CHANNELS["web"], at) == at


def test_the_configuration_declares_the_columns_of_the_feeds() -> None:
    config = load_config(CONF)
    assert set(config.inputs) == {*CHANNELS, *LINKS, STATEMENTS.name}
    for feed in (*CHANNELS.values(), *LINKS.values(), STATEMENTS):
        source = config.inputs[feed.name]
        assert re.findall(r"(\w+) [A-Z_]+", source.columns) == list(feed.columns)
        assert source.format == feed.format
        assert source.options.get("sep", ",") == feed.separator
    for name, feed in CHANNELS.items():
        channel = config.channels[name]
        assert channel.id == feed.id_kind
        assert (channel.clock is not None) == feed.is_local
    assert config.identity.lookback_days == LOOKBACK_DAYS
    assert config.identity.max_customers == MAX_CUSTOMERS_PER_ID
    assert config.as_of == (STARTED_AT + dt.timedelta(seconds=SPAN)).date()
