"""One id has one text, whatever surrounds it and whatever type its column has."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError
from lam_spark.identity.pseudonyms import has_control_characters, id_column


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("12", "12"),
        ("12L", "12"),
        ("CAST(12 AS DECIMAL(10, 0))", "12"),
        ("CAST(12 AS DECIMAL(10, 2))", "12"),
        ("CAST(120 AS DECIMAL(10, 2))", "120"),
        ("CAST(0 AS DECIMAL(10, 2))", "0"),
        ("CAST(12.50 AS DECIMAL(10, 2))", "12.5"),
        ("'12.00'", "12.00"),
        ("concat(chr(9), ' C-1 2', unhex('C2A0'))", "C-1 2"),
        ("concat(unhex('EFBBBF'), 'C1', unhex('E2808B'), unhex('00'), ' ', unhex('00'))", "C1"),
    ],
)
def test_an_id_has_one_text(spark: SparkSession, sql: str, text: str) -> None:
    frame = spark.sql(f"SELECT {sql} AS id")
    row = (
        frame.select(id_column(frame, "id", "x").alias("id"))
        .select("id", has_control_characters("id"))
        .first()
    )
    assert row
    assert tuple(row) == (text, False)


def test_case_is_folded_only_on_request(spark: SparkSession) -> None:
    frame = spark.sql("SELECT 'Ab' AS id")
    folded = [id_column(frame, "id", "x", folds=folds) for folds in (False, True, frame["id"] == "Ab")]
    assert tuple(frame.select(*folded).first() or ()) == ("Ab", "ab", "ab")


def test_control_characters_inside_are_noticed(spark: SparkSession) -> None:
    for code in ("EFBBBF", "E2808B", "00", "C2AD", "0A"):
        frame = spark.sql(f"SELECT concat('C', unhex('{code}'), '1') AS id")
        row = (
            frame.select(id_column(frame, "id", "x").alias("id")).select(has_control_characters("id")).first()
        )
        assert row
        assert row[0], code


def test_ids_of_floating_types_are_refused(spark: SparkSession) -> None:
    for kind in ("DOUBLE", "FLOAT"):
        frame = spark.sql(f"SELECT CAST(1 AS {kind}) AS customer_id")
        with pytest.raises(
            ConfigError, match=r"channels\.shop\.select yields customer_id as .* no exact text"
        ):
            id_column(frame, "customer_id", "channels.shop.select")
