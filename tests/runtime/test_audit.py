"""The audit chain: a changed, lost or added entry is found."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError
from lam_spark.report.stage import report
from lam_spark.runtime.audit import AuditError, Chain, Cost, latest_entries, verify_chain
from lam_spark.runtime.context import RunContext, StageResult, sql_literal
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import context_builder


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A workspace with three entries; the last is of a stage that failed."""
    ctx = context_builder(spark, tmp_path_factory.mktemp("audit") / "shop")()
    ctx.tables.read_versions["events"] = 7
    chain = Chain(ctx)
    chain.append("ingest", StageResult("", {"events": 5}), Cost(1.0, 0.5))
    chain.append("train", StageResult("", {"tokens": 9}, {"digest": "abc"}), Cost(2.0, None))
    Chain(ctx).append("ingest", None, Cost(3.0, None), error="DataQualityError: too much")
    return run


@contextlib.contextmanager
def rewritten(ctx: RunContext, frame: DataFrame) -> Iterator[None]:
    """The chain has other rows inside; however that ends, those of before are put back."""
    kept = ctx.tables.read("audit", ctx.tables.version("audit"))
    ctx.tables.overwrite(frame, "audit")
    try:
        yield
    finally:
        ctx.tables.overwrite(kept, "audit")


def test_an_entry_tells_what_the_stage_did(ctx: RunContext) -> None:
    assert verify_chain(ctx) == 3
    entries = latest_entries(ctx)
    assert set(entries) == {"ingest", "train"}  # of ingest the one that went well
    assert entries["ingest"]["counts"] == {"events": 5}
    assert entries["ingest"]["tables_read"] == {"events": 7}
    assert entries["train"]["facts"] == {"digest": "abc"}
    assert entries["train"]["config"]["name"] == "small_shop"
    statuses = ctx.tables.read("audit").orderBy("sequence").select("status", "entry").collect()
    assert [row["status"] for row in statuses] == ["done", "done", "failed"]
    assert json.loads(statuses[2]["entry"])["error"] == "DataQualityError: too much"


@pytest.mark.parametrize(
    ("change", "first_broken"),
    [
        (lambda t: t.withColumn("entry", F.expr("replace(entry, '\"events\": 5', '\"events\": 6')")), 0),
        (lambda t: t.where("sequence != 1"), 1),
        (lambda t: t.union(t.where("sequence = 2")), 3),
        (lambda t: t.withColumn("status", F.lit("done")), 2),
        (lambda t: t.withColumn("recorded_at", F.expr("recorded_at - INTERVAL 1 MICROSECOND")), 0),
    ],
    ids=["changed", "removed", "added", "called done", "of another time"],
)
def test_a_chain_that_was_touched_is_found(ctx: RunContext, change: Any, first_broken: int) -> None:
    with rewritten(ctx, change(ctx.tables.read("audit"))):
        for reader in (verify_chain, report):
            with pytest.raises(AuditError, match=f"the audit chain breaks at entry {first_broken} "):
                reader(ctx)
    assert verify_chain(ctx) == 3


DAY = dt.date(2023, 12, 2)


class Nights:
    """Stages that say in the audit that they ran, and leave a row in their table."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self._run = context_builder(spark, root)()
        # One for all: each that is made asks Spark for the newest entry.
        self._chain = Chain(self._run)

    def of(self, target: str = "response", run_id: str = "", day: dt.date = DAY) -> RunContext:
        scoring = self._run.config.scoring.model_copy(update={"target": target})
        config = self._run.config.model_copy(update={"as_of": day, "scoring": scoring})
        return dataclasses.replace(self._run, run_id=run_id, config=config)

    def tell(
        self, stage: str, run_id: str, target: str = "response", day: dt.date = DAY, **facts: Any
    ) -> None:
        self._chain._run = self.of(target, run_id, day)
        self._chain.append(stage, StageResult(stage, facts=facts), Cost(1.0, None))

    def publish(self, table: str, run_id: str, target: str = "response", day: dt.date = DAY) -> None:
        ctx = self.of(target, run_id, day)
        frame = local_frame(ctx.spark, [(target, run_id)], "target STRING, run_id STRING")
        frame = frame.withColumn("as_of", F.expr(sql_literal(ctx.as_of)))
        of_target = f"target = '{target}' AND " if table == "scores" else ""
        ctx.tables.overwrite(frame, table, where=f"{of_target}as_of = {sql_literal(ctx.as_of)}")

    def score(self, run_id: str, digest: str, **of: Any) -> None:
        self.publish("scores", run_id, **of)
        self.tell("score", run_id, **of, digest=digest, model_version=f"of {digest}")

    def deliver(self, run_id: str, scores: str, **of: Any) -> None:
        self.publish("contact_list", run_id, **of)
        self.tell("deliver", run_id, **of, scores_run_id=scores)

    def refusal(self, **of: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            report(self.of(**of))
        return str(raised.value)

    def shown(self, **of: Any) -> dict[str, str]:
        """By stage, the run whose record the report would show."""
        return {stage: entry["run_id"] for stage, entry in report._entries(self.of(**of)).items()}


@pytest.fixture(scope="module")
def first_nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one model was trained and held against the test period, scored with and listed."""
    root = tmp_path_factory.mktemp("nights") / "shop"
    made = Nights(spark, root)
    made.tell("ingest", "1")
    made.tell("train", "2", digest="one")
    made.score("3", "one")
    made.tell("evaluate", "4", digest="one", auc=math.nan)
    made.deliver("5", scores="3")
    return root


@pytest.fixture
def nights(spark: SparkSession, first_nights: Path, tmp_path: Path) -> Nights:
    """More nights of a copy of that workspace."""
    shutil.copytree(first_nights, tmp_path / "shop")
    return Nights(spark, tmp_path / "shop")


FIRST = {"ingest": "1", "train": "2", "score": "3", "evaluate": "4", "deliver": "5"}


def test_a_report_is_of_its_own_day(nights: Nights) -> None:
    """What was scored for another day is not in it: it asks for the stages of this one."""
    other = dt.date(2023, 12, 3)
    told = nights.refusal(day=other)
    assert told.startswith(
        "the report of 2023-12-03 needs records of the stages score, deliver, of score and deliver"
    )
    nights.score("6", "one", day=other)
    assert nights.refusal(day=other).startswith(
        "the report of 2023-12-03 needs records of the stages deliver, of"
    )
    nights.deliver("7", scores="6", day=other)
    assert nights.shown(day=other) == FIRST | {"score": "6", "deliver": "7"}
    assert nights.shown() == FIRST
    # And so are the tables' versions in it, although the tables have moved on.
    for day, version in ((DAY, 0), (other, 1)):
        told = report._table_versions(report._entries(nights.of(day=day)))
        assert (told["scores"], told["contact_list"]) == (version, version)


def test_a_report_is_of_the_model_that_gave_the_scores(nights: Nights) -> None:
    """Whatever has run since with another one, also where a record holds what is no number."""
    nights.tell("train", "6", digest="two")
    nights.tell("evaluate", "7", digest="two")
    assert nights.shown() == FIRST
    nights.score("8", "two")
    assert "needs records of the stages deliver" in nights.refusal()  # of the new scores
    nights.deliver("9", scores="8")
    of_two = {"ingest": "1", "train": "6", "evaluate": "7", "score": "8", "deliver": "9"}
    assert nights.shown() == of_two
    nights.score("10", "one")  # the alias went back
    nights.deliver("11", scores="10")
    assert nights.shown() == FIRST | {"score": "10", "deliver": "11"}
    nights.score("12", "three")
    nights.deliver("13", scores="12")
    told = "of model version of three, of which no record of train or evaluate tells here: run train, score, evaluate"
    assert told in nights.refusal()
    nights.tell("train", "14", digest="three")
    assert "no record of evaluate tells here: run score, evaluate, deliver with" in nights.refusal()


def test_a_report_is_of_one_target(nights: Nights) -> None:
    nights.score("6", "one", target="churn")
    assert nights.shown() == FIRST
    nights.deliver("7", scores="6", target="churn")
    assert "no record of evaluate tells here" in nights.refusal(target="churn")  # that was another question
    nights.tell("evaluate", "8", target="churn", digest="one")
    assert nights.shown(target="churn") == FIRST | {"score": "6", "evaluate": "8", "deliver": "7"}
    # The day has one list, and it is the other target's now.
    assert "needs records of the stages deliver, of score and deliver" in nights.refusal()


def test_scores_that_nothing_is_recorded_of_are_not_reported_on(nights: Nights) -> None:
    """A run that dies after its table is written, before it can say so."""
    nights.publish("scores", "6")
    assert "needs records of the stages score, deliver" in nights.refusal()
    nights.deliver("7", scores="6")
    assert "needs records of the stages score, of score and deliver" in nights.refusal()
