"""What a stage refuses because it does not belong together: a few customers by hand, a model that nobody trained."""

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

from lam_spark.consent.eligibility import count_disowned
from lam_spark.errors import ConsentError, DataQualityError, ModelError
from lam_spark.evaluation import stage as evaluate
from lam_spark.labels import stage as examples
from lam_spark.model.card import TEST_START, VOCABULARY
from lam_spark.model.transformer import LargeActionModel
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.scoring import embeddings as embed
from lam_spark.scoring import stage as score
from lam_spark.scoring.udf import champion
from lam_spark.sequences import stage as assemble
from lam_spark.sequences.time_range import micros
from lam_spark.sequences.vocabulary import vocabulary_digest
from lam_spark.training import stage as train
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training_data import stage as snapshot
from lam_spark.training_data.columns import layout_of
from tests.support.shop import ONE_TARGET, STARTED_AT, run_builder
from tests.support.tables import event, events_frame, ledger_frame, publish, register, taken_back
from tests.support.tiny import random_model

Build = Callable[..., Run]
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
EARLIER = {"train_start": "2023-02-01", "validation_start": "2023-07-01", "test_start": "2023-09-15"}
CUSTOMERS = ("ann", "bob", "cid", "dan")
# Local midnights of Berlin, so that in UTC it is still the day before: of training, of validation, of the test period.
MAILED = ("2023-03-19T23:00:00", "2023-07-14T22:00:00", "2023-10-19T22:00:00", "2023-11-14T23:00:00")


def drawn_events() -> list[Row]:
    """Four are mailed four times, half of them answer; of "busy" the sixteen events of December are kept."""
    # On the eve of September too: a run of that day knows how July's mailings went.
    rows = [event("ann", "2023-08-31T12:00:00", "eve", action="buy", amount=1)]
    for number, customer in enumerate(CUSTOMERS):
        for turn, at in enumerate(MAILED):
            sent = event(
                customer, at, f"m{turn}{customer}", action="propose", offer_days=14, campaign=str(turn)
            )
            rows.append(sent)
            if (number + turn) % 2:
                answered = f"{dt.datetime.fromisoformat(at) + dt.timedelta(days=3):%Y-%m-%dT%H:%M:%S}"
                rows.append(
                    event(customer, answered, f"r{turn}{customer}", action="respond", campaign=str(turn))
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
    """A workspace after the stages before `train`, with a model; tests work in copies. Dan will withdraw in 2025."""
    root = tmp_path_factory.mktemp("belonging") / "shop"
    run = run_builder(spark, root)(**SECTIONS)
    publish(run, drawn_events(), dict.fromkeys((*CUSTOMERS, "busy", "new"), BOTH))
    withdraws(run, "dan", "2025-01-01T00:00:00", "2023-12-01T00:00:00")
    for stage in (assemble, examples, snapshot):
        stage.run(run)
    register(run, random_model(layout_of(run.config, run.tables.read("vocabulary"))), root.with_name("model"))
    return root


@pytest.fixture
def build(spark: SparkSession, filled: Path, tmp_path: Path) -> Build:
    """Builds runs over a copy of the workspace."""
    shutil.copytree(filled, tmp_path / "shop")
    builder = run_builder(spark, tmp_path / "shop")
    return lambda started_at=STARTED_AT, **sections: builder(started_at=started_at, **(SECTIONS | sections))


def withdraws(run: Run, customer: str, effective_at: str, recorded_at: str) -> None:
    """State in the ledger that a customer is not to be learned from."""
    stated = [(customer, TRAINING, "opt_out", effective_at, recorded_at)]
    run.tables.append(ledger_frame(run.spark, stated), "consent")


LOST = "customers whose events may be in the training snapshot no longer agree to 'model_training': run the stage"


def test_training_refuses_a_snapshot_of_somebody_who_withdrew_since(build: Build) -> None:
    """Stated after the snapshot, for a time before it and for one after it."""
    later = build(STARTED_AT + dt.timedelta(days=2))
    withdrawn = {"ann": "2023-06-01T00:00:00", "bob": "2024-01-03T00:00:00"}
    for number, (customer, effective_at) in enumerate(withdrawn.items(), start=1):
        withdraws(later, customer, effective_at, "2024-01-03T00:00:00")
        with pytest.raises(ConsentError, match=f"^{number} {LOST}"):
            train.run(later)
    assert later.tables.read_versions["consent"] == later.tables.version("consent")
    snapshot.run(later)
    layout = layout_of(later.config, later.tables.read("vocabulary"))
    assert train.specification(later, later.config.workspace / "training", layout, "").all_urls


def test_training_refuses_it_once_a_statement_has_taken_effect(build: Build) -> None:
    """Also where it has only to be registered: what was learned from him is not published."""
    run = build(dt.datetime(2025, 1, 1, tzinfo=dt.UTC))
    folder = run.config.workspace / "training"
    folder.mkdir()
    (folder / PROGRESS_FILE).write_text(json.dumps({"event": "done", "digest": "", "facts": {}}) + "\n")
    with pytest.raises(ConsentError, match=f"^1 {LOST}"):
        train.run(run)


def moves(run: Run, event_id: str, customer: str) -> None:
    """Give an event to another customer, as a late link does."""
    events = f"delta.`{run.tables.path('events')}`"
    run.spark.sql(f"UPDATE {events} SET customer_key = '{customer}' WHERE event_id = '{event_id}'")


def test_what_a_link_has_moved_to_somebody_who_does_not_agree_is_not_used(build: Build) -> None:
    run = build()
    layout = layout_of(run.config, run.tables.read("vocabulary"))
    moves(run, "between", "bob")
    assert train.specification(run, run.config.workspace / "training", layout, "").all_urls
    moves(run, "between", "somebody who was never asked")
    told = r"1 events that may be in the .* were deleted since, or a link has moved them to somebody who does not"
    for stage in (train, score, snapshot):
        with pytest.raises(ConsentError, match=told):
            stage.run(run)
    for stage in (assemble, examples, snapshot):
        stage.run(run)
    assert train.specification(run, run.config.workspace / "training", layout, "").all_urls
    run.tables.overwrite(run.tables.read("events"), "events")
    with pytest.raises(
        ConsentError, match=r"the events were replaced since the training snapshot was made of them"
    ):
        train.run(run)


def test_what_became_of_events_is_told_by_their_log(build: Build) -> None:
    run = build()
    since = run.tables.version("events")

    def disowned(until: dt.datetime) -> int | None:
        return count_disowned(run, since, until, TRAINING)

    def takes_back(lost: str) -> None:
        with taken_back(run, "events"):
            run.spark.sql(f"DELETE FROM delta.`{run.tables.path('events')}` WHERE event_id = '{lost}'")
            assert disowned(run.as_of) == 1

    assert disowned(run.as_of) == 0
    takes_back("eve")
    assert run.tables.version("events") > since
    assert disowned(run.as_of) == 0
    run.tables.append(
        events_frame(run, [event("ann", "2023-05-01T12:00:00", "later", action="buy")]), "events"
    )
    takes_back("m0ann")
    moves(run, "later", "nobody")  # nothing has ever been made of it
    moves(run, "between", "bob")
    assert disowned(run.as_of) == 0
    withdraws(run, "cid", "2023-12-01T00:00:00", "2023-12-01T00:00:00")
    moves(run, "m0cid", "nobody")  # whose events are left out already
    assert disowned(run.as_of) == 0
    run.spark.sql(f"DELETE FROM delta.`{run.tables.path('events')}` WHERE event_id = 'eve'")
    assert disowned(run.as_of) == 1
    moves(run, "m3ann", "nobody")
    assert disowned(run.as_of) == 2
    assert disowned(run.config.instant(run.config.split.test_start)) == 1
    moves(run, "m3ann", "ann")
    assert disowned(run.as_of) == 1
    later = run.tables.version("events")
    DeltaTable.forPath(run.spark, run.tables.path("events")).restoreToVersion(since)
    assert disowned(run.as_of) == 0
    # What is there now does not come of what was used.
    assert count_disowned(run, later, run.as_of, TRAINING) is None
    run.tables.append(
        events_frame(run, [event("ann", "2023-05-02T12:00:00", "last", action="buy")]), "events"
    )
    moves(run, "last", "bob")
    at = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S.%f}"
    moves(run, "eve", "bob")
    shutil.rmtree(Path(run.tables.path("events")) / "_change_data")  # VACUUM does
    assert disowned(run.as_of) is None
    assert run.tables.history("events", since) is not None
    run.spark.sql(f"RESTORE TABLE delta.`{run.tables.path('events')}` TO TIMESTAMP AS OF '{at}'")
    # Of which version the rows are now, the log does not say.
    assert run.tables.history("events", since) is run.tables.note_of("events") is disowned(run.as_of) is None


def test_a_ledger_whose_old_files_are_gone_cannot_be_asked_again(build: Build) -> None:
    run = build()
    ledger = Path(run.tables.path("consent"))
    old = set(ledger.rglob("*.parquet"))
    run.tables.overwrite(run.tables.read("consent"), "consent")
    for file in old:
        file.unlink()
    with pytest.raises(
        ConsentError, match=r"the ledger does not hold that version any more \(VACUUM\): who has"
    ):
        train.run(run)


def test_training_refuses_a_snapshot_that_does_not_say_who_was_asked(build: Build) -> None:
    run = build()
    run.tables.overwrite(run.tables.read("training_blocks"), "training_blocks")
    with pytest.raises(ConsentError, match=r"does not say which version .* run the stage 'snapshot' again"):
        train.run(run)


def test_what_holds_the_ids_of_another_vocabulary_is_not_trained_on(build: Build) -> None:
    """Of the same fields and sizes: only what the ids stand for tells."""
    run = build()
    known = run.tables.read("vocabulary")
    layout = layout_of(run.config, known)
    turned = known.selectExpr("field", "value", "8 - token_id AS token_id", "count_when_added")
    run.tables.overwrite(turned, "vocabulary")
    assert layout_of(run.config, turned) == layout
    with pytest.raises(
        ModelError, match="holds the ids of another vocabulary than the present one, or does not say"
    ):
        train.specification(run, run.config.workspace / "training", layout, "")
    with pytest.raises(
        DataQualityError, match=r"examples hold the ids of another vocabulary .* run the stage 'examples'"
    ):
        snapshot.run(run)
    again = build(**{"sequences": {"max_events": 16, "rebuild": True}})
    for stage in (assemble, examples, snapshot):
        stage.run(again)
    assert train.specification(again, again.config.workspace / "training", layout, "").all_urls


def scored(run: Run) -> set[str]:
    """Customers with scores at the run's `as_of`."""
    rows = run.tables.read("scores").where(f"as_of = {sql_literal(run.as_of)}")
    return {row["customer_key"] for row in rows.collect()}


def model_of(run: Run) -> LargeActionModel:
    return random_model(layout_of(run.config, run.tables.read("vocabulary")))


def test_a_model_belongs_to_the_vocabulary_whose_ids_it_learned(build: Build) -> None:
    run = build()
    known = run.tables.read("vocabulary")
    grown = known.limit(1).selectExpr("field", "'new' AS value", "99 AS token_id", "count_when_added")
    run.tables.append(grown, "vocabulary")
    assert champion(run, ["response"]).layout.sizes == (6,)
    # As in a workspace that was made anew: the same fields and sizes, the values numbered otherwise.
    turned = known.selectExpr("field", "value", "8 - token_id AS token_id", "count_when_added")
    run.tables.overwrite(turned, "vocabulary")
    for stage in (score, embed, evaluate):
        with pytest.raises(
            ModelError, match=r"was trained with another vocabulary than the one in .*: what its ids"
        ):
            stage.run(run)
    assert not run.tables.exists("scores")


def test_training_says_what_the_model_belongs_to(build: Build, tmp_path: Path) -> None:
    run = build()
    layout = layout_of(run.config, run.tables.read("vocabulary"))
    facts = train.specification(run, tmp_path, layout, "").facts
    assert facts[TEST_START] == "2023-09-30T22:00:00+00:00"
    assert facts[VOCABULARY] == vocabulary_digest(run.tables.read("vocabulary"), layout.ids_in_use)


@pytest.mark.parametrize("fact", [VOCABULARY, TEST_START])
def test_a_model_that_does_not_say_it_is_refused(build: Build, tmp_path: Path, fact: str) -> None:
    run = build()
    register(run, model_of(run), tmp_path / "model", **{fact: None})
    with pytest.raises(ModelError, match="an earlier version trained it: train again"):
        champion(run, ["response"])


def test_a_model_is_not_judged_on_what_it_has_seen(build: Build, tmp_path: Path) -> None:
    """The test period begins earlier than when the model was trained: each stage on the way says what to run."""
    run = build(split=EARLIER)
    layout = layout_of(run.config, run.tables.read("vocabulary"))
    with pytest.raises(
        ModelError, match=r"packed for other dates of split .* run the stages 'examples' and 'snapshot'"
    ):
        train.specification(run, tmp_path, layout, "")
    with pytest.raises(
        DataQualityError, match=r"the examples were made for other dates of split .*2023-09-30T22:00"
    ):
        snapshot.run(run)
    examples.run(run)
    with pytest.raises(
        ModelError, match=r"learned from what happened before 2023-09-30 22:00 \(UTC\): run the stages"
    ):
        evaluate.run(run)
    register(run, model_of(run), tmp_path / "model")
    assert evaluate.run(run).counts["examples"] == 8
    snapshot.run(run)
    assert train.specification(run, tmp_path, layout, "").all_urls


def test_the_held_out_period_is_told_in_days_of_the_data_set(build: Build) -> None:
    assert evaluate.run(build()).facts["period"] == ["2023-10-20", "2023-11-15"]  # both at midnight in Berlin


STALE = r"expected sequences of all events before 2023-12-2\d 23:00 \(UTC\), found them made for an as_of of 2023-12-19"


@pytest.mark.parametrize("stage", [score, embed])
def test_nobody_is_scored_by_a_history_that_ends_too_early(build: Build, stage: Any) -> None:
    with pytest.raises(DataQualityError, match=STALE):
        stage.run(build(as_of="2023-12-21"))


def test_sequences_that_do_not_say_where_they_end_score_nobody(build: Build) -> None:
    run = build()
    run.tables.overwrite(run.tables.read("sequences"), "sequences")
    with pytest.raises(
        DataQualityError, match="does not say up to when they hold events: run the stage 'sequences'"
    ):
        score.run(run)


def test_whose_events_are_not_kept_or_yet_to_come_is_not_scored_as_somebody_new(build: Build) -> None:
    earlier, run = build(as_of="2023-12-01"), build()
    counts = score.run(earlier).counts
    assert (counts["before_kept_events"], counts["customers_scored"]) == (1, 4)
    assert scored(earlier) == set(CUSTOMERS)
    counts = score.run(run).counts
    assert (counts["before_kept_events"], counts["customers_scored"]) == (0, 6)
    assert scored(run) == {*CUSTOMERS, "busy", "new"}
    with pytest.raises(
        DataQualityError, match="no eligible customer has an event before as_of 2023-03-01 that is"
    ):
        score.run(build(as_of="2023-03-01"))


def test_examples_know_nothing_from_as_of_on_and_their_histories_are_whole(build: Build) -> None:
    def both_refuse(run: Run, told: str) -> None:
        for stage in (snapshot, evaluate):
            with pytest.raises(DataQualityError, match=told):
                stage.run(run)

    earlier, run = build(as_of="2023-12-10"), build()
    both_refuse(earlier, "their labels know what happened after as_of 2023-12-10: run the")
    assemble.run(earlier)
    both_refuse(run, r"before 2023-12-19 23:00 \(UTC\), found them made for an as_of of 2023-12-09")
    run.tables.overwrite(run.tables.read("examples"), "examples")
    both_refuse(run, "does not say for which dates they were made: run the stage 'examples'")


def test_a_snapshot_of_an_earlier_day_holds_nothing_from_then_on(build: Build) -> None:
    run = build(as_of="2023-09-01")
    examples.run(run)
    snapshot.run(run)
    (latest,) = run.tables.read("training_blocks").agg(F.max(F.array_max("event_time"))).first() or ()
    assert 0 < latest < micros(run.as_of)
