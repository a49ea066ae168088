"""Tables: versions, slices, compaction and statistics. Raw ids are only in the table `identity`."""

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
from lam_spark.runtime.context import RunContext
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.tables import maintenance
from lam_spark.storage.tables.maintenance import compact
from tests.support.shop import context_builder, key_of, keys_of
from tests.support.tables import Prepared

VOCABULARY = "field STRING, value STRING, token_id INT, count_when_added BIGINT"


def rows(ctx: RunContext, name: str) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in ctx.tables.read(name).collect()}


def texts(values: Any) -> Iterator[str]:
    """All strings of a nested value."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from (str(key), *texts(value))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from texts(value)


def test_reading_a_missing_table_names_the_stage_that_writes_it(
    make_context: Callable[..., RunContext],
) -> None:
    ctx = make_context()
    with pytest.raises(
        ConfigError, match=r"expected a table 'scores' .*, found none: run the stage 'score' first"
    ):
        ctx.tables.read("scores")
    with pytest.raises(ConfigError, match="no table 'score'; the tables are identity"):
        ctx.tables.read("score")


def test_insert_missing_inserts_each_key_once(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context()

    def insert(*values: tuple[str, str | None, int]) -> int:
        frame = local_frame(ctx.spark, [(*value, 1) for value in values], VOCABULARY)
        # Duplicates are spread over several partitions.
        return ctx.tables.insert_missing(frame.repartition(3), "vocabulary", ["field", "value"])

    assert insert(("item", "a", 3), ("item", "a", 3), ("item", None, 4)) == 2
    version = ctx.tables.version("vocabulary")
    assert insert(("item", "a", 9)) == 0
    assert ctx.tables.version("vocabulary") == version  # inserting nothing makes no commit
    assert insert(("item", "b", 5), ("item", "a", 9), ("item", None, 9)) == 1
    assert rows(ctx, "vocabulary") == {("item", "a", 3, 1), ("item", None, 4, 1), ("item", "b", 5, 1)}


def test_small_files_are_compacted_after_some_commits_without_changing_rows(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_COMMITS_BETWEEN_COMPACTIONS", 4)
    ctx = make_context()

    def append(number: int) -> int:
        frame = local_frame(ctx.spark, [("item", str(number), number, 1)], VOCABULARY)
        ctx.tables.append(frame, "vocabulary")
        return compact(ctx.tables, "vocabulary")

    assert [append(number) for number in range(3)] == [0, 0, 0]
    settings = {key: ctx.spark.conf.get(key, None) for key in maintenance._COMPACTION}
    assert append(3) == 4
    assert {key: ctx.spark.conf.get(key, None) for key in settings} == settings
    assert len(ctx.tables.read("vocabulary").inputFiles()) == 1
    assert rows(ctx, "vocabulary") == {("item", str(number), number, 1) for number in range(4)}
    assert ctx.tables.written_versions["vocabulary"] == 3  # the version before the compaction
    assert [append(number) for number in (4, 5, 6)] == [0, 0, 0]
    ctx.tables.overwrite(ctx.tables.read("vocabulary"), "vocabulary", metadata={"number": 1})
    assert [append(number) for number in (7, 8, 9)] == [0, 0, 0]
    assert append(10) > 1
    ctx.tables.overwrite(ctx.tables.read("vocabulary"), "vocabulary", metadata={"number": 2})
    ctx.tables.touch_metadata("vocabulary", {"number": 3})
    ctx.tables.touch_metadata("vocabulary", {"number": 4})
    monkeypatch.setattr(maintenance, "_COMMITS_BETWEEN_COMPACTIONS", 2)
    assert compact(ctx.tables, "vocabulary") == 0  # there is only one file
    assert ctx.tables.commit_metadata("vocabulary") == {"number": 4}


def test_small_files_are_compacted_after_delta_has_removed_old_log_files(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta keeps log files for 30 days, which is few commits for a table that is written weekly."""
    monkeypatch.setattr(maintenance, "_COMMITS_BETWEEN_COMPACTIONS", 12)
    ctx = make_context()
    for number in range(12):  # Delta writes a checkpoint at the tenth
        frame = local_frame(ctx.spark, [("item", str(number), number, 1)], VOCABULARY)
        ctx.tables.append(frame, "vocabulary")
        assert number == 11 or compact(ctx.tables, "vocabulary") == 0
    log = Path(ctx.tables.path("vocabulary")) / "_delta_log"
    for version in range(10):
        (log / f"{version:020}.json").unlink()
    assert compact(ctx.tables, "vocabulary") == 12
    assert compact(ctx.tables, "vocabulary") == 0


def test_a_write_without_rows_makes_no_commit(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context()
    frame = local_frame(ctx.spark, [("one", 1), ("two", 2), ("two", 3)], "target STRING, score INT")
    frame = frame.withColumn("as_of", F.lit("2023-12-20").cast("timestamp"))
    assert ctx.tables.overwrite(frame, "scores") == 3
    version = ctx.tables.version("scores")
    again = context_builder(ctx.spark, ctx.config.workspace)(ctx.config)
    assert again.tables.overwrite(frame.limit(0), "scores", where="target = 'three'") == 0
    assert again.tables.version("scores") == version
    assert again.tables.written_versions == {}


def test_overwriting_a_slice_does_not_change_other_slices(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context()

    def scored(target: str, *scores: int) -> DataFrame:
        rows = [(target, score) for score in scores]
        return local_frame(ctx.spark, rows, "target STRING, score INT").withColumn(
            "as_of", F.lit("2023-12-20").cast("timestamp")
        )

    def overwrite(target: str, *scores: int) -> int:
        frame = scored(target, *scores)
        return ctx.tables.overwrite(frame, "scores", where=f"target = '{target}'")

    assert overwrite("one", 1, 2) == 2
    assert overwrite("two", 7) == 1
    assert overwrite("one", 5) == 1
    assert {row[:2] for row in rows(ctx, "scores")} == {("one", 5), ("two", 7)}
    with pytest.raises(DataQualityError, match="table 'scores' was not written"):
        ctx.tables.overwrite(scored("two", 8), "scores", where="target = 'one'")
    assert {row[:2] for row in rows(ctx, "scores")} == {("one", 5), ("two", 7)}
    first_version = ctx.tables.read("scores", version=0)
    assert {tuple(row)[:2] for row in first_version.collect()} == {("one", 1), ("one", 2)}
    assert ctx.tables.read_versions["scores"] == 0


def test_files_returns_the_files_of_a_version(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context()

    def overwrite(number: int) -> int:
        frame = local_frame(ctx.spark, [(number, "queried")], "n INT, block_kind STRING")
        ctx.tables.overwrite(frame, "training_blocks", partition_by=["block_kind"])
        return ctx.tables.version("training_blocks")

    def numbers(version: int, where: str | None = None) -> list[int]:
        files = ctx.tables.files("training_blocks", version, where)
        return [
            n for url in files for n in pq.ParquetFile(url.removeprefix("file://")).read()["n"].to_pylist()
        ]

    first, second = overwrite(1), overwrite(2)
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
    make_context: Callable[..., RunContext], feature: str, setting: str
) -> None:
    """Overwriting the table does not remove the feature; moving its folder does."""
    ctx = make_context()
    blocks = local_frame(ctx.spark, [(1, "queried")], "n INT, block_kind STRING")

    def files() -> list[str]:
        ctx.tables.overwrite(blocks, "training_blocks", partition_by=["block_kind"])
        return ctx.tables.files("training_blocks", ctx.tables.version("training_blocks"))

    assert files()
    folder = ctx.tables.path("training_blocks")
    ctx.spark.sql(f"ALTER TABLE delta.`{folder}` SET TBLPROPERTIES ({setting})")
    with pytest.raises(DataQualityError) as raised:
        files()
    assert str(raised.value) == (
        f"table 'training_blocks' has {feature}, so its Parquet files cannot be read without Delta, and "
        f"overwriting keeps that: move its folder {folder} away and run the stage 'snapshot' again"
    )
    shutil.move(folder, f"{folder}-away")
    assert files()


def test_raw_ids_are_only_in_the_table_identity(prepared: Prepared) -> None:
    tables = prepared.data.root / "tables"
    ids_by_table: dict[str, set[str]] = {}
    for path in tables.rglob("*.parquet"):
        name = path.relative_to(tables).parts[0]
        table: pa.Table = pq.ParquetFile(path).read()
        ids = {text for text in texts(table.to_pydict()) if "RAW-CUSTOMER" in text}
        ids_by_table.setdefault(name, set()).update(ids)
    assert ids_by_table.pop("identity") == set(prepared.data.everyone)
    assert set(ids_by_table) >= {
        "events",
        "quarantine",
        "consent",
        "sequences",
        "examples",
        "training_blocks",
    }
    assert {name: ids for name, ids in ids_by_table.items() if ids} == {}


def test_events_contain_customer_keys(prepared: Prepared) -> None:
    keys = keys_of(prepared.data.everyone)
    key_rows = prepared.ctx.tables.read("events").select("customer_key").distinct().collect()
    assert {row["customer_key"] for row in key_rows} == keys
    assert all(len(key) == 32 for key in keys)


def test_transaction_logs_contain_no_customer_keys(prepared: Prepared) -> None:
    keys = [key_of(raw) for raw in prepared.data.everyone]
    logs = [path for path in Path(prepared.data.root, "tables").rglob("_delta_log/*") if path.is_file()]
    text = "\n".join(path.read_bytes().decode("utf-8", "replace") for path in logs)
    assert '\\"minValues\\":{\\"event_time\\"' in text  # other columns have statistics
    assert "RAW-CUSTOMER" not in text
    assert not [key for key in keys if key in text]
