"""Stage `embed`: a vector a customer at `as_of`, for people's own models.

`lam-spark run` leaves it out: vectors say as much about a customer as the events do, so they are made when
somebody has a use for them and not every night. Cost: one pass over the eligible customers' sequences, no
shuffle but the one by which the eligible are picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.consent.eligibility import eligible
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.scoring.predictor import cached_artifact, embed_customers
from lam_spark.scoring.udf import Champion, champion, sequences_at
from lam_spark.sequences.entries import local_hour_of_week
from lam_spark.sequences.time_range import micros
from lam_spark.storage.tables import NOT_A_NUMBER
from lam_spark.training_data.columns import customers, event_columns, query_columns


@stage
def run(run: Run) -> StageResult:
    """Publish `embeddings` for this `as_of` (a rerun replaces them).

    Grain: (customer_key, as_of), customers who are eligible for `embeddings.purpose` and have a sequence.
    Columns: `vector ARRAY<FLOAT>` (as long as the model is wide), `model_digest, model_version,
    consent_version, run_id`. Vectors of two models have nothing in common: compare within a digest.

    A customer whose sequence begins after `as_of` gets the vector of an empty history. One of whose events
    before `as_of` the sequence, made for a later day, holds too few, because `sequences.max_events` cut them
    off, gets no row: the vector would say that little is known where much has happened.

    Raises:
        ConsentError: nobody is eligible for the purpose.
        DataQualityError: no eligible customer has a sequence, the sequences were made for an earlier `as_of`, or a
            vector is not a number.
        ModelError: no fitting model.
    """
    config = run.config
    model = champion(run, ())
    purpose = config.embeddings.purpose or config.consent.training_purpose
    allowed = eligible(run, purpose)
    consent_version = run.tables.read_versions["consent"]
    sequences = sequences_at(run, allowed, purpose, model.layout)
    as_of = sql_literal(run.as_of)
    result = vectors(run, sequences.rows, model).select(
        "customer_key",
        F.expr(as_of).alias("as_of"),
        "vector",
        F.lit(model.digest).alias("model_digest"),
        F.lit(model.version).alias("model_version"),
        F.lit(consent_version).alias("consent_version"),
        F.lit(run.run_id).alias("run_id"),
    )
    written = run.tables.overwrite(result, "embeddings", where=f"as_of = {as_of}")
    asked = allowed.count()
    return StageResult(
        says=f"{written:,} vectors of {model.d_model} numbers, of customers who agreed to {purpose}",
        counts={
            "customers_eligible": asked,
            "without_sequence": asked - sequences.held,
            "before_kept_events": sequences.lost,
            "embeddings": written,
        },
        facts={
            "purpose": purpose,
            "d_model": model.d_model,
            "digest": model.digest,
            "model_version": model.version,
        },
    )


def vectors(run: Run, sequences: DataFrame, model: Champion) -> DataFrame:
    """The model's vector of every customer at `as_of`.

    Args:
        run: says `as_of` and the time zone.
        sequences: rows of the table.
        model: whose vectors.

    Returns:
        `customer_key`, `vector ARRAY<FLOAT>`; grain of `sequences`. The model travels by broadcast and is
        built once a Python process; memory of a worker: the model and one Arrow batch.
    """
    parts = run.spark.sparkContext.broadcast((model.weights, model.card, model.digest))
    layout, names = model.layout, event_columns(model.layout)
    # The rows bring no queries: the one question is asked of everybody.
    no_queries = dict.fromkeys(query_columns(layout))
    at, hour = micros(run.as_of), local_hour_of_week(run.as_of, run.config.time_zone)

    def embedded(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:  # type: ignore[type-arg]
        artifact = cached_artifact(*parts.value)
        for series in batches:
            batch = pd.DataFrame({**dict(zip(names, series, strict=True)), **no_queries})
            yield pd.Series(list(embed_customers(artifact, customers(layout, batch), at, hour)))

    embed: Callable[..., Column] = pandas_udf(embedded, "array<float>")  # type: ignore[call-overload]
    made = sequences.select("customer_key", embed(*names).alias("vector"))
    # A vector that is no number ends the job before anything is published.
    damaged = F.col("vector").isNull() | F.exists("vector", F.isnan)
    checked = F.when(damaged, F.raise_error(F.lit(NOT_A_NUMBER))).otherwise(F.col("vector"))
    return made.select("customer_key", checked.alias("vector"))
