"""Rows of look-ups as JSON texts from which the same rows are read again."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    AnsiIntervalType,
    ArrayType,
    AtomicType,
    CharType,
    DataType,
    MapType,
    StringType,
    StructField,
    StructType,
    VarcharType,
    VariantType,
)

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.sources.schema_checks import declared_schema
from lam_spark.storage.session_settings import configured_sql

# Spark's own formats keep milliseconds only, and leave out nulls.
_JSON = {
    "timeZone": "UTC",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
    "dateFormat": "yyyy-MM-dd",
    "ignoreNullFields": "false",
}
_WITHOUT_TEXT = (AnsiIntervalType, CharType, VarcharType, VariantType)


def lookup_schema(name: str, spec: InputConfig) -> StructType:
    """Columns of a look-up as they are kept; texts of fixed or limited length are texts.

    Raises:
        ConfigError: The columns are not Spark DDL, `customer_id` is none of them, or a type cannot be kept as text.
    """
    declared = declared_schema(name, spec)
    if spec.customer_id is not None and spec.customer_id not in declared.names:
        hint = did_you_mean(spec.customer_id, declared.names, "name a declared column")
        raise ConfigError(f"inputs.{name}.customer_id: no column {spec.customer_id!r}: {hint}")
    schema = StructType(
        [
            StructField(
                f.name, StringType() if isinstance(f.dataType, CharType | VarcharType) else f.dataType
            )
            for f in declared
        ]
    )
    for field in schema:
        if not _is_kept(field.dataType):
            raise ConfigError(
                f"inputs.{name}: the column {field.name} is {field.dataType.simpleString()}, which the versions of a "
                "look-up cannot keep. Declare another type, or set keep_versions: false if its rows never change"
            )
    return schema


def row_text(schema: StructType) -> Column:
    """JSON of the columns of a schema; equal rows have equal texts."""
    return F.to_json(F.struct(*(F.col(field.name) for field in schema)), _JSON)


def parsed_row(schema: StructType) -> Column:
    """The struct in the column `row`, inverse of `row_text`; a damaged text fails the query."""
    return F.from_json("row", schema, {**_JSON, "mode": "FAILFAST"})


def lookup_rows(texts: DataFrame, schema: StructType) -> DataFrame:
    """Rows of a look-up, each as often as `copies` says.

    Args:
        texts: `row` (text) and `copies`.
        schema: Columns of the texts.
    """
    with configured_sql(texts.sparkSession):
        rows = F.array_repeat(parsed_row(schema), F.col("copies").cast("int"))
        return texts.select(F.inline(rows))


def _is_kept(kind: DataType) -> bool:
    if isinstance(kind, ArrayType):
        return _is_kept(kind.elementType)
    if isinstance(kind, StructType):
        return all(_is_kept(field.dataType) for field in kind)
    if isinstance(kind, MapType):  # JSON has no other keys
        return isinstance(kind.keyType, StringType) and _is_kept(kind.valueType)
    return isinstance(kind, AtomicType) and not isinstance(kind, _WITHOUT_TEXT)
