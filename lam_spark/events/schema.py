"""Columns of the tables whose shape follows from the declared fields."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql.types import DataType, DoubleType, StringType, StructField, StructType, TimestampType

from lam_spark.config import FieldConfig

# Columns that a channel's select must yield besides declared fields.
CHANNEL_COLUMNS: dict[str, DataType] = {
    "customer_id": StringType(),
    "event_time": TimestampType(),
    "event_key": StringType(),
}


def field_types(fields: Mapping[str, FieldConfig]) -> dict[str, DataType]:
    """Type of each declared field in `events`: DOUBLE for numeric fields, STRING for all others."""
    return {name: DoubleType() if spec.kind == "numeric" else StringType() for name, spec in fields.items()}


def channel_schema(fields: Mapping[str, FieldConfig]) -> StructType:
    """Schema of a mapped channel row with its raw id: `CHANNEL_COLUMNS`, then the declared fields."""
    columns = CHANNEL_COLUMNS | field_types(fields)
    return StructType([StructField(name, kind) for name, kind in columns.items()])


def fields_not_in(events: StructType, fields: Mapping[str, FieldConfig]) -> list[str]:
    """Declared fields that the table `events` has no column of their type for."""
    types = {column.name: column.dataType for column in events.fields}
    return [name for name, kind in field_types(fields).items() if types.get(name) != kind]
