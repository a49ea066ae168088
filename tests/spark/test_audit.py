"""The audit chain: a changed, lost or added entry is found."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import run_builder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.audit.record import AuditError, Chain, Cost, latest_entries, verify_chain
from lam_spark.errors import ConfigError
from lam_spark.report import stage as report
from lam_spark.run import Run, StageResult


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A workspace with three entries; the last is of a stage that failed."""
    run = run_builder(spark, tmp_path_factory.mktemp("audit") / "shop")()
    run.tables.read_versions["events"] = 7
    chain = Chain(run)
    chain.append("ingest", StageResult("", {"events": 5}), Cost(1.0, 0.5))
    chain.append("train", StageResult("", {"tokens": 9}, {"digest": "abc"}), Cost(2.0, None))
    Chain(run).append("ingest", None, Cost(3.0, None), error="DataQualityError: too much")
    return run


def rewritten(run: Run, frame: DataFrame) -> Iterator[Run]:
    """The chain with other rows, put back afterwards."""
    kept = run.tables.read("audit", run.tables.version("audit"))
    run.tables.overwrite(frame, "audit")
    yield run
    run.tables.overwrite(kept, "audit")


def test_an_entry_tells_what_the_stage_did(run: Run) -> None:
    assert verify_chain(run) == 3
    entries = latest_entries(run)
    assert set(entries) == {"ingest", "train"}  # of ingest the one that went well
    assert entries["ingest"]["counts"] == {"events": 5}
    assert entries["ingest"]["tables_read"] == {"events": 7}
    assert entries["train"]["facts"] == {"digest": "abc"}
    assert entries["train"]["config"]["name"] == "small_shop"
    statuses = run.tables.read("audit").orderBy("sequence").select("status", "entry").collect()
    assert [row["status"] for row in statuses] == ["done", "done", "failed"]
    assert json.loads(statuses[2]["entry"])["error"] == "DataQualityError: too much"


@pytest.mark.parametrize(
    ("change", "first_broken"),
    [
        (lambda t: t.withColumn("entry", F.expr("replace(entry, '\"events\": 5', '\"events\": 6')")), 0),
        (lambda t: t.where("sequence != 1"), 1),
        (lambda t: t.union(t.where("sequence = 2")), 3),
        (lambda t: t.withColumn("status", F.lit("done")), 2),
    ],
    ids=["changed", "removed", "added", "called done"],
)
def test_a_chain_that_was_touched_is_found(run: Run, change: Any, first_broken: int) -> None:
    for touched in rewritten(run, change(run.tables.read("audit"))):
        for reader in (verify_chain, report.run):
            with pytest.raises(AuditError, match=f"the audit chain breaks at entry {first_broken} "):
                reader(touched)
    assert verify_chain(run) == 3


def test_a_report_is_of_its_own_day(run: Run) -> None:
    """What was scored for another day is not in it: it asks for the stages of this one."""
    other = run.config.model_copy(update={"as_of": dt.date(2023, 12, 1)})
    chain = Chain(dataclasses.replace(run, config=other))
    for name in ("score", "deliver"):
        chain.append(name, StageResult(name), Cost(1.0, None))
    day = {"$.as_of": run.config.as_of.isoformat()}
    assert {"score", "deliver"} <= set(latest_entries(run))
    assert set(latest_entries(run, {"score": day, "deliver": day})) == {"ingest", "train"}
    needed = "report of 2023-12-20 needs the stages score, evaluate, deliver to have run first; score and deliver with"
    with pytest.raises(ConfigError, match=needed):
        report.run(run)


def test_a_report_is_of_one_model(run: Run) -> None:
    """Of the one that gave the scores of the list, whatever has run since with another."""
    day = dt.date(2023, 12, 2)

    def tells(stage: str, number: int, **facts: object) -> None:
        of_run = dataclasses.replace(
            run, run_id=f"run {number}", config=run.config.model_copy(update={"as_of": day})
        )
        Chain(of_run).append(stage, StageResult(stage, facts=facts), Cost(number, None))

    def refuses(match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            report.run(dataclasses.replace(run, config=run.config.model_copy(update={"as_of": day})))

    tells("train", 1, digest="one")
    tells("score", 2, digest="one", model_version="1")
    tells("evaluate", 3, digest="other")
    tells("deliver", 4, scores_run_id="run 2")
    refuses(
        "scores of 2023-12-02 are of model version 1, of which no run of evaluate tells here: run the stages"
    )
    tells("evaluate", 5, digest="one")
    tells("train", 6, digest="two")
    tells("evaluate", 7, digest="two")
    found = report._entries(dataclasses.replace(run, config=run.config.model_copy(update={"as_of": day})))
    assert {name: entry["seconds"] for name, entry in found.items() if name != "ingest"} == {
        "train": 1,
        "score": 2,
        "deliver": 4,
        "evaluate": 5,
    }
    tells("score", 8, digest="two", model_version="2")
    refuses(
        "made of the scores of run run 2, but run run 8 has scored since: run the stage 'deliver' with the same"
    )
    tells("deliver", 9, scores_run_id="run 8")
    tells("score", 10, digest="three", model_version="3")
    tells("deliver", 11, scores_run_id="run 10")
    refuses("model version 3, of which no run of train or evaluate tells here")
