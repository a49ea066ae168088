"""Events as entries of a sequence: times, token ids and numbers, no text."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from dataclasses import dataclass
from typing import Self

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sequences.vocabulary import encode

# Columns of `events` that order a customer's entries. `event_order` sorts like `event_id`.
ENTRY_ORDER = ("known_at", "event_time", "event_order")
# Hour of the week of 1970-01-01 00:00, a Thursday, counted from Sunday 00:00.
_EPOCH_HOUR = 4 * 24
_HOURS_OF_WEEK = 168


@dataclass(frozen=True)
class SequenceSpec:
    """The part of the configuration that determines the rows of `sequences`.

    Attributes:
        categorical: Names of the categorical fields.
        numeric: Names of the numeric fields.
        count_by: Categorical field whose token ids count the truncated events.
        max_events: Latest events that a row holds.
        time_zone: IANA zone of the hours of the week.
    """

    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    count_by: str
    max_events: int
    time_zone: str

    @classmethod
    def of(cls, config: Config) -> Self:
        """Specification from the configuration."""
        return cls(
            categorical=config.categorical,
            numeric=config.numeric,
            count_by=config.model.count_by,
            max_events=config.sequences.max_events,
            time_zone=config.time_zone,
        )


def entry_types(spec: SequenceSpec) -> dict[str, str]:
    """Column -> Spark type of an entry; a customer's entries are ordered by these columns from the left.

    The order is that of (known_at, event_time, event_id): a prediction sees a prefix, whatever became known later.
    """
    return {
        "known_at": "bigint",  # microseconds UTC
        "event_time": "bigint",
        "event_order": "bigint",
        "hour_of_week": "int",
        **dict.fromkeys(spec.categorical, "int"),
        **dict.fromkeys(spec.numeric, "float"),
    }


def event_entries(events: DataFrame, vocabulary: DataFrame, spec: SequenceSpec, key: str) -> DataFrame:
    """The column `key` of the events and the columns of `entry_types`; grain: an event."""
    encoded = encode(events, vocabulary, spec.categorical)
    local = F.from_utc_timestamp("event_time", spec.time_zone)
    return encoded.select(
        key,
        F.unix_micros("known_at").alias("known_at"),
        F.unix_micros("event_time").alias("event_time"),
        "event_order",
        hour_of_week(local).alias("hour_of_week"),
        *spec.categorical,
        *(F.col(name).cast("float").alias(name) for name in spec.numeric),
    )


def entry_struct(spec: SequenceSpec, source: Column | None = None) -> Column:
    """The columns of `entry_types` (or the fields of the struct `source`) as one struct.

    Its last field, `_nulls`, is a hash of which numeric fields are null.
    """
    names = list(entry_types(spec))
    columns = {name: (F.col(name) if source is None else source[name]) for name in names}
    nulls = F.xxhash64(*(columns[name].isNull() for name in spec.numeric), F.lit(0))
    return F.struct(*(column.alias(name) for name, column in columns.items()), nulls.alias("_nulls"))


def entry_array_type(spec: SequenceSpec) -> str:
    """Spark type of a customer's entries (`entry_struct`)."""
    types = entry_types(spec) | {"_nulls": "bigint"}
    return f"array<struct<{','.join(f'{name}:{kind}' for name, kind in types.items())}>>"


def hour_of_week(local: Column) -> Column:
    """0 for Sunday 00:00 to 167 for Saturday 23:00, from a local wall-clock timestamp."""
    # Computed from seconds: separate weekday and hour would need two calendar conversions per event.
    hours = F.floor(F.unix_seconds(local) / 3600)
    return F.pmod(hours + _EPOCH_HOUR, F.lit(_HOURS_OF_WEEK)).cast("int")


def local_hour_of_week(instant: dt.datetime, zone: str) -> int:
    """As `hour_of_week`, of one instant in an IANA zone, without a Spark query."""
    local = instant.astimezone(zoneinfo.ZoneInfo(zone))
    return local.isoweekday() % 7 * 24 + local.hour
