"""Nothing is measured by the labels of another question: stages refuse what was made for another configuration."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.consent.record import RefreshRecord
from lam_spark.delivery.stage import deliver
from lam_spark.errors import DataQualityError, LamSparkError
from lam_spark.evaluation.stage import evaluate
from lam_spark.labels.freshness import PERIODS
from lam_spark.labels.stage import build_examples
from lam_spark.model.card import TEST_START
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.embeddings import embed
from lam_spark.scoring.stage import score
from lam_spark.scoring.udf import load_registered_model
from lam_spark.sequences.stage import build_sequences
from lam_spark.sequences.tokens import UNKNOWN
from lam_spark.training.preparation import require_snapshot, specification
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.stage import train
from lam_spark.training_data.columns import layout_of, layout_with
from lam_spark.training_data.stage import build_snapshot
from tests.support.shop import ONE_TARGET, STARTED_AT, context_builder
from tests.support.tables import event, events_frame, publish, register
from tests.support.tiny import random_model

Build = Callable[..., RunContext]
Row = dict[str, Any]

DAYS = 14
# Midnights in Berlin: two in the training period, one in the validation period, two in the test period.
MAILED = (
    "2023-03-19T23:00:00",
    "2023-04-19T22:00:00",
    "2023-07-14T22:00:00",
    "2023-10-19T22:00:00",
    "2023-11-14T23:00:00",
)
CUSTOMERS = tuple(f"customer {number}" for number in range(6))
TARGET = ONE_TARGET["response"] | {"horizon_days": str(DAYS)}
RELATIVE = {"train_start": "-320d", "validation_start": "-172d", "test_start": "-80d"}  # 2023-10-01
FIELDS = {
    "action": {"role": "how", "kind": "categorical", "min_count": 2},
    "amount": {"role": "how", "kind": "numeric"},
    "campaign": {"role": "what", "kind": "reference"},
}
SECTIONS: Row = {
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 16, "window_days": [28]},
    "sequences": {"max_events": 64},
    "targets": {"response": TARGET},
    "split": RELATIVE,
    "fields": FIELDS,
    "training": {"launcher": "in_process", "world_size": 1, "pretrain_epochs": 1, "finetune_epochs": 1},
    "scoring": {
        "target": "response",
        "proposals": "SELECT 'mail' AS proposal_id, 'a mail' AS description, 'propose' AS action",
    },
}


def all_events() -> list[Row]:
    """Customers who answer every second mailing within three days, and an event a day before `as_of`."""
    rows = [event(CUSTOMERS[0], "2023-12-19T12:00:00", "the last", action="look")]
    for number, customer in enumerate(CUSTOMERS):
        for turn, at in enumerate(MAILED):
            rows.append(event(customer, at, f"m{turn} {customer}", action="propose", campaign=str(turn)))
            if (number + turn) % 2:
                answered = f"{dt.datetime.fromisoformat(at) + dt.timedelta(days=3):%Y-%m-%dT%H:%M:%S}"
                rows.append(
                    event(customer, answered, f"r{turn} {customer}", action="respond", campaign=str(turn))
                )
    return rows


@pytest.fixture(scope="module")
def filled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the stages before `train`, with a model and its scores."""
    root = tmp_path_factory.mktemp("definitions") / "shop"
    ctx = context_builder(spark, root)(**SECTIONS)
    publish(ctx, all_events(), dict.fromkeys(CUSTOMERS, ("opt_in", "opt_in")))
    refresh = RefreshRecord(STARTED_AT.isoformat(), {}, 2 * len(CUSTOMERS), None, 0, 0)
    ctx.tables.touch_metadata("consent", refresh.to_metadata())
    for stage in (build_sequences, build_examples, build_snapshot):
        stage(ctx)
    register(ctx, random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))), root.with_name("model"))
    score(ctx)
    return root


@pytest.fixture
def build(spark: SparkSession, filled: Path, tmp_path: Path) -> Build:
    """Builds runs over a copy of the workspace."""
    shutil.copytree(filled, tmp_path / "shop")
    builder = context_builder(spark, tmp_path / "shop")
    return lambda **sections: builder(**(SECTIONS | sections))


def with_target(**changes: Any) -> Row:
    """The section `targets` with a changed target."""
    return {"response": TARGET | changes}


def training_spec(ctx: RunContext) -> TrainingSpec:
    """What `train` would train on."""
    snapshot = require_snapshot(ctx.tables, ctx.cache, ctx.config, ctx.started_at)
    return specification(
        ctx.tables,
        ctx.cache,
        ctx.config,
        snapshot,
        folder=ctx.config.workspace / "training",
        layout=layout_with(ctx.config, snapshot.sizes),
        value_embeddings_digest="",
        run_id=ctx.run_id,
        at=ctx.started_at,
    )


def refusal(stage: Callable[[RunContext], Any], ctx: RunContext) -> str:
    """Message with which a stage refuses to run; it must be one of stale data or of a model that does not fit."""
    with pytest.raises(LamSparkError) as error:
        stage(ctx)
    assert error.value.exit_code in (3, 5)
    return str(error.value)


@pytest.mark.parametrize("stage", [build_snapshot, train, evaluate, score, embed, deliver])
def test_a_stage_refuses_the_labels_of_another_question(build: Build, stage: Any) -> None:
    """The horizon changes, the examples do not."""
    message = refusal(stage, build(targets=with_target(horizon_days="7")))
    assert re.search(
        r"(trained|made) for another configuration, which differs in targets\.response\.horizon_days: run the stage "
        r"'examples' again, then those after it$",
        message,
    )


def test_the_first_stage_that_is_not_up_to_date_is_named(build: Build) -> None:
    ctx = build(targets=with_target(horizon_days="7"))
    build_examples(ctx)
    for stage in (train, score, embed, evaluate, deliver):
        assert "run the stage 'snapshot' again" in refusal(stage, ctx)
    build_snapshot(ctx)
    for stage in (score, embed, evaluate, deliver):
        assert "run the stage 'train' again" in refusal(stage, ctx)
    register(
        ctx,
        random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))),
        ctx.config.workspace / "model",
    )
    assert "run the stage 'score' again" in refusal(deliver, ctx)
    score(ctx)
    again = build(fields=FIELDS | {"amount": FIELDS["amount"] | {"role": "who"}})
    assert "differs in fields.amount.role" in refusal(score, again)


def test_an_added_field_names_the_stage_that_reads_it_from_the_inputs(build: Build) -> None:
    ctx = build(fields=FIELDS | {"page": {"role": "where", "kind": "categorical"}})
    again = "run the stage 'ingest' (with --set ingest.rebuild=true) again, then those after it"
    for stage in (build_sequences, build_examples, build_snapshot, train, score, embed, evaluate, deliver):
        message = refusal(stage, ctx)
        assert message.endswith(again)
        assert "fields.page (added" in message
    # The same with a field of another kind.
    numeric = build(fields=FIELDS | {"campaign": {"role": "what", "kind": "numeric"}})
    assert refusal(build_sequences, numeric).endswith(again)
    ctx.tables.overwrite(events_frame(ctx, all_events()), "events")
    for stage in (build_examples, build_snapshot, score):
        assert "run the stage 'sequences' again" in refusal(stage, ctx)


def test_relative_dates_are_pinned_by_the_examples(build: Build) -> None:
    """The next night takes the dates of the examples; its training is the same, so that it can be resumed."""
    tonight, tomorrow = build(), build(as_of="2023-12-21")
    assert tonight.config.periods.test_start == dt.date(2023, 10, 1)
    assert tomorrow.config.periods.test_start == dt.date(2023, 10, 2)
    first = training_spec(tonight)
    events = events_frame(
        tomorrow, [event(CUSTOMERS[1], "2023-12-20T12:00:00", "of the next day", action="look")]
    )
    tomorrow.tables.append(events, "events")
    build_sequences(tomorrow)
    resumed = training_spec(tomorrow)
    assert resumed.fingerprint() == first.fingerprint()
    assert resumed.facts[TEST_START] == "2023-09-30T22:00:00+00:00"
    build_snapshot(tomorrow)
    metadata = tomorrow.tables.commit_metadata("training_blocks") or {}
    assert metadata[PERIODS]["test_start"] == "2023-10-01"
    assert evaluate(tomorrow).examples == 2 * len(CUSTOMERS)
    build_examples(tomorrow)
    assert (tomorrow.tables.commit_metadata("examples") or {})[PERIODS]["test_start"] == "2023-10-02"


def test_the_snapshot_of_pinned_examples_does_not_know_values_of_their_test_period(build: Build) -> None:
    """A value that became frequent in the test period enters the vocabulary in a later night."""
    ctx = build()
    sizes = (ctx.tables.commit_metadata("examples") or {})["vocabulary"]["sizes"]
    earlier = [event(CUSTOMERS[0], "2023-05-01T12:00:00", "once before", action="rare")]
    ctx.tables.append(events_frame(ctx, earlier), "events")
    vocabulary = ctx.tables.read("vocabulary")
    rare = vocabulary.limit(1).select(
        F.lit("action").alias("field"),
        F.lit("rare").alias("value"),
        F.lit(sizes["action"]).alias("token_id"),
        F.lit(2).cast("bigint").alias("count_when_added"),
    )
    ctx.tables.append(rare, "vocabulary")
    build_sequences(ctx)
    newest = F.array_contains("action", sizes["action"])
    assert ctx.tables.read("sequences").where(newest).count() == 1
    build_snapshot(ctx)
    blocks = ctx.tables.read("training_blocks")
    assert blocks.where(F.exists("event_action", lambda token: token >= sizes["action"])).isEmpty()
    assert blocks.where(F.array_contains("event_action", UNKNOWN)).count() > 0
    assert training_spec(ctx).layout.ids_in_use == sizes


def test_a_training_period_with_too_few_queries_stops_the_training(build: Build) -> None:
    ctx = build(quality={"min_positives": 7})
    with pytest.raises(DataQualityError) as error:
        train(ctx)
    assert str(error.value).startswith(
        "the training period has not enough queries to learn from. response: too few to judge: 6 (6 positive of 12 "
        "queries; quality.min_positives is 7)"
    )


def test_validation_and_test_periods_with_too_few_queries_are_not_measured(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six queries of each class in the training and in the test period, three in the validation period."""
    monkeypatch.delenv("LAM_SPARK_SECRET")  # another process refreshes the ledger
    ctx = build(quality={"min_positives": 4})
    few = "too few to judge: 3 (3 positive of 6 queries; quality.min_positives is 4)"
    result = train(ctx)
    assert result.validation_too_few == {"response": few}
    assert result.warnings[0].startswith(f"response, validation period: {few}; it selects no epoch")
    assert "validation period too small to measure (epoch 1)" in result.message
    model = load_registered_model(ctx.tables, ctx.config, ["response"])
    assert (model.calibration["response"].slope, model.calibration["response"].intercept) == (1.0, 0.0)
    assert evaluate(ctx).rankings is not None
    few = "too few to judge: 6 (6 positive of 12 queries; quality.min_positives is 7)"
    few_queries = evaluate(build(quality={"min_positives": 7}))
    assert (few_queries.examples, few_queries.positives, few_queries.not_measured, few_queries.rankings) == (
        12,
        6,
        few,
        None,
    )
    assert few_queries.message == f"12 held-out examples, 6 positive: {few}"
    assert few_queries.warnings == (f"response, test period: {few}",)


def test_a_final_training_uses_everything_and_is_not_evaluated(build: Build) -> None:
    ctx = build(split=RELATIVE | {"test_start": "none"})
    assert "differs in split.test_start: run the stage 'examples'" in refusal(evaluate, ctx)
    counts = build_examples(ctx).targets["response"]
    assert (counts.used["validation"].examples, counts.used["test"].examples) == (3 * len(CUSTOMERS), 0)
    build_snapshot(ctx)
    spec = training_spec(ctx)
    assert spec.facts[TEST_START] == ctx.as_of.isoformat()
    register(
        ctx,
        random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))),
        ctx.config.workspace / "model",
    )
    result = evaluate(ctx)
    assert result.rankings is None
    assert result.message.endswith(
        "split.test_start is none, the model has learned from everything before as_of"
    )
    assert not ctx.tables.exists("held_out_scores")


def test_the_settings_of_a_training_and_words_define_no_question(build: Build) -> None:
    ctx = build(
        targets=with_target(description="answers", baseline_name="earlier answers"),
        delivery={"capacity": 3},
        words={"outcome_verb": "replied"},
    )
    assert score(ctx).customers_scored == len(CUSTOMERS)
    assert training_spec(ctx).all_urls
