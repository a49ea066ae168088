"""Comparison of an input's columns with the declared ones."""

from __future__ import annotations

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql.types import (
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, first_line

_INTEGER_WIDTHS: dict[type[DataType], int] = {ByteType: 1, ShortType: 2, IntegerType: 3, LongType: 4}
# Decimal numbers of at most this many digits survive the conversion to double and back.
_DOUBLE_DIGITS = 15


def declared_schema(name: str, spec: InputConfig) -> StructType:
    """The declared columns of an input.

    Raises:
        ConfigError: They are not Spark DDL.
    """
    try:
        schema = StructType.fromDDL(spec.columns)
    except (ParseException, AnalysisException) as error:
        raise ConfigError(f"inputs.{name}.columns is not Spark DDL: {first_line(error)}") from error
    assert isinstance(schema, StructType)  # a list of columns is never a simple type
    return schema


def undeclared_columns(
    name: str, spec: InputConfig, place: str, declared: StructType, present: StructType
) -> tuple[str, ...]:
    """Check that an input has the declared columns; return the columns that are not declared.

    Args:
        name: Name of the input, for errors.
        spec: Configuration of the input.
        place: Path or database, for errors.
        declared: Declared columns.
        present: Columns of the input; for CSV and JSON only their names count.

    Raises:
        ConfigError: A column is missing or has a type that cannot be read as declared, or the columns of a CSV file
            are in another order.
    """
    if spec.format == "json" and not present.names:
        return ()  # no lines: a reader that needs rows raises its own error
    missing = [field.name for field in declared if field.name not in present.names]
    if missing:
        raise ConfigError(
            f"inputs.{name}: {place} lacks the declared columns {', '.join(missing)}; "
            f"it has {', '.join(present.names) or 'none'}"
        )
    undeclared = tuple(column for column in present.names if column not in declared.names)
    if spec.format == "csv" and declared.names != present.names:
        raise ConfigError(
            f"inputs.{name}: the columns of a CSV file are read by position, expected the header "
            f"{','.join(declared.names)}, got {','.join(present.names)}"
        )
    if spec.format in ("csv", "json"):
        return tuple(column for column in undeclared if column != "_corrupt_record")
    _require_types(name, place, declared, present, is_cast=spec.format in ("delta", "jdbc"))
    return undeclared


def _require_types(
    name: str, place: str, declared: StructType, present: StructType, *, is_cast: bool
) -> None:
    pairs = [(field, present[field.name].dataType) for field in declared]
    mismatches = [(field, kind) for field, kind in pairs if not _fits(kind, field.dataType, is_cast)]
    if mismatches:
        texts = [
            f"{field.name} is {kind.simpleString()}, declared {field.dataType.simpleString()}"
            for field, kind in mismatches
        ]
        raise ConfigError(
            f"inputs.{name}: {place} has other types: {'; '.join(texts)}{_decimal_hint(mismatches)}"
        )


def _fits(present: DataType, declared: DataType, is_cast: bool) -> bool:
    """Whether a column can be read as declared without loss.

    Args:
        present: Type of the column.
        declared: Declared type.
        is_cast: Whether rows are cast to the declared types; a Parquet file is read as declared.
    """
    if present == declared:
        return True
    if type(present) in _INTEGER_WIDTHS and type(declared) in _INTEGER_WIDTHS:
        return _INTEGER_WIDTHS[type(present)] <= _INTEGER_WIDTHS[type(declared)]
    if isinstance(present, FloatType):
        return isinstance(declared, DoubleType)
    if not is_cast:
        return False
    if isinstance(present, DecimalType) and isinstance(declared, DecimalType):
        whole_digits = declared.precision - declared.scale
        return present.scale <= declared.scale and present.precision - present.scale <= whole_digits
    if isinstance(present, DecimalType):
        return isinstance(declared, DoubleType) and present.precision <= _DOUBLE_DIGITS
    # A wall clock time is cast in UTC (`open_input`): its digits stay the same.
    return isinstance(present, TimestampNTZType) and isinstance(declared, TimestampType)


def _decimal_hint(mismatches: list[tuple[StructField, DataType]]) -> str:
    """What to do about decimal columns that a double cannot hold exactly; empty if there are none."""
    decimals = [
        f"{field.name} {kind.simpleString().upper()}"
        for field, kind in mismatches
        if isinstance(kind, DecimalType) and isinstance(field.dataType, DoubleType)
    ]
    if not decimals:
        return ""
    return (
        f". A double is exact to {_DOUBLE_DIGITS} digits only: declare {', '.join(decimals)} (a numeric field converts "
        "it to double), or make the column narrower in the source"
    )
