"""Which audit entries a report is made of: those of its day, its target and the model that gave the scores."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.delivery.stage import DeliverResult
from lam_spark.errors import ConfigError
from lam_spark.evaluation.results import CalibrationMetrics, EvaluateResult, MeasuredRankings, RankingMetrics
from lam_spark.report.entries import ListEntries, entries_of_list
from lam_spark.runtime.audit import AuditChain, StageCost
from lam_spark.runtime.results import StageResult
from lam_spark.scoring.stage import ScoreResult
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.time import sql_literal
from lam_spark.training.stage import TrainResult
from lam_spark.training.summary import TrainingSummary
from tests.support.shop import context_builder

DAY = dt.date(2023, 12, 2)
NAN = float("nan")
RANKING = RankingMetrics(NAN, (NAN, NAN), (NAN, NAN), ())
COST = StageCost(1.0, None)


def trained(digest: str) -> TrainResult:
    summary = TrainingSummary(
        parameters=1,
        tokens=2,
        flops=3.0,
        world_size=1,
        seconds=4.0,
        gpu_seconds=None,
        core_seconds=4.0,
        best_epoch=1,
        seed=0,
        validation={"AUC": 0.5},
    )
    return TrainResult("small_shop", 1, "champion", digest, summary, (), {})


def evaluated(digest: str) -> EvaluateResult:
    calibration = CalibrationMetrics((), NAN, NAN, NAN)
    period = ("2023-10-01", "2023-11-30")
    rankings = MeasuredRankings(RANKING, RANKING, (NAN, NAN), (NAN, NAN), calibration)
    return EvaluateResult("response", 1, 0, 0, digest, period, rankings, "", {})


class Nights:
    """Stages that append an audit entry and leave a row in their table."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self._ctx = context_builder(spark, root)()
        # One chain for all entries: each new one asks Spark for the newest entry.
        self._chain = AuditChain(self._ctx.tables, self._ctx.config, "")

    def config(self, target: str = "response", day: dt.date = DAY) -> Config:
        scoring = self._ctx.config.scoring.model_copy(update={"target": target})
        return self._ctx.config.model_copy(update={"as_of": day, "scoring": scoring})

    def append(
        self, stage: str, run_id: str, result: StageResult, target: str = "response", day: dt.date = DAY
    ) -> None:
        self._chain._config, self._chain._run_id = self.config(target, day), run_id
        self._chain.append(stage, result, COST)

    def publish(self, table: str, run_id: str, target: str = "response", day: dt.date = DAY) -> None:
        as_of = sql_literal(self._ctx.config.instant(day))
        frame = local_frame(self._ctx.spark, [(target, run_id)], "target STRING, run_id STRING")
        frame = frame.withColumn("as_of", F.expr(as_of))
        of_target = f"target = '{target}' AND " if table == "scores" else ""
        self._ctx.tables.overwrite(frame, table, where=f"{of_target}as_of = {as_of}")

    def score(
        self, run_id: str, digest: str, version: int, target: str = "response", day: dt.date = DAY
    ) -> None:
        self.publish("scores", run_id, target, day)
        self.append("score", run_id, ScoreResult(1, 0, 1, 1, 1, {}, digest, version, {}), target, day)

    def deliver(self, run_id: str, scores: str, target: str = "response", day: dt.date = DAY) -> None:
        self.publish("contact_list", run_id, target, day)
        now = dt.datetime(2023, 12, 2, tzinfo=dt.UTC)
        result = DeliverResult(0, 0, 1, 0, 0, 1, "list.csv", now, scores, "list.json", now, "", ())
        self.append("deliver", run_id, result, target, day)

    def entries(self, target: str = "response", day: dt.date = DAY) -> ListEntries:
        return entries_of_list(self._ctx.tables, target, day, self._ctx.config.instant(day))

    def refusal(self, target: str = "response", day: dt.date = DAY) -> str:
        with pytest.raises(ConfigError) as error:
            self.entries(target, day)
        return str(error.value)

    def runs(self, target: str = "response", day: dt.date = DAY) -> dict[str, str]:
        """Stage -> run whose entry the report shows."""
        return {stage: entry.run_id for stage, entry in self.entries(target, day).by_stage.items()}


@pytest.fixture(scope="module")
def first_nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one model was trained, evaluated, used for scoring and for a list."""
    root = tmp_path_factory.mktemp("nights") / "shop"
    nights = Nights(spark, root)
    nights.append("ingest", "1", trained("not read"))
    nights.append("train", "2", trained("one"))
    nights.score("3", "one", 1)
    nights.append("evaluate", "4", evaluated("one"))
    nights.deliver("5", scores="3")
    return root


@pytest.fixture
def nights(spark: SparkSession, first_nights: Path, tmp_path: Path) -> Nights:
    """More nights in a copy of that workspace."""
    shutil.copytree(first_nights, tmp_path / "shop")
    return Nights(spark, tmp_path / "shop")


FIRST = {"ingest": "1", "train": "2", "score": "3", "evaluate": "4", "deliver": "5"}


def test_a_report_is_about_its_own_day(nights: Nights) -> None:
    """Scores of another day are not in it: the report asks for the stages of its own day."""
    other = dt.date(2023, 12, 3)
    assert nights.refusal(day=other).startswith(
        "the report of 2023-12-03 needs audit entries of the stages score, deliver, of score and deliver"
    )
    nights.score("6", "one", 1, day=other)
    assert nights.refusal(day=other).startswith(
        "the report of 2023-12-03 needs audit entries of the stages deliver, of"
    )
    nights.deliver("7", scores="6", day=other)
    assert nights.runs(day=other) == FIRST | {"score": "6", "deliver": "7"}
    assert nights.runs() == FIRST
    # So are its table versions, although the tables have moved on.
    for day, version in ((DAY, 0), (other, 1)):
        versions = nights.entries(day=day).table_versions
        assert (versions["scores"], versions["contact_list"]) == (version, version)


def test_a_report_is_about_the_model_that_gave_the_scores(nights: Nights) -> None:
    """Whatever has run since with another model; metrics that are not numbers are no obstacle."""
    nights.append("train", "6", trained("two"))
    nights.append("evaluate", "7", evaluated("two"))
    assert nights.runs() == FIRST
    nights.score("8", "two", 2)
    assert "needs audit entries of the stages deliver" in nights.refusal()  # of the new scores
    nights.deliver("9", scores="8")
    assert nights.runs() == {"ingest": "1", "train": "6", "evaluate": "7", "score": "8", "deliver": "9"}
    nights.score("10", "one", 1)  # the alias was moved back
    nights.deliver("11", scores="10")
    assert nights.runs() == FIRST | {"score": "10", "deliver": "11"}
    nights.score("12", "three", 3)
    nights.deliver("13", scores="12")
    message = (
        "come from model version 3, for which there is no audit entry of train or evaluate: run train, score"
    )
    assert message in nights.refusal()
    nights.append("train", "14", trained("three"))
    assert "no audit entry of evaluate: run score, evaluate, deliver with" in nights.refusal()


def test_a_report_is_about_one_target(nights: Nights) -> None:
    nights.score("6", "one", 1, target="churn")
    assert nights.runs() == FIRST
    nights.deliver("7", scores="6", target="churn")
    assert "no audit entry of evaluate" in nights.refusal(target="churn")  # that was another target
    nights.append("evaluate", "8", evaluated("one"), target="churn")
    assert nights.runs(target="churn") == FIRST | {"score": "6", "evaluate": "8", "deliver": "7"}
    # A day has one list, and it is the other target's now.
    assert "needs audit entries of the stages deliver, of score and deliver" in nights.refusal()


def test_scores_without_an_audit_entry_are_not_reported(nights: Nights) -> None:
    """A run died after it wrote its table and before it appended its entry."""
    nights.publish("scores", "6")
    assert "needs audit entries of the stages score, deliver" in nights.refusal()
    nights.deliver("7", scores="6")
    assert "needs audit entries of the stages score, of score and deliver" in nights.refusal()
