"""Inputs as views: malformed lines in a look-up are refused, and a select sees only the new rows of its grain."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.errors import DataQualityError
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.sources.inputs import Inputs, open_input, refuse_malformed

PRODUCTS = "product STRING, price INT"


def csv_input(path: Path, columns: str) -> InputConfig:
    return InputConfig(format="csv", path=str(path), columns=columns)


def test_a_malformed_line_in_a_look_up_is_refused_and_not_shown(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product,price\nRAW-CUSTOMER-000001,x\nbook,1\n")
    source = open_input(spark, "products", csv_input(tmp_path / "products.csv", PRODUCTS))
    with pytest.raises(DataQualityError) as caught:
        refuse_malformed("products", source)
    assert str(caught.value) == (
        "inputs.products: 1 lines do not parse under the declared columns; nothing was read from it. Correct the file"
    )


def test_a_look_up_without_malformed_lines_passes(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product,price\nbook,1\n")
    source = open_input(spark, "products", csv_input(tmp_path / "products.csv", PRODUCTS))
    refuse_malformed("products", source)
    assert source.rows.count() == 1


def test_a_select_sees_the_new_rows_of_its_grain_and_all_rows_of_other_inputs(
    spark: SparkSession, tmp_path: Path
) -> None:
    for folder, files in {"letters": {"1": "first", "2": "second"}, "answers": {"2": "first"}}.items():
        (tmp_path / folder).mkdir(parents=True)
        for night, letter in files.items():
            (tmp_path / folder / f"{night}.csv").write_text(f"letter\n{letter}\n")
    specs = {name: csv_input(tmp_path / name, "letter STRING") for name in ("letters", "answers")}
    inputs = Inputs(spark, specs, {})

    def second_night(name: str, statement: str) -> list[str]:
        """Rows that the select of a reader gives on the second night."""
        part = Part(f"{tmp_path}/{name}/2.csv")
        increment = SourceIncrement(name, name, (part,), None, "mapping", is_first=False)
        new = inputs.open_increment(increment, tmp_path / "landed")
        return sorted(row["letter"] for row in inputs.select(statement, "a test", name, new).collect())

    assert second_night("letters", "SELECT letter FROM letters") == ["second"]
    # An answer of this night to a letter of another night: the look-up is the grain of the select before.
    assert second_night("answers", "SELECT letter FROM answers JOIN letters USING (letter)") == ["first"]
    assert second_night("letters", "SELECT letter FROM letters") == [
        "second"
    ]  # new rows again for its own select
