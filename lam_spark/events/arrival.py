"""Arrival delays of channels: what the configuration declares, and what the nights so far propose.

Measured delays never change an event's `known_at`: they depend on when the stage was run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import functions as F

from lam_spark.config import ChannelConfig, duration_text
from lam_spark.events.reconciliation import ARRIVAL_QUANTILE
from lam_spark.storage.tables.store import Tables


@dataclass(frozen=True)
class ArrivalDelay:
    """Arrival delay of a channel.

    Attributes:
        declared: `arrival_delay` of the channel, such as `6h`.
        proposed: 95th percentile over the nights after the first load, rounded up to whole hours.
        nights: Number of these nights.
        is_exceeded: Whether events arrive later than declared.
    """

    declared: str
    proposed: str
    nights: int
    is_exceeded: bool

    @classmethod
    def of(cls, channel: ChannelConfig, seconds: int, nights: int) -> ArrivalDelay:
        """Compare the declared delay with a measured one in seconds."""
        proposed = dt.timedelta(hours=max(0, -(-seconds // 3600)))
        declared = channel.arrival_delay
        return cls(duration_text(declared), duration_text(proposed), nights, proposed > declared)


def arrival_delays(tables: Tables, channels: Mapping[str, ChannelConfig]) -> dict[str, ArrivalDelay]:
    """Declared and proposed delay of each channel that was measured; cost: the table `reconciliation`."""
    measured = (
        tables.read("reconciliation")
        .where(F.col("arrival_seconds").isNotNull() & F.col("source").isin(*channels))
        .groupBy("source")
        .agg(
            F.percentile_approx("arrival_seconds", F.lit(ARRIVAL_QUANTILE)).alias("_seconds"),
            F.count("*").alias("_nights"),
        )
    )
    rows = sorted(measured.toLocalIterator(), key=lambda row: str(row["source"]))
    return {
        row["source"]: ArrivalDelay.of(channels[row["source"]], row["_seconds"], row["_nights"])
        for row in rows
    }
