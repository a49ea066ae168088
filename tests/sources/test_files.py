"""Files: a missing path is named; malformed lines are kept apart and never turned into nulls."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError
from lam_spark.sources.fingerprint import input_fingerprint
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.sources.inputs import count_lines, open_input


def spec(kind: str, path: Path, columns: str) -> InputConfig:
    return InputConfig(format=kind, path=str(path), columns=columns)


def test_a_path_that_does_not_exist_is_named(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.parquet"
    with pytest.raises(ConfigError) as caught:
        open_input(spark, "sales", spec("parquet", path, "id BIGINT"))
    assert str(caught.value) == f"inputs.sales: expected parquet at {path}, found nothing"


def test_malformed_csv_lines_are_kept_apart_in_every_query(spark: SparkSession, tmp_path: Path) -> None:
    bad = ["x,2023-01-02,4", "2,2023-02-31,4", "3,2023-01-02", "4,2023-01-02,4,5"]
    good = ["5,2023-01-02,4", "6,,", ",2023-01-03,1"]
    (tmp_path / "sales.csv").write_text("\n".join(["id,day,n", *bad, *good]) + "\n")
    source = open_input(spark, "sales", spec("csv", tmp_path / "sales.csv", "id BIGINT, day DATE, n INT"))
    assert source.malformed is not None
    assert sorted(row["raw"] for row in source.malformed.collect()) == sorted(bad)
    day = dt.date(2023, 1, 2)
    rows = {tuple(row) for row in source.rows.collect()}
    assert rows == {(5, day, 4), (6, None, None), (None, dt.date(2023, 1, 3), 1)}
    # A query that needs only one column classifies each line the same way.
    assert source.rows.select("n").count() == len(good)
    assert source.rows.count() == len(good)


def test_malformed_json_lines_are_kept_apart_in_every_query(spark: SparkSession, tmp_path: Path) -> None:
    bad = ['{"id": "x", "day": "2023-01-02"}', '{"id": 2, "day": "2023-02-31"}', '{"id": 3, ', "no json"]
    good = ['{"day": "2023-01-02", "id": 4}', '{"id": 5}', '{"id": 6, "day": null, "more": 1}']
    (tmp_path / "sales.jsonl").write_text("\n".join([*bad, *good]) + "\n")
    source = open_input(spark, "sales", spec("json", tmp_path / "sales.jsonl", "id BIGINT, day DATE"))
    assert source.malformed is not None
    assert sorted(row["raw"] for row in source.malformed.collect()) == sorted(bad)
    assert {tuple(row) for row in source.rows.collect()} == {(4, dt.date(2023, 1, 2)), (5, None), (6, None)}
    assert source.rows.select("id").count() == len(good)


def test_a_csv_file_in_another_order_is_refused_wherever_it_stands(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Both columns are texts: read by position, they would be swapped without a malformed line."""
    for number in range(1, 8):
        order = ("purpose", "state") if number != 5 else ("state", "purpose")
        text = ",".join(["id", *order]) + f"\n{number},{order[0]},{order[1]}\n"
        (tmp_path / f"{number}.csv").write_text(text)
    files = spec("csv", tmp_path, "id BIGINT, purpose STRING, state STRING")
    message = r"the header of the CSV file \S+/5\.csv does not give the declared columns of its input in their order"

    def counts() -> dict[str, tuple[int, int]]:
        """Of the new files of a night, the first of which has the declared header."""
        parts = tuple(Part(str(file)) for file in sorted(tmp_path.glob("*.csv")))
        increment = SourceIncrement("shop", "sales", parts, None, "", is_first=True)
        return count_lines({"sales": open_input(spark, "sales", files, increment)})

    with pytest.raises(ConfigError, match=message):
        counts()
    (tmp_path / "5.csv").write_text("id,purpose\n5,purpose\n")
    with pytest.raises(ConfigError, match=message):
        counts()
    (tmp_path / "5.csv").unlink()
    assert counts() == {"sales": (6, 0)}


def test_the_fingerprint_of_files_changes_with_any_of_them(spark: SparkSession, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.csv").write_text("id\n1\n")
    files = spec("csv", tmp_path, "id BIGINT")
    prints = [input_fingerprint(spark, "sales", files)]
    assert input_fingerprint(spark, "sales", files) == prints[0]
    (tmp_path / "2.csv").rename(tmp_path / "3.csv")
    prints.append(input_fingerprint(spark, "sales", files))
    os.utime(tmp_path / "3.csv", (1_700_000_000, 1_700_000_000))
    prints.append(input_fingerprint(spark, "sales", files))
    (tmp_path / "3.csv").unlink()
    prints.append(input_fingerprint(spark, "sales", files))
    assert len(set(prints)) == 4
