"""A few rows that the driver holds, as a frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType


def local_frame(spark: SparkSession, rows: Iterable[Sequence[Any]], schema: str | StructType) -> DataFrame:
    """Rows of the driver's, in the order of the columns, as a frame of one partition.

    Through Arrow: of a plain list Spark makes an RDD, and starts Python workers to hand it back what it was given,
    seconds for one row.

    Args:
        spark: the session.
        rows: few; times are aware.
        schema: DDL or type of the columns.
    """
    typed = StructType.fromDDL(schema) if isinstance(schema, str) else schema
    assert isinstance(typed, StructType)  # a list of columns is never a simple type
    fields = to_arrow_schema(typed)
    named = [dict(zip(fields.names, row, strict=True)) for row in rows]
    return spark.createDataFrame(pa.Table.from_pylist(named, fields), typed).coalesce(1)
