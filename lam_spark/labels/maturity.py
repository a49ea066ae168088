"""Which channels show the outcomes of a target, and up to when its labels are mature."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.errors import ConfigError, first_line
from lam_spark.events.completeness import (
    ActiveDays,
    active_days,
    channel_completeness,
    data_end,
    stale_channels,
)


@dataclass(frozen=True)
class TargetMaturity:
    """What a label of a target waits for.

    Attributes:
        channels: Channels that show the outcomes, sorted.
        complete_until: Instant up to which all of them are complete; a horizon that ends later is not over.
    """

    channels: tuple[str, ...]
    complete_until: dt.datetime


@dataclass(frozen=True)
class Maturity:
    """Maturity of the labels of a run.

    Attributes:
        targets: Target -> maturity of its labels.
        stale: Channel that is silent for too long -> the silence in words.
        data_end: Instant up to which there are events.
    """

    targets: dict[str, TargetMaturity]
    stale: dict[str, str]
    data_end: dt.datetime


def label_maturity(config: Config, events: DataFrame, as_of: dt.datetime) -> Maturity:
    """Maturity of the labels of every target; cost: one pass over a year of events.

    Args:
        config: Targets, channels and time zone.
        events: Events of all customers.
        as_of: Instant before which everything is visible.

    Raises:
        ConfigError: The `outcome_filter` of a target does not run.
    """
    for name, target in config.targets.items():
        try:
            events.where(F.expr(target.outcome_filter))
        except (AnalysisException, ParseException) as error:
            raise ConfigError(f"targets.{name}.outcome_filter: {first_line(error)}") from error
    outcomes = {name: F.expr(target.outcome_filter) for name, target in config.targets.items()}
    active = active_days(events, as_of, config.time_zone, outcomes)
    completeness = channel_completeness(config.channels, active, as_of, config.time_zone)
    targets = {}
    for name, target in config.targets.items():
        channels = _outcome_channels(name, target, config, active)
        until = min(completeness[channel].complete_until for channel in channels)
        targets[name] = TargetMaturity(channels, until)
    return Maturity(targets, stale_channels(completeness), data_end(active, as_of, config.time_zone))


def _outcome_channels(
    name: str, target: TargetConfig, config: Config, active: Mapping[str, ActiveDays]
) -> tuple[str, ...]:
    """The declared channels, or those with a matching event in the year; without any, all channels."""
    matching = {source for source, days in active.items() if name in days.targets}
    channels = target.outcome_channels or matching & config.channels.keys() or config.channels
    return tuple(sorted(channels))
