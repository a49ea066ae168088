"""Tables: versions, slices and statistics; and raw ids nowhere but in the identity map."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import Run
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.tables import store as tables
from tests.support.shop import SECRET, run_builder
from tests.support.tables import Prepared

VOCABULARY = "field STRING, value STRING, token_id INT, count_when_added BIGINT"


def rows(run: Run, name: str) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in run.tables.read(name).collect()}


def texts(values: Any) -> Iterator[str]:
    """Every string of a value of any depth."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from (str(key), *texts(value))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from texts(value)


def test_reading_a_table_that_was_never_written_names_its_stage(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"expected a table 'scores' .*, found none: run the stage 'score' first"
    ):
        run.tables.read("scores")
    with pytest.raises(ConfigError, match="no table 'score'; the tables are identity"):
        run.tables.read("score")


def test_insert_new_takes_each_key_once(make_run: Callable[..., Run]) -> None:
    run = make_run()

    def insert(*values: tuple[str, str | None, int]) -> int:
        frame = local_frame(run.spark, [(*value, 1) for value in values], VOCABULARY)
        # What is the same lies in several partitions.
        return run.tables.insert_new(frame.repartition(3), "vocabulary", ["field", "value"])

    assert insert(("item", "a", 3), ("item", "a", 3), ("item", None, 4)) == 2
    version = run.tables.version("vocabulary")
    assert insert(("item", "a", 9)) == 0
    assert run.tables.version("vocabulary") == version  # an insert of nothing writes no version
    assert insert(("item", "b", 5), ("item", "a", 9), ("item", None, 9)) == 1
    assert rows(run, "vocabulary") == {("item", "a", 3, 1), ("item", None, 4, 1), ("item", "b", 5, 1)}


def test_small_files_are_joined_after_some_commits_and_the_rows_stay(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_COMMITS_BETWEEN_COMPACTIONS", 4)
    run = make_run()

    def append(number: int) -> int:
        frame = local_frame(run.spark, [("item", str(number), number, 1)], VOCABULARY)
        run.tables.append(frame, "vocabulary")
        return run.tables.compact("vocabulary")

    assert [append(number) for number in range(3)] == [0, 0, 0]
    settings = {key: run.spark.conf.get(key, None) for key in tables._COMPACTION}
    assert append(3) == 4
    assert {key: run.spark.conf.get(key, None) for key in settings} == settings
    assert len(run.tables.read("vocabulary").inputFiles()) == 1
    assert rows(run, "vocabulary") == {("item", str(number), number, 1) for number in range(4)}
    assert (
        run.tables.written_versions["vocabulary"] == 3
    )  # what the run wrote, not what was tidied up after it
    assert [append(number) for number in (4, 5, 6)] == [0, 0, 0]
    run.tables.overwrite(run.tables.read("vocabulary"), "vocabulary", note={"made": 1})
    assert [append(number) for number in (7, 8, 9)] == [0, 0, 0]
    assert append(10) > 1
    run.tables.overwrite(run.tables.read("vocabulary"), "vocabulary", note={"made": 2})
    run.tables.renew_note("vocabulary", {"made": 3})
    run.tables.renew_note("vocabulary", {"made": 4})
    monkeypatch.setattr(tables, "_COMMITS_BETWEEN_COMPACTIONS", 2)
    assert run.tables.compact("vocabulary") == 0  # one file: nothing to join
    assert run.tables.note_of("vocabulary") == {"made": 4}


def test_small_files_are_joined_where_the_log_has_been_cleaned_up(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table that is written once a week, the log never holds a month of nights."""
    monkeypatch.setattr(tables, "_COMMITS_BETWEEN_COMPACTIONS", 12)
    run = make_run()
    for number in range(12):  # Delta writes a checkpoint at the tenth
        frame = local_frame(run.spark, [("item", str(number), number, 1)], VOCABULARY)
        run.tables.append(frame, "vocabulary")
        assert number == 11 or run.tables.compact("vocabulary") == 0
    log = Path(run.tables.path("vocabulary")) / "_delta_log"
    for version in range(10):
        (log / f"{version:020}.json").unlink()
    assert run.tables.compact("vocabulary") == 12
    assert run.tables.compact("vocabulary") == 0


def test_where_nothing_is_committed_nothing_is_counted(make_run: Callable[..., Run]) -> None:
    run = make_run()
    frame = local_frame(run.spark, [("one", 1), ("two", 2), ("two", 3)], "target STRING, score INT")
    frame = frame.withColumn("as_of", F.lit("2023-12-20").cast("timestamp"))
    assert run.tables.overwrite(frame, "scores") == 3
    version = run.tables.version("scores")
    again = run_builder(run.spark, run.config.workspace)(run.config)
    assert again.tables.overwrite(frame.limit(0), "scores", where="target = 'three'") == 0
    assert again.tables.version("scores") == version
    assert again.tables.written_versions == {}


def test_overwriting_a_slice_leaves_the_others(make_run: Callable[..., Run]) -> None:
    run = make_run()

    def scored(target: str, *scores: int) -> DataFrame:
        rows = [(target, score) for score in scores]
        return local_frame(run.spark, rows, "target STRING, score INT").withColumn(
            "as_of", F.lit("2023-12-20").cast("timestamp")
        )

    def put(target: str, *scores: int) -> int:
        frame = scored(target, *scores)
        return run.tables.overwrite(frame, "scores", where=f"target = '{target}'")

    assert put("one", 1, 2) == 2
    assert put("two", 7) == 1
    assert put("one", 5) == 1
    assert {row[:2] for row in rows(run, "scores")} == {("one", 5), ("two", 7)}
    with pytest.raises(DataQualityError, match="table 'scores' was not written"):
        run.tables.overwrite(scored("two", 8), "scores", where="target = 'one'")
    assert {row[:2] for row in rows(run, "scores")} == {("one", 5), ("two", 7)}
    first = run.tables.read("scores", version=0)
    assert {tuple(row)[:2] for row in first.collect()} == {("one", 1), ("one", 2)}
    assert run.tables.read_versions["scores"] == 0


def test_files_are_those_of_the_version(make_run: Callable[..., Run]) -> None:
    run = make_run()

    def put(number: int) -> int:
        frame = local_frame(run.spark, [(number, "queried")], "n INT, block_kind STRING")
        run.tables.overwrite(frame, "training_blocks", partition_by=["block_kind"])
        return run.tables.version("training_blocks")

    def numbers(version: int, where: str | None = None) -> list[int]:
        files = run.tables.files("training_blocks", version, where)
        return [
            n for url in files for n in pq.ParquetFile(url.removeprefix("file://")).read()["n"].to_pylist()
        ]

    first, second = put(1), put(2)
    assert numbers(first) == [1]
    assert numbers(second) == [2]
    assert numbers(second, "block_kind = 'queried'") == [2]
    assert numbers(second, "block_kind = 'plain'") == []


@pytest.mark.parametrize(
    ("feature", "setting"),
    [
        ("deletion vectors", "'delta.enableDeletionVectors' = true"),
        (
            "column mapping",
            "'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = 2, 'delta.minWriterVersion' = 5",
        ),
    ],
)
def test_files_that_only_delta_can_read_are_refused(
    make_run: Callable[..., Run], feature: str, setting: str
) -> None:
    """Also once the table was written again; a folder of its own makes an end of it."""
    run = make_run()
    blocks = local_frame(run.spark, [(1, "queried")], "n INT, block_kind STRING")

    def files() -> list[str]:
        run.tables.overwrite(blocks, "training_blocks", partition_by=["block_kind"])
        return run.tables.files("training_blocks", run.tables.version("training_blocks"))

    assert files()
    folder = run.tables.path("training_blocks")
    run.spark.sql(f"ALTER TABLE delta.`{folder}` SET TBLPROPERTIES ({setting})")
    with pytest.raises(DataQualityError) as caught:
        files()
    assert str(caught.value) == (
        f"table 'training_blocks' has {feature}, so its Parquet files cannot be read without Delta, and writing it "
        f"again keeps that: move its folder {folder} away and run the stage 'snapshot' again"
    )
    shutil.move(folder, f"{folder}-away")
    assert files()


def test_raw_ids_are_in_the_identity_map_and_nowhere_else(prepared: Prepared) -> None:
    tables = prepared.data.root / "tables"
    found: dict[str, set[str]] = {}
    for path in tables.rglob("*.parquet"):
        name = path.relative_to(tables).parts[0]
        table: pa.Table = pq.ParquetFile(path).read()
        ids = {text for text in texts(table.to_pydict()) if "RAW-CUSTOMER" in text}
        found.setdefault(name, set()).update(ids)
    assert found.pop("identity") == set(prepared.data.everyone)
    assert set(found) >= {"events", "quarantine", "consent", "sequences", "examples", "training_blocks"}
    assert {name: ids for name, ids in found.items() if ids} == {}


def test_an_event_carries_the_key_of_its_customer(prepared: Prepared) -> None:
    keys = {keyed_pseudonym(SECRET.encode(), raw) for raw in prepared.data.everyone}
    known = prepared.run.tables.read("events").select("customer_key").distinct().collect()
    assert {row["customer_key"] for row in known} == keys
    assert all(len(key) == 32 for key in keys)


def test_the_transaction_logs_know_no_customer(prepared: Prepared) -> None:
    keys = [keyed_pseudonym(SECRET.encode(), raw) for raw in prepared.data.everyone]
    logs = [path for path in Path(prepared.data.root, "tables").rglob("_delta_log/*") if path.is_file()]
    text = "\n".join(path.read_bytes().decode("utf-8", "replace") for path in logs)
    assert '\\"minValues\\":{\\"event_time\\"' in text  # what is not about customers has its statistics
    assert "RAW-CUSTOMER" not in text
    assert not [key for key in keys if key in text]
