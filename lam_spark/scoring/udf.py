"""The Spark side of prediction: an iterator pandas UDF over customers and their queries."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.config import Config
from lam_spark.config.definition import differences, model_definition
from lam_spark.errors import DataQualityError, ModelError
from lam_spark.model.artifact import Calibration, open_artifact
from lam_spark.model.card import DEFINITION, TEST_START, VOCABULARY
from lam_spark.runtime.jvm import Broadcast
from lam_spark.scoring.predictor import cached_artifact, predict_queries, prediction_values
from lam_spark.sequences.definitions import run_again
from lam_spark.sequences.freshness import require_sequences
from lam_spark.sequences.vocabulary import vocabulary_digest
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.tables.store import NOT_A_NUMBER, Tables
from lam_spark.storage.time import micros
from lam_spark.training.registry import registered_model
from lam_spark.training_data.columns import complete_after, customers, event_columns, query_columns
from lam_spark.training_data.layout import Layout


@dataclass(frozen=True)
class RegisteredModel:
    """The registered model, checked, as bytes that travel to the executors.

    Attributes:
        digest: sha256 of the files, as in the registry.
        version: Version in the registry.
        d_model: Width of its hidden states.
        calibration: Target -> calibration of its predictions.
        test_start: The model has seen nothing from this instant on (UTC).
    """

    weights: bytes
    card: bytes
    digest: str
    version: int
    layout: Layout
    d_model: int
    calibration: dict[str, Calibration]
    test_start: dt.datetime


def load_registered_model(tables: Tables, config: Config, targets: Collection[str]) -> RegisteredModel:
    """Fetch the model behind the alias and check that it fits the configuration and the vocabulary.

    Args:
        tables: Tables of the workspace.
        config: Names the model, its alias and the fields.
        targets: Targets that the model has to predict.

    Raises:
        ModelError: No model is registered, it is damaged, was trained for another configuration or with another
            vocabulary, or does not predict one of the targets.
    """
    weights, card, digest, version = registered_model(config)
    artifact = open_artifact(weights, card, digest)
    layout = artifact.model.layout
    facts = artifact.facts
    if not {VOCABULARY, TEST_START, DEFINITION} <= facts.keys():
        raise ModelError(
            "the registered model does not record its vocabulary, the start of its test period and what it was trained "
            "for: it was made by another version. Train again"
        )
    differing = differences(facts[DEFINITION], model_definition(config))
    if differing:
        raise ModelError(
            f"the registered model was trained for another configuration, which differs in {differing}: "
            f"{run_again(tables, config, otherwise='train')}"
        )
    unknown = [target for target in targets if target not in artifact.calibration]
    if unknown:
        predicted = ", ".join(artifact.calibration)
        raise ModelError(f"the registered model predicts {predicted}, not {', '.join(unknown)}: train again")
    if vocabulary_digest(tables.read("vocabulary"), layout.ids_in_use) != facts[VOCABULARY]:
        raise ModelError(
            f"the registered model was trained with another vocabulary than the one in {config.root}: its token ids "
            "mean other values. Train again, or use the root that it was trained in"
        )
    return RegisteredModel(
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
class VisibleSequences:
    """Sequences that can be scored at an `as_of`.

    Attributes:
        rows: Rows of the table `sequences`.
        total: Rows of eligible customers, those left out included.
        truncated: Rows left out because too many events since `as_of` truncated the history.
        events_version: Version of `events` that the sequences were built from.
    """

    rows: DataFrame
    total: int
    truncated: int
    events_version: int


def visible_sequences(
    tables: Tables,
    cache: FrameCache,
    config: Config,
    allowed: DataFrame,
    layout: Layout,
    purpose: str,
    as_of: dt.datetime,
    at: dt.datetime,
) -> VisibleSequences:
    """Sequences of eligible customers that can be read at `as_of`, as if they had been built on that day.

    A row holds a customer's latest events and may have been built for a later day. Customers are left out if
    `sequences.max_events` cut off what a prediction at `as_of` reads (`training_data.columns.truncated_rows`): to
    the model they would look like customers with little history.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: The present configuration.
        allowed: Eligible customers (column `customer_key`).
        layout: Determines which events a prediction reads.
        purpose: Purpose that the customers agreed to.
        as_of: Instant of the prediction.
        at: Instant at which consent statements must be effective.

    Raises:
        ConsentError: Events were reassigned to customers who are not eligible (`consent.guards`).
        DataQualityError: No eligible customer has a sequence, or the sequences were built for an earlier `as_of` or
            another configuration.
    """
    events_version = require_sequences(tables, cache, config, as_of, purpose, at)
    sequences = tables.read("sequences").join(allowed, "customer_key", "left_semi")
    as_of_micros = micros(as_of)
    has_later_events = F.element_at("known_at", -1) >= as_of_micros
    is_truncated = (
        (F.col("truncated_events") > 0) & has_later_events & (complete_after(layout) >= as_of_micros)
    )
    total, truncated = one_row(sequences.agg(F.count("*"), F.count_if(is_truncated)))
    if total == 0:
        raise DataQualityError(
            f"no customer who is eligible for {purpose!r} has a sequence: run the stage 'sequences' after the "
            "consent ledger changed"
        )
    return VisibleSequences(sequences.where(~is_truncated), total, truncated, events_version)


def predict_probabilities(rows: DataFrame, model: RegisteredModel, target: str) -> DataFrame:
    """Predict a calibrated probability of a binary target for every query of every customer.

    Args:
        rows: One row per customer: `customer_key`, `query_ids`, the arrays of the sequence and of the queries.
        model: The model.
        target: A binary target.

    Returns:
        Grain (customer_key, query_id): `logit`, `probability`.
    """
    calibration = model.calibration[target]
    logit = F.col("prediction")[0]
    probability = 1 / (1 + F.exp(-(logit * calibration.slope + calibration.intercept)))
    return predict(rows, model, target).select(
        "customer_key", "query_id", logit.alias("logit"), probability.alias("probability")
    )


def predict(rows: DataFrame, model: RegisteredModel, target: str) -> DataFrame:
    """Predict a target for every query of every customer.

    Memory of a worker: the model, which is built once per Python process, and one Arrow batch.

    Args:
        rows: As in `predict_probabilities`.
        model: The model; it travels by broadcast.
        target: Any target of the model.

    Returns:
        Grain (customer_key, query_id): `prediction` ARRAY<DOUBLE>: of `binary` a logit, of `value` mean and median
        amount (not calibrated), of `next` one logit per value.
    """
    parts = Broadcast(rows.sparkSession, (model.weights, model.card, model.digest))
    layout = model.layout
    names = [*event_columns(layout), *query_columns(layout)]

    def predict_batches(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:  # type: ignore[type-arg]
        artifact = cached_artifact(*parts.value)
        for series in batches:
            batch = pd.DataFrame(dict(zip(names, series, strict=True)))
            predictions = predict_queries(artifact, customers(layout, batch), target)
            yield pd.Series([list(prediction_values(layout, target, raw)) for raw in predictions])

    udf: Callable[..., Column] = pandas_udf(predict_batches, "array<array<double>>")  # type: ignore[call-overload]
    predicted = rows.select("customer_key", "query_ids", udf(*names).alias("_predictions"))
    pairs = predicted.select(
        "customer_key", F.explode(F.arrays_zip("query_ids", "_predictions")).alias("_pair")
    )
    numbers = F.col("_pair._predictions")
    is_damaged = numbers.isNull() | F.exists(numbers, lambda value: value.isNull() | F.isnan(value))
    return pairs.select(
        "customer_key",
        F.col("_pair.query_ids").alias("query_id"),
        # A prediction that is not a number fails the job before anything is published.
        F.when(is_damaged, F.raise_error(F.lit(NOT_A_NUMBER))).otherwise(numbers).alias("prediction"),
    )
