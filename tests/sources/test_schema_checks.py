"""Declared columns are compared with those of the files, and of the database."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError
from lam_spark.sources.inputs import open_input


def spec(kind: str, path: Path, columns: str) -> InputConfig:
    return InputConfig(format=kind, path=str(path), columns=columns)


def test_declared_columns_that_are_not_ddl_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inputs\.sales\.columns is not Spark DDL"):
        open_input(spark, "sales", spec("parquet", tmp_path, "id BIGNIT"))


def test_a_missing_column_is_named_with_the_present_ones(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "sales.parquet"
    pq.write_table(pa.table({"id": [1], "price": [2.0]}), path)
    with pytest.raises(ConfigError) as caught:
        open_input(spark, "sales", spec("parquet", path, "id BIGINT, day DATE"))
    assert str(caught.value) == (f"inputs.sales: {path} lacks the declared columns day; it has id, price")


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (pa.array(["1"]), "BIGINT"),
        (pa.array([2**40], pa.int64()), "INT"),
        (pa.array([1.5]), "BIGINT"),
        (pa.array([1.5]), "FLOAT"),
    ],
    ids=["text as number", "wide as narrow", "fraction as whole", "double as float"],
)
def test_a_parquet_column_of_another_type_is_refused(
    spark: SparkSession, tmp_path: Path, values: pa.Array, declared: str
) -> None:
    pq.write_table(pa.table({"id": values}), tmp_path / "sales.parquet")
    with pytest.raises(ConfigError, match=rf"other types: id is \w+, declared {declared.lower()}"):
        open_input(spark, "sales", spec("parquet", tmp_path / "sales.parquet", f"id {declared}"))


def test_a_narrow_parquet_column_may_be_declared_wider(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([7], pa.int32())}), tmp_path / "sales.parquet")
    rows = open_input(spark, "sales", spec("parquet", tmp_path / "sales.parquet", "id BIGINT")).rows
    assert [tuple(row) for row in rows.collect()] == [(7,)]
    assert rows.schema.simpleString() == "struct<id:bigint>"


def test_a_csv_header_in_another_order_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("day,id\n2023-01-02,1\n")
    with pytest.raises(ConfigError) as caught:
        open_input(spark, "sales", spec("csv", tmp_path / "sales.csv", "id BIGINT, day DATE"))
    assert str(caught.value) == (
        "inputs.sales: the columns of a CSV file are read by position, expected the header id,day, got day,id"
    )
