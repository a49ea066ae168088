"""Columns of the tables whose shape follows from the declared fields."""

from __future__ import annotations

from pyspark.sql.types import (
    DataType,
    DoubleType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from lam_spark.config import Config

# What a channel's select must yield besides the declared fields.
CHANNEL_COLUMNS: dict[str, DataType] = {
    "customer_id": StringType(),
    "event_time": TimestampType(),
    "event_key": StringType(),
}


def field_types(config: Config) -> dict[str, DataType]:
    """Type of every declared field in `events`: numbers are doubles, all else text."""
    return {
        name: DoubleType() if spec.kind == "numeric" else StringType() for name, spec in config.fields.items()
    }


def channel_schema(config: Config) -> StructType:
    """What a mapped channel row looks like, before identity: ids and times, then the declared fields."""
    columns = CHANNEL_COLUMNS | field_types(config)
    return StructType([StructField(name, kind) for name, kind in columns.items()])
