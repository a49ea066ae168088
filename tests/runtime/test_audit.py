"""The audit chain detects changed, removed and added entries, and entries of another format."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import AuditError
from lam_spark.report.stage import report
from lam_spark.runtime.audit import AuditChain, AuditEntry, StageCost, latest_entries, verify_chain
from lam_spark.runtime.context import RunContext
from lam_spark.runtime.results import StageResult
from tests.support.shop import context_builder


@dataclass(frozen=True)
class Counted(StageResult):
    """A result with a number and a text."""

    events: int
    digest: str = ""


@pytest.fixture(scope="module")
def ctx(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A workspace with three audit entries. The last one belongs to a failed stage."""
    ctx = context_builder(spark, tmp_path_factory.mktemp("audit") / "shop")()
    ctx.tables.read_versions["events"] = 7
    chain = AuditChain(ctx.tables, ctx.config, ctx.run_id)
    chain.append("ingest", Counted(5), StageCost(1.0, 0.5))
    chain.append("train", Counted(9, "abc"), StageCost(2.0, None))
    other_run = AuditChain(ctx.tables, ctx.config, ctx.run_id)
    other_run.append("ingest", None, StageCost(3.0, None), error="DataQualityError: too much")
    return ctx


@contextlib.contextmanager
def rewritten(ctx: RunContext, frame: DataFrame) -> Iterator[None]:
    """Replace the rows of the audit inside the context and restore them on exit."""
    original = ctx.tables.read("audit", ctx.tables.version("audit"))
    ctx.tables.overwrite(frame, "audit")
    try:
        yield
    finally:
        ctx.tables.overwrite(original, "audit")


def test_an_entry_contains_result_tables_and_configuration(ctx: RunContext) -> None:
    assert verify_chain(ctx.tables) == 3
    entries = latest_entries(ctx.tables)
    assert set(entries) == {"ingest", "train"}  # for ingest, the successful entry
    assert entries["ingest"].result_of(Counted) == Counted(5)
    assert entries["ingest"].tables_read == {"events": 7}
    assert entries["train"].result_of(Counted) == Counted(9, "abc")
    assert entries["train"].config["name"] == "small_shop"
    rows = ctx.tables.read("audit").orderBy("sequence").select("status", "entry").collect()
    assert [row["status"] for row in rows] == ["done", "done", "failed"]
    assert json.loads(rows[2]["entry"])["error"] == "DataQualityError: too much"


def test_a_started_entry_is_part_of_the_chain_and_no_result(spark: SparkSession, tmp_path: Path) -> None:
    ctx = context_builder(spark, tmp_path / "shop")()
    chain = AuditChain(ctx.tables, ctx.config, ctx.run_id)
    chain.start("deliver")
    assert latest_entries(ctx.tables) == {}
    chain.append("deliver", Counted(5), StageCost(1.0, None))
    assert verify_chain(ctx.tables) == 2
    rows = ctx.tables.read("audit").orderBy("sequence").select("status").collect()
    assert [row["status"] for row in rows] == ["started", "done"]
    assert latest_entries(ctx.tables)["deliver"].result_of(Counted) == Counted(5)


def test_a_killed_stage_has_one_entry_wherever_its_run_was_killed(
    spark: SparkSession, tmp_path: Path
) -> None:
    ctx = context_builder(spark, tmp_path / "shop")()
    killed = AuditChain(ctx.tables, ctx.config, "killed")
    killed.begin("train")
    file = tmp_path / "shop" / "tables" / "running_stage.json"
    content = file.read_text()
    next_run = AuditChain(ctx.tables, ctx.config, "next")
    assert next_run.append_killed() is not None
    file.write_text(content)  # killed again, after the commit of the entry
    assert next_run.append_killed() is None
    assert not file.exists()
    next_run.append("consent", Counted(5), StageCost(1.0, None))
    assert verify_chain(ctx.tables) == 2
    rows = ctx.tables.read("audit").orderBy("sequence").select("run_id", "stage", "status").collect()
    assert [tuple(row) for row in rows] == [("killed", "train", "failed"), ("next", "consent", "done")]


@pytest.mark.parametrize(
    ("change", "first_broken"),
    [
        (lambda t: t.withColumn("entry", F.expr("replace(entry, '\"events\": 5', '\"events\": 6')")), 0),
        (lambda t: t.where("sequence != 1"), 1),
        (lambda t: t.union(t.where("sequence = 2")), 3),
        (lambda t: t.withColumn("status", F.lit("done")), 2),
        (lambda t: t.withColumn("recorded_at", F.expr("recorded_at - INTERVAL 1 MICROSECOND")), 0),
    ],
    ids=["changed", "removed", "added", "another status", "another time"],
)
def test_a_changed_chain_is_detected(ctx: RunContext, change: Any, first_broken: int) -> None:
    with rewritten(ctx, change(ctx.tables.read("audit"))):
        message = f"the audit chain breaks at entry {first_broken} "
        with pytest.raises(AuditError, match=message):
            verify_chain(ctx.tables)
        with pytest.raises(AuditError, match=message):
            report(ctx)
    assert verify_chain(ctx.tables) == 3


def test_an_entry_of_another_format_is_refused() -> None:
    entry = {"stage": "train", "run_id": "20260101T000000-abcdef"}
    for stored in (entry, entry | {"format": 1}):
        with pytest.raises(AuditError) as error:
            AuditEntry.from_json(json.dumps(stored))
        assert str(error.value) == (
            f"expected audit entries of format 2, found format {stored.get('format')} (stage train, run "
            "20260101T000000-abcdef): it was written by another version of lam_spark. Run the stages again in a new "
            "root"
        )


def test_a_result_of_another_type_is_refused_with_stage_and_run(ctx: RunContext) -> None:
    @dataclass(frozen=True)
    class Other(StageResult):
        tokens: int

    entry = latest_entries(ctx.tables)["train"]
    with pytest.raises(
        AuditError, match=f"audit entry of the stage 'train', run {ctx.run_id}: expected a result Other"
    ):
        entry.result_of(Other)
