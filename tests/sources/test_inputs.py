"""Readers: declared columns are compared with what is there; bad lines are kept apart, never turned into nulls."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run
from lam_spark.sources.inputs import Delivery, Inputs, Part, open_input, refuse_malformed
from tests.support.shop import settings


def spec(kind: str, path: Path, columns: str) -> InputConfig:
    return InputConfig(format=kind, path=str(path), columns=columns)


def test_a_path_that_is_not_there_is_named(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.parquet"
    with pytest.raises(
        ConfigError, match=r"inputs\.sales: expected parquet at .*nowhere\.parquet, found nothing"
    ):
        open_input(spark, "sales", spec("parquet", path, "id BIGINT"))


def test_declared_columns_that_are_no_ddl(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inputs\.sales\.columns is not Spark DDL"):
        open_input(spark, "sales", spec("parquet", tmp_path, "id BIGNIT"))


def test_a_column_that_the_file_lacks_is_named_with_those_it_has(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "price": [2.0]}), tmp_path / "sales.parquet")
    with pytest.raises(ConfigError, match="lacks the declared columns day; it has id, price"):
        open_input(spark, "sales", spec("parquet", tmp_path / "sales.parquet", "id BIGINT, day DATE"))


@pytest.mark.parametrize(
    ("held", "declared"),
    [
        (pa.array(["1"]), "BIGINT"),
        (pa.array([2**40], pa.int64()), "INT"),
        (pa.array([1.5]), "BIGINT"),
        (pa.array([1.5]), "FLOAT"),
    ],
    ids=["text as number", "wide as narrow", "fraction as whole", "double as float"],
)
def test_a_parquet_column_of_another_type_is_refused(
    spark: SparkSession, tmp_path: Path, held: pa.Array, declared: str
) -> None:
    pq.write_table(pa.table({"id": held}), tmp_path / "sales.parquet")
    with pytest.raises(ConfigError, match=rf"other types: id is \w+, declared {declared.lower()}"):
        open_input(spark, "sales", spec("parquet", tmp_path / "sales.parquet", f"id {declared}"))


def test_a_narrow_parquet_column_may_be_declared_wider(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([7], pa.int32())}), tmp_path / "sales.parquet")
    rows = open_input(spark, "sales", spec("parquet", tmp_path / "sales.parquet", "id BIGINT")).rows
    assert [tuple(row) for row in rows.collect()] == [(7,)]
    assert rows.schema.simpleString() == "struct<id:bigint>"


def test_a_csv_header_in_another_order_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("day,id\n2023-01-02,1\n")
    with pytest.raises(ConfigError, match="expected the header id,day, got day,id"):
        open_input(spark, "sales", spec("csv", tmp_path / "sales.csv", "id BIGINT, day DATE"))


def test_bad_lines_of_csv_are_kept_apart_whatever_is_asked(spark: SparkSession, tmp_path: Path) -> None:
    bad = ["x,2023-01-02,4", "2,2023-02-31,4", "3,2023-01-02", "4,2023-01-02,4,5"]
    good = ["5,2023-01-02,4", "6,,", ",2023-01-03,1"]
    (tmp_path / "sales.csv").write_text("\n".join(["id,day,n", *bad, *good]) + "\n")
    source = open_input(spark, "sales", spec("csv", tmp_path / "sales.csv", "id BIGINT, day DATE, n INT"))
    assert source.malformed is not None
    assert sorted(row["raw"] for row in source.malformed.collect()) == sorted(bad)
    day = dt.date(2023, 1, 2)
    kept = {tuple(row) for row in source.rows.collect()}
    assert kept == {(5, day, 4), (6, None, None), (None, dt.date(2023, 1, 3), 1)}
    # A query that needs one column only comes to the same verdict on every line.
    assert source.rows.select("n").count() == len(good)
    assert source.rows.count() == len(good)


def test_bad_lines_of_json_are_kept_apart_whatever_is_asked(spark: SparkSession, tmp_path: Path) -> None:
    bad = ['{"id": "x", "day": "2023-01-02"}', '{"id": 2, "day": "2023-02-31"}', '{"id": 3, ', "no json"]
    good = ['{"day": "2023-01-02", "id": 4}', '{"id": 5}', '{"id": 6, "day": null, "more": 1}']
    (tmp_path / "sales.jsonl").write_text("\n".join([*bad, *good]) + "\n")
    source = open_input(spark, "sales", spec("json", tmp_path / "sales.jsonl", "id BIGINT, day DATE"))
    assert source.malformed is not None
    assert sorted(row["raw"] for row in source.malformed.collect()) == sorted(bad)
    assert {tuple(row) for row in source.rows.collect()} == {(4, dt.date(2023, 1, 2)), (5, None), (6, None)}
    assert source.rows.select("id").count() == len(good)


def test_a_look_up_with_a_bad_line_is_refused_without_showing_it(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product,price\nRAW-CUSTOMER-000001,x\nbook,1\n")
    source = open_input(
        spark, "products", spec("csv", tmp_path / "products.csv", "product STRING, price INT")
    )
    with pytest.raises(DataQualityError, match=r"inputs\.products: 1 lines do not parse") as caught:
        refuse_malformed("products", source)
    assert "RAW-CUSTOMER" not in str(caught.value)


def test_a_look_up_without_a_bad_line_passes(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product,price\nbook,1\n")
    source = open_input(
        spark, "products", spec("csv", tmp_path / "products.csv", "product STRING, price INT")
    )
    refuse_malformed("products", source)
    assert source.rows.count() == 1


def test_a_grain_is_narrowed_for_its_own_select_and_whole_for_the_others(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    for folder, files in {"letters": {"1": "first", "2": "second"}, "answers": {"2": "first"}}.items():
        (raw / folder).mkdir(parents=True)
        for night, letter in files.items():
            (raw / folder / f"{night}.csv").write_text(f"letter\n{letter}\n")
    columns = {"format": "csv", "columns": "letter STRING"}
    added = {name: columns | {"path": str(raw / name)} for name in ("letters", "answers")}
    run = make_run(inputs=settings(tmp_path / "shop")["inputs"] | added)
    opened = Inputs(run.spark, run.config)

    def narrowed(name: str, statement: str) -> list[str]:
        """What the select of a reader gives on the second night."""
        new = Delivery(name, name, (Part(f"{raw}/{name}/2.csv"),), None, "mapping", is_first=False)
        opened.narrow(name, opened.new_rows(new, tmp_path / "landed"))
        return sorted(row["letter"] for row in opened.select(statement, "a test", name).collect())

    assert narrowed("letters", "SELECT letter FROM letters") == ["second"]
    # An answer of tonight to a letter of another night: the look-up is the grain of the select before.
    assert narrowed("answers", "SELECT letter FROM answers JOIN letters USING (letter)") == ["first"]
    assert narrowed("letters", "SELECT letter FROM letters") == ["second"]  # and narrowed again for its own
