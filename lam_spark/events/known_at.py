"""The instant at which an event is known, `known_at`: the one rule for what a prediction may see.

An event counts for a query only if it was known before the query, not only if it had happened. It is known after its
channel's declared delay, and where a link assigns it to the customer, not before that link is known. The time of
ingestion plays no part: on the first load it would hide years.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ChannelConfig, LinkConfig
from lam_spark.errors import DataQualityError
from lam_spark.storage.time import instant, sql_literal


def delayed(time: str, readers: Mapping[str, ChannelConfig] | Mapping[str, LinkConfig]) -> Column:
    """The column `time` plus the `arrival_delay` of the row's `source`.

    Args:
        time: Name of a timestamp column.
        readers: Channels or link sources by name; the delay of another source is 0.
    """
    delay = F.lit(0).cast("bigint")
    for name, reader in readers.items():
        if reader.arrival_delay:
            micros = reader.arrival_delay // dt.timedelta(microseconds=1)
            delay = F.when(F.col("source") == name, F.lit(micros)).otherwise(delay)
    # In microseconds: an interval of days would follow the clock changes of the session's time zone.
    return F.timestamp_micros(F.unix_micros(time) + delay)


def event_known_at(channels: Mapping[str, ChannelConfig], link_known_at: Column | None = None) -> Column:
    """`known_at` of an event, from its columns `event_time` and `source`.

    Args:
        channels: Channels by name.
        link_known_at: When the link is known that assigns the event; null or None for a customer's own id.
    """
    arrival = delayed("event_time", channels)
    return arrival if link_known_at is None else F.greatest(arrival, link_known_at)


def known_before(events: DataFrame, until: int) -> DataFrame:
    """Events that are known before an instant (microseconds UTC); they have happened before it, too.

    Raises:
        DataQualityError: The events were ingested by a version that did not record when they are known.
    """
    if "known_at" not in events.columns:
        raise DataQualityError(
            "expected a column known_at in the table events, found none: it was made by another version of lam_spark. "
            "Run the stage 'ingest' once with --set ingest.rebuild=true"
        )
    return events.where(F.col("known_at") < F.expr(sql_literal(instant(until))))
