"""Stages refuse tables and models that do not match each other. Uses a few customers and an untrained model."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.consent.guards import count_reassigned
from lam_spark.consent.record import RefreshRecord
from lam_spark.errors import ConsentError, DataQualityError, ModelError
from lam_spark.evaluation.stage import evaluate
from lam_spark.labels.stage import build_examples
from lam_spark.model.card import DEFINITION, TEST_START, VOCABULARY
from lam_spark.model.transformer import LargeActionModel
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.embeddings import embed
from lam_spark.scoring.stage import score
from lam_spark.scoring.udf import load_registered_model
from lam_spark.sequences.stage import build_sequences
from lam_spark.sequences.vocabulary import vocabulary_digest
from lam_spark.storage.time import micros, sql_literal
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.preparation import require_snapshot, specification
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.stage import train
from lam_spark.training_data.columns import layout_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.stage import build_snapshot
from tests.support.shop import ONE_TARGET, STARTED_AT, context_builder, settings
from tests.support.tables import event, events_frame, ledger_frame, publish, register, rolled_back
from tests.support.tiny import random_model

Build = Callable[..., RunContext]
Row = dict[str, Any]

BOTH = ("opt_in", "opt_in")
TRAINING = "model_training"
SECTIONS: Row = {
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 16, "window_days": [28]},
    "sequences": {"max_events": 16},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 2},
        "amount": {"role": "how", "kind": "numeric"},
        "offer_days": {"role": "what", "kind": "numeric"},
        "campaign": {"role": "what", "kind": "reference"},
    },
    "scoring": {
        "target": "response",
        "proposals": "SELECT 'mail' AS proposal_id, 'a mail' AS description, 'propose' AS action, 14 AS offer_days",
    },
}
EARLIER_SPLIT = {"train_start": "2023-02-01", "validation_start": "2023-07-01", "test_start": "2023-09-15"}
CUSTOMERS = ("ann", "bob", "cid", "dan")
# Midnight in Berlin: one in the training period, one in the validation period, two in the test period.
MAILED = ("2023-03-19T23:00:00", "2023-07-14T22:00:00", "2023-10-19T22:00:00", "2023-11-14T23:00:00")


def all_events() -> list[Row]:
    """Four customers who respond to half of four mailings, a new customer, and "busy" with a truncated history."""
    # With an event at the end of August, outcomes of the July mailings are complete on that day.
    rows = [event("ann", "2023-08-31T12:00:00", "eve", action="buy", amount=1)]
    for number, customer in enumerate(CUSTOMERS):
        for turn, at in enumerate(MAILED):
            sent = event(
                customer, at, f"m{turn}{customer}", action="propose", offer_days=14, campaign=str(turn)
            )
            rows.append(sent)
            if (number + turn) % 2:
                responded_at = f"{dt.datetime.fromisoformat(at) + dt.timedelta(days=3):%Y-%m-%dT%H:%M:%S}"
                rows.append(
                    event(customer, responded_at, f"r{turn}{customer}", action="respond", campaign=str(turn))
                )
    rows.append(event("ann", "2023-09-10T12:00:00", "between", action="buy", amount=3))
    rows.append(event("new", "2023-12-05T12:00:00", "first", action="buy", amount=3))
    rows += [
        event("busy", f"2023-{month:02d}-{day:02d}T12:00:00", f"b{month}{day}", action="buy", amount=day)
        for month in (3, 12)
        for day in range(1, 17)
    ]
    return rows


@pytest.fixture(scope="module")
def filled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the stages before `train`, with a model."""
    root = tmp_path_factory.mktemp("guards") / "shop"
    ctx = context_builder(spark, root)(**SECTIONS)
    publish(ctx, all_events(), dict.fromkeys((*CUSTOMERS, "busy", "new"), BOTH))
    for stage in (build_sequences, build_examples, build_snapshot):
        stage(ctx)
    register(ctx, random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))), root.with_name("model"))
    return root


@pytest.fixture
def build(spark: SparkSession, filled: Path, tmp_path: Path) -> Build:
    """Builds runs over a copy of the workspace."""
    shutil.copytree(filled, tmp_path / "shop")
    builder = context_builder(spark, tmp_path / "shop")
    return lambda started_at=STARTED_AT, **sections: builder(started_at=started_at, **(SECTIONS | sections))


def opt_out(
    ctx: RunContext, customer: str, effective_at: str, recorded_at: str, metadata: Row | None = None
) -> None:
    """Append a statement that a customer opts out of training."""
    statements = [(customer, TRAINING, "opt_out", effective_at, recorded_at)]
    ctx.tables.append(ledger_frame(ctx.spark, statements), "consent", metadata)


def specification_of(ctx: RunContext, layout: Layout) -> TrainingSpec:
    """Training specification of the newest snapshot."""
    return specification(
        ctx.tables,
        ctx.cache,
        ctx.config,
        require_snapshot(ctx.tables, ctx.cache, ctx.config, ctx.started_at),
        folder=ctx.config.workspace / "training",
        layout=layout,
        value_embeddings_digest="",
        run_id=ctx.run_id,
        at=ctx.started_at,
    )


NO_LONGER_AGREE = (
    "customers whose events may be in the training snapshot no longer agree to 'model_training': "
    "run the stage"
)


def test_training_refuses_a_snapshot_with_a_customer_who_has_since_opted_out(build: Build) -> None:
    """The opt-outs are recorded after the snapshot and take effect before and after it."""
    later = build(STARTED_AT + dt.timedelta(days=2))
    opt_outs = {"ann": "2023-06-01T00:00:00", "bob": "2024-01-03T00:00:00"}
    for number, (customer, effective_at) in enumerate(opt_outs.items(), start=1):
        opt_out(later, customer, effective_at, "2024-01-03T00:00:00")
        with pytest.raises(ConsentError, match=f"^{number} {NO_LONGER_AGREE}"):
            train(later)
    assert later.tables.read_versions["consent"] == later.tables.version("consent")
    build_snapshot(later)
    layout = layout_of(later.config, later.tables.read("vocabulary"))
    assert specification_of(later, layout).all_urls


def test_a_finished_training_is_not_registered_after_an_opt_out(build: Build) -> None:
    """The opt-out counts from its recording, although it is to take effect a year later."""
    ctx = build()
    opt_out(ctx, "dan", "2025-01-01T00:00:00", "2024-01-01T00:00:00")
    folder = ctx.config.workspace / "training"
    folder.mkdir()
    (folder / PROGRESS_FILE).write_text(json.dumps({"event": "done", "digest": "", "summary": {}}) + "\n")
    with pytest.raises(ConsentError, match=f"^1 {NO_LONGER_AGREE}"):
        train(ctx)


def test_a_model_is_not_registered_if_a_customer_opts_out_during_its_training(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the secret: another process refreshes the ledger."""
    ctx = build()
    monkeypatch.delenv("LAM_SPARK_SECRET")
    record = RefreshRecord(STARTED_AT.isoformat(), {}, 12, None, 0, 0).to_metadata()
    ctx.tables.touch_metadata("consent", record)
    registered: list[Any] = []

    def end_training(*_: Any) -> Row:
        opt_out(ctx, "dan", "2024-01-02T10:00:00", "2024-01-02T10:00:00", record)
        return {"digest": "", "summary": {}}

    monkeypatch.setattr("lam_spark.training.stage._train", end_training)
    monkeypatch.setattr("lam_spark.training.stage.register_model", lambda *values: registered.extend(values))
    with pytest.raises(ConsentError, match=f"^1 {NO_LONGER_AGREE}"):
        train(ctx)
    assert not registered


def reassign(ctx: RunContext, event_id: str, customer: str) -> None:
    """Assign an event to another customer, as a late link does."""
    events = f"delta.`{ctx.tables.path('events')}`"
    ctx.spark.sql(f"UPDATE {events} SET customer_key = '{customer}' WHERE event_id = '{event_id}'")


def test_events_reassigned_to_an_ineligible_customer_are_not_used(build: Build) -> None:
    ctx = build()
    layout = layout_of(ctx.config, ctx.tables.read("vocabulary"))
    reassign(ctx, "between", "bob")
    assert specification_of(ctx, layout).all_urls
    reassign(ctx, "between", "a customer who was never asked")
    message = (
        "1 events that may be in .* were deleted since, or a link has assigned them to customers who are not"
    )
    for stage in (train, score, build_snapshot):
        with pytest.raises(ConsentError, match=message):
            stage(ctx)
    for stage in (build_sequences, build_examples, build_snapshot):
        stage(ctx)
    assert specification_of(ctx, layout).all_urls
    ctx.tables.overwrite(ctx.tables.read("events"), "events")
    with pytest.raises(
        ConsentError,
        match="cannot determine whose the events in the training snapshot are now: the table events was replaced",
    ):
        train(ctx)


def test_reassigned_events_are_counted_from_the_log(build: Build) -> None:
    ctx = build()
    since = ctx.tables.version("events")

    def reassigned(until: dt.datetime, version: int = since) -> int | None:
        return count_reassigned(ctx.tables, ctx.cache, version, until, TRAINING, ctx.started_at)

    def roll_back_deletion(event_id: str) -> None:
        with rolled_back(ctx, "events"):
            ctx.spark.sql(f"DELETE FROM delta.`{ctx.tables.path('events')}` WHERE event_id = '{event_id}'")
            assert reassigned(ctx.as_of) == 1

    assert reassigned(ctx.as_of) == 0
    roll_back_deletion("eve")
    assert ctx.tables.version("events") > since
    assert reassigned(ctx.as_of) == 0
    ctx.tables.append(
        events_frame(ctx, [event("ann", "2023-05-01T12:00:00", "later", action="buy")]), "events"
    )
    roll_back_deletion("m0ann")
    reassign(ctx, "later", "no customer")  # later than the tables that were built from the events
    reassign(ctx, "between", "bob")
    assert reassigned(ctx.as_of) == 0
    opt_out(ctx, "cid", "2023-12-01T00:00:00", "2023-12-01T00:00:00")
    reassign(ctx, "m0cid", "no customer")  # the events of a customer without consent are excluded
    assert reassigned(ctx.as_of) == 0
    ctx.spark.sql(f"DELETE FROM delta.`{ctx.tables.path('events')}` WHERE event_id = 'eve'")
    assert reassigned(ctx.as_of) == 1
    reassign(ctx, "m3ann", "no customer")
    assert reassigned(ctx.as_of) == 2
    assert reassigned(ctx.config.instant(ctx.config.periods.test_start)) == 1
    reassign(ctx, "m3ann", "ann")
    assert reassigned(ctx.as_of) == 1
    later = ctx.tables.version("events")
    DeltaTable.forPath(ctx.spark, ctx.tables.path("events")).restoreToVersion(since)
    assert reassigned(ctx.as_of) == 0
    # RESTORE has discarded that version.
    assert reassigned(ctx.as_of, later) is None
    ctx.tables.append(
        events_frame(ctx, [event("ann", "2023-05-02T12:00:00", "last", action="buy")]), "events"
    )
    reassign(ctx, "last", "bob")
    at = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S.%f}"
    reassign(ctx, "eve", "bob")
    shutil.rmtree(Path(ctx.tables.path("events")) / "_change_data")  # as VACUUM does
    assert reassigned(ctx.as_of) is None
    assert ctx.tables.log("events").history(since) is not None
    ctx.spark.sql(f"RESTORE TABLE delta.`{ctx.tables.path('events')}` TO TIMESTAMP AS OF '{at}'")
    # A RESTORE to a timestamp does not record the restored version.
    assert (
        ctx.tables.log("events").history(since)
        is ctx.tables.commit_metadata("events")
        is reassigned(ctx.as_of)
        is None
    )


def test_training_refuses_a_snapshot_whose_ledger_version_was_vacuumed(build: Build) -> None:
    ctx = build()
    ledger = Path(ctx.tables.path("consent"))
    old_files = set(ledger.rglob("*.parquet"))
    ctx.tables.overwrite(ctx.tables.read("consent"), "consent")
    for file in old_files:
        file.unlink()
    with pytest.raises(
        ConsentError,
        match=r"cannot determine who has withdrawn since the training snapshot was built: .* \(VACUUM\)",
    ):
        train(ctx)


def test_training_refuses_a_snapshot_without_a_consent_check(build: Build) -> None:
    ctx = build()
    ctx.tables.overwrite(ctx.tables.read("training_blocks"), "training_blocks")
    with pytest.raises(
        ConsentError, match=r"does not record which version .* run the stage 'snapshot' again"
    ):
        train(ctx)


def test_blocks_with_token_ids_of_another_vocabulary_are_refused(build: Build) -> None:
    """Fields and sizes are equal; only the meaning of the ids differs."""
    ctx = build()
    vocabulary = ctx.tables.read("vocabulary")
    layout = layout_of(ctx.config, vocabulary)
    renumbered = vocabulary.selectExpr("field", "value", "8 - token_id AS token_id", "count_when_added")
    ctx.tables.overwrite(renumbered, "vocabulary")
    assert layout_of(ctx.config, renumbered) == layout
    with pytest.raises(
        ModelError, match="holds the token ids of another vocabulary, or does not record which"
    ):
        specification_of(ctx, layout)
    with pytest.raises(
        DataQualityError, match=r"examples hold the ids of another vocabulary .* run the stage 'examples'"
    ):
        build_snapshot(ctx)
    rebuilding = build(**{"sequences": {"max_events": 16, "rebuild": True}})
    for stage in (build_sequences, build_examples, build_snapshot):
        stage(rebuilding)
    assert specification_of(rebuilding, layout).all_urls


def scored_customers(ctx: RunContext) -> set[str]:
    """Customers with scores at the run's `as_of`."""
    rows = ctx.tables.read("scores").where(f"as_of = {sql_literal(ctx.as_of)}")
    return {row["customer_key"] for row in rows.collect()}


def model_of(ctx: RunContext) -> LargeActionModel:
    return random_model(layout_of(ctx.config, ctx.tables.read("vocabulary")))


def test_a_model_is_used_only_with_the_vocabulary_it_was_trained_with(build: Build) -> None:
    ctx = build()
    vocabulary = ctx.tables.read("vocabulary")
    new_value = vocabulary.limit(1).selectExpr(
        "field", "'new' AS value", "99 AS token_id", "count_when_added"
    )
    ctx.tables.append(new_value, "vocabulary")
    assert load_registered_model(ctx.tables, ctx.config, ["response"]).layout.sizes == (6,)
    # As in a rebuilt workspace: same fields and sizes, other ids.
    renumbered = vocabulary.selectExpr("field", "value", "8 - token_id AS token_id", "count_when_added")
    ctx.tables.overwrite(renumbered, "vocabulary")
    for stage in (score, embed, evaluate):
        with pytest.raises(
            ModelError, match=r"was trained with another vocabulary than the one in .*: its token ids"
        ):
            stage(ctx)
    assert not ctx.tables.exists("scores")


def test_training_records_vocabulary_and_test_start(build: Build, tmp_path: Path) -> None:
    ctx = build()
    layout = layout_of(ctx.config, ctx.tables.read("vocabulary"))
    facts = specification_of(ctx, layout).facts
    assert facts[TEST_START] == "2023-09-30T22:00:00+00:00"
    assert facts[VOCABULARY] == vocabulary_digest(ctx.tables.read("vocabulary"), layout.ids_in_use)


@pytest.mark.parametrize("fact", [VOCABULARY, TEST_START, DEFINITION])
def test_a_model_without_these_facts_is_refused(build: Build, tmp_path: Path, fact: str) -> None:
    ctx = build()
    register(ctx, model_of(ctx), tmp_path / "model", **{fact: None})
    with pytest.raises(ModelError, match=r"it was made by another version\. Train again"):
        load_registered_model(ctx.tables, ctx.config, ["response"])


def test_a_model_is_not_evaluated_on_its_training_period(build: Build, tmp_path: Path) -> None:
    """The test period starts earlier than at training. Each stage names the first stage to run again."""
    ctx = build(split=EARLIER_SPLIT)
    layout = layout_of(ctx.config, ctx.tables.read("vocabulary"))
    again = "made for another configuration, which differs in split.test_start: run the stage '{}' again"
    for stage in (build_snapshot, train):
        with pytest.raises(DataQualityError, match=again.format("examples")):
            stage(ctx)
    build_examples(ctx)
    with pytest.raises(DataQualityError, match=again.format("snapshot")):
        specification_of(ctx, layout)
    register(ctx, model_of(ctx), tmp_path / "late", **{TEST_START: "2023-09-30T22:00:00+00:00"})
    with pytest.raises(
        ModelError, match=r"trained on what happened before 2023-09-30 22:00 \(UTC\): run the stages"
    ):
        evaluate(ctx)
    register(ctx, model_of(ctx), tmp_path / "model")
    assert evaluate(ctx).examples == 8
    build_snapshot(ctx)
    assert specification_of(ctx, layout).all_urls


def test_the_test_period_is_in_local_days(build: Build) -> None:
    assert evaluate(build()).period == ("2023-10-20", "2023-11-15")  # both at midnight in Berlin


STALE_SEQUENCES = (
    r"expected sequences of all events before 2023-12-2\d 23:00 \(UTC\), "
    r"found them made for an as_of of 2023-12-19"
)


@pytest.mark.parametrize("stage", [score, embed])
def test_sequences_that_end_before_as_of_are_refused(build: Build, stage: Any) -> None:
    with pytest.raises(DataQualityError, match=STALE_SEQUENCES):
        stage(build(as_of="2023-12-21"))


def test_sequences_without_commit_metadata_are_refused(build: Build) -> None:
    ctx = build()
    ctx.tables.overwrite(ctx.tables.read("sequences"), "sequences")
    with pytest.raises(
        DataQualityError, match=r"does not record up to when they hold events, .*: run the stage 'sequences'"
    ):
        score(ctx)


def test_channels_that_are_silent_are_named_with_the_scores(build: Build) -> None:
    channels = settings(Path("shop"))["channels"]
    channels["kiosk"] = {"grain": "purchases", "select": "SELECT 1"}
    ctx = build(channels=channels)
    result = score(ctx)
    assert result.warnings[0].startswith(
        "channel kiosk: no event in the 365 days before as_of, silent for 365 days"
    )
    assert list(result.stale) == ["kiosk"]
    assert ctx.tables.read("scores").where("stale_channels != array('kiosk')").isEmpty()


def test_customers_with_a_fully_truncated_history_are_not_scored(build: Build) -> None:
    earlier, ctx = build(as_of="2023-12-01"), build()
    counts = score(earlier).counts
    assert (counts["truncated"], counts["customers_scored"]) == (1, 4)
    assert scored_customers(earlier) == set(CUSTOMERS)
    counts = score(ctx).counts
    assert (counts["truncated"], counts["customers_scored"]) == (0, 6)
    assert scored_customers(ctx) == {*CUSTOMERS, "busy", "new"}
    with pytest.raises(
        DataQualityError, match="no eligible customer has an event that is known before as_of 2023-03-01 and"
    ):
        score(build(as_of="2023-03-01"))


def test_examples_end_at_as_of_and_have_complete_histories(build: Build) -> None:
    def both_refuse(ctx: RunContext, message: str) -> None:
        for stage in (build_snapshot, evaluate):
            with pytest.raises(DataQualityError, match=message):
                stage(ctx)

    earlier, ctx = build(as_of="2023-12-10"), build()
    both_refuse(earlier, r"so their labels use events after as_of 2023-12-09 23:00 \(UTC\): run the")
    build_sequences(earlier)
    both_refuse(ctx, r"before 2023-12-19 23:00 \(UTC\), found them made for an as_of of 2023-12-09")
    ctx.tables.overwrite(ctx.tables.read("examples"), "examples")
    both_refuse(ctx, "does not record what it was made for, .*: run the stage 'examples' again")


def test_a_snapshot_contains_no_event_after_its_as_of(build: Build) -> None:
    ctx = build(as_of="2023-09-01")
    build_examples(ctx)
    build_snapshot(ctx)
    (latest,) = ctx.tables.read("training_blocks").agg(F.max(F.array_max("known_at"))).first() or ()
    assert 0 < latest < micros(ctx.as_of)
