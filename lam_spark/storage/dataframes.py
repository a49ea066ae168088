"""Small helpers for DataFrames: local rows, single-row results, unions, copies, required columns, caching."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from lam_spark.errors import ConfigError


def local_frame(spark: SparkSession, rows: Iterable[Sequence[Any]], schema: str | StructType) -> DataFrame:
    """DataFrame of one partition from rows in the driver.

    Uses Arrow: from a plain list Spark builds an RDD and starts Python workers, which takes seconds for one row.

    Args:
        spark: Active session.
        rows: A few rows, values in the order of the columns; timestamps are time-zone aware.
        schema: DDL or type of the columns.
    """
    typed = StructType.fromDDL(schema) if isinstance(schema, str) else schema
    assert isinstance(typed, StructType)  # a list of columns is never a simple type
    fields = to_arrow_schema(typed)
    named = [dict(zip(fields.names, row, strict=True)) for row in rows]
    return spark.createDataFrame(pa.Table.from_pylist(named, fields), typed).coalesce(1)


def one_row(frame: DataFrame) -> Row:
    """The row of an aggregate without grouping keys, which always has exactly one."""
    row = frame.first()
    assert row is not None
    return row


def union_all(frames: Iterable[DataFrame]) -> DataFrame:
    """Union of at least one DataFrame by column name; duplicates stay."""
    return functools.reduce(DataFrame.unionByName, frames)


def materialize(frame: DataFrame, folder: Path) -> DataFrame:
    """Compute a DataFrame once into a folder and read it from there, without inferring its schema."""
    frame.write.mode("overwrite").parquet(str(folder))
    return frame.sparkSession.read.schema(frame.schema).parquet(str(folder))


def require_columns(frame: DataFrame, columns: Iterable[str], statement: str) -> None:
    """Check that a configured select yields the required columns.

    Args:
        frame: Result of the select.
        columns: Required column names.
        statement: Key of the select in the configuration, for the message.

    Raises:
        ConfigError: At least one column is missing.
    """
    expected = list(columns)
    missing = [name for name in expected if name not in frame.columns]
    if missing:
        raise ConfigError(f"{statement} must yield {', '.join(expected)}; it lacks {', '.join(missing)}")


class FrameCache:
    """DataFrames that a stage computes at most once; released at the end of the scope that cached them."""

    def __init__(self) -> None:
        self._frames: list[DataFrame] = []

    def __call__(self, frame: DataFrame) -> DataFrame:
        """Cache a DataFrame in memory, and on disk where memory is full."""
        self._frames.append(frame.persist(StorageLevel.MEMORY_AND_DISK))
        return frame

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """On exit, release the frames that were cached inside."""
        before = len(self._frames)
        try:
            yield
        finally:
            for frame in self._frames[before:]:
                frame.unpersist()
            del self._frames[before:]
