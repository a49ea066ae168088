"""The Spark side of prediction: an iterator pandas UDF over customers and their queries."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.errors import DataQualityError, ModelError
from lam_spark.model.artifact import Calibration, open_artifact
from lam_spark.model.card import TEST_START, VOCABULARY
from lam_spark.runtime.context import Run
from lam_spark.scoring.predictor import cached_artifact, predict_queries, prediction_values
from lam_spark.sequences.freshness import require_sequences
from lam_spark.sequences.time_range import micros
from lam_spark.sequences.vocabulary import vocabulary_digest
from lam_spark.storage.tables import NOT_A_NUMBER
from lam_spark.training.tracking import registered_model
from lam_spark.training_data.columns import answers_after, customers, event_columns, query_columns
from lam_spark.training_data.layout import Layout


@dataclass(frozen=True)
class Champion:
    """The registered model, checked, as bytes that travel to the executors.

    Attributes:
        digest: sha256 of the files, pinned in the registry.
        version: in the registry.
        calibration: target -> of its answers.
        d_model: numbers in its hidden state.
        test_start: it has seen nothing from this instant on (UTC).
    """

    weights: bytes
    card: bytes
    digest: str
    version: int
    layout: Layout
    d_model: int
    calibration: dict[str, Calibration]
    test_start: dt.datetime


def champion(run: Run, targets: Collection[str]) -> Champion:
    """Fetch the model behind the alias and check that it fits the configuration and the vocabulary.

    Args:
        run: its configuration names the model, its alias and the fields.
        targets: what it has to answer.

    Raises:
        ModelError: none registered, damaged, trained on other fields or with another vocabulary, or not on one of the
            targets.
    """
    config = run.config
    weights, card, digest, version = registered_model(config)
    artifact = open_artifact(weights, card, digest)
    layout = artifact.model.layout
    for what, trained, declared in (
        ("categorical fields", layout.categorical, config.categorical),
        ("numeric fields", layout.numeric, config.numeric),
    ):
        if trained != declared:
            raise ModelError(
                f"the registered model was trained on the {what} {', '.join(trained)}, the configuration declares "
                f"{', '.join(declared)}: train again"
            )
    unknown = [target for target in targets if target not in artifact.calibration]
    if unknown:
        known = ", ".join(artifact.calibration)
        raise ModelError(f"the registered model answers {known}, not {', '.join(unknown)}: train again")
    facts = artifact.facts
    if not {VOCABULARY, TEST_START} <= facts.keys():
        raise ModelError(
            "the registered model does not say with which vocabulary it was trained and where its test period began, "
            "since an earlier version trained it: train again"
        )
    if vocabulary_digest(run.tables.read("vocabulary"), layout.ids_in_use) != facts[VOCABULARY]:
        raise ModelError(
            f"the registered model was trained with another vocabulary than the one in {config.root}: what its ids "
            "stand for is something else here. Train again, or use the root that it was trained in"
        )
    return Champion(
        weights,
        card,
        digest,
        version,
        layout,
        artifact.model.size.d_model,
        artifact.calibration,
        dt.datetime.fromisoformat(facts[TEST_START]),
    )


@dataclass(frozen=True)
class SequencesAt:
    """What `sequences_at` gives.

    Attributes:
        rows: of the table.
        held: how many rows the allowed have.
        lost: how many of these are left out.
        events: the version of `events` that the table was made of.
    """

    rows: DataFrame
    held: int
    lost: int
    events: int


def sequences_at(run: Run, allowed: DataFrame, purpose: str, layout: Layout) -> SequencesAt:
    """The sequences of which something can be asked at `as_of`, as if they had been made on that day.

    A row holds a customer's latest events, and may have been made for a later day. Left out are customers of whom so
    much has happened since that `sequences.max_events` cut off what an answer of that day reads
    (`dataset.columns.cut_off`): to the model they would be people who have done little.

    Args:
        run: of the stage.
        allowed: customers (column `customer_key`) who may be processed.
        purpose: that they agreed to, for the error.
        layout: says what an answer reads.

    Raises:
        ConsentError: events of the table belong now to somebody who does not agree (`sequences.dates.require_owned`).
        DataQualityError: nobody allowed has a row, or the table was made for an earlier `as_of`.
    """
    events = require_sequences(run, run.as_of, purpose)
    sequences = run.tables.read("sequences").join(allowed, "customer_key", "left_semi")
    as_of = micros(run.as_of)
    went_on = F.element_at("event_time", -1) >= as_of
    forgotten = (F.col("truncated_events") > 0) & went_on & (answers_after(layout) >= as_of)
    told = sequences.agg(F.count("*"), F.count_if(forgotten)).first()
    assert told is not None  # an aggregate without keys gives one row
    held, lost = (int(value) for value in told)
    if held == 0:
        raise DataQualityError(
            f"no customer who is eligible for {purpose!r} has a sequence: run the stage 'sequences' after the "
            "consent ledger changed"
        )
    return SequencesAt(sequences.where(~forgotten), held, lost, events)


def predict(run: Run, rows: DataFrame, model: Champion) -> DataFrame:
    """Answer the queries of every customer with a probability of the scored target.

    Args:
        run: the target is `scoring.target`.
        rows: a row a customer: `customer_key, query_ids`, the arrays of the sequence and of the queries.
        model: who answers.

    Returns:
        Grain (customer_key, query_id): `logit`, `calibrated` (probability).
    """
    target = run.config.scoring.target
    calibration = model.calibration[target]
    logit = F.col("answer")[0]
    calibrated = 1 / (1 + F.exp(-(logit * calibration.slope + calibration.intercept)))
    return answer(run, rows, model, target).select(
        "customer_key", "query_id", logit.alias("logit"), calibrated.alias("calibrated")
    )


def answer(run: Run, rows: DataFrame, model: Champion, target: str) -> DataFrame:
    """Answer the queries of every customer.

    Args:
        run: of the stage.
        rows: as of `predict`.
        model: who answers. It travels by broadcast and is built once a Python process.
        target: which question.

    Returns:
        Grain (customer_key, query_id): `answer` ARRAY<DOUBLE>: of `binary` a logit, of `value` mean and median amount
        (not calibrated), of `next` a logit a value. Memory of a worker: the model and one Arrow batch.
    """
    parts = run.spark.sparkContext.broadcast((model.weights, model.card, model.digest))
    layout = model.layout
    names = [*event_columns(layout), *query_columns(layout)]

    def answers(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:  # type: ignore[type-arg]
        artifact = cached_artifact(*parts.value)
        for series in batches:
            batch = pd.DataFrame(dict(zip(names, series, strict=True)))
            found = predict_queries(artifact, customers(layout, batch), target)
            yield pd.Series([list(prediction_values(layout, target, raw)) for raw in found])

    given: Callable[..., Column] = pandas_udf(answers, "array<array<double>>")  # type: ignore[call-overload]
    answered = rows.select("customer_key", "query_ids", given(*names).alias("answers"))
    pairs = answered.select("customer_key", F.explode(F.arrays_zip("query_ids", "answers")).alias("pair"))
    numbers = F.col("pair.answers")
    no_number = numbers.isNull() | F.exists(numbers, lambda value: value.isNull() | F.isnan(value))
    return pairs.select(
        "customer_key",
        F.col("pair.query_ids").alias("query_id"),
        # A score that is no number ends the job before anything is published.
        F.when(no_number, F.raise_error(F.lit(NOT_A_NUMBER))).otherwise(numbers).alias("answer"),
    )
