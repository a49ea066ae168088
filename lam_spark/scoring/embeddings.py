"""Stage `embed`: one embedding per customer at `as_of`, for models of the user's own.

`lam-spark run` leaves it out: embeddings reveal as much about a customer as the events do. Cost: one pass over the
eligible customers' sequences, no shuffle but the one that selects the eligible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.consent.eligibility import eligible_customers
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.jvm import Broadcast
from lam_spark.runtime.results import StageResult
from lam_spark.scoring.predictor import cached_artifact, embed_customers
from lam_spark.scoring.udf import RegisteredModel, load_registered_model, visible_sequences
from lam_spark.sequences.entries import local_hour_of_week
from lam_spark.storage.tables.store import NOT_A_NUMBER
from lam_spark.storage.time import micros, sql_literal
from lam_spark.training_data.columns import customers, event_columns, query_columns


@dataclass(frozen=True)
class EmbedResult(StageResult):
    """Embeddings of one `as_of`.

    Attributes:
        customers_eligible: Customers eligible for the purpose.
        without_sequence: Eligible customers without a sequence.
        truncated: Eligible customers whose history before `as_of` is truncated too much to be read.
        embeddings: Rows written.
        d_model: Numbers of an embedding.
    """

    customers_eligible: int
    without_sequence: int
    truncated: int
    embeddings: int
    d_model: int
    purpose: str
    model_digest: str
    model_version: int

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.embeddings:,} embeddings of {self.d_model} numbers, of customers who agreed to {self.purpose}"

    @property
    def counts(self) -> dict[str, int]:
        """Customers and rows."""
        names = ("customers_eligible", "without_sequence", "truncated", "embeddings")
        return {name: getattr(self, name) for name in names}


@stage
def embed(ctx: RunContext) -> EmbedResult:
    """Publish `embeddings` for this `as_of` (a rerun replaces them).

    Grain: (customer_key, as_of), customers who are eligible for `embeddings.purpose` and have a sequence. Embeddings of
    two models are not comparable: compare within a digest.

    A customer whose sequence begins after `as_of` gets the embedding of an empty history. A customer whose history
    before `as_of` is truncated too much gets no row: the embedding would claim that little is known.

    Raises:
        ConsentError: No customer is eligible for the purpose.
        DataQualityError: No eligible customer has a sequence, the sequences were built for an earlier `as_of`, or an
            embedding is not a number.
        ModelError: No model fits.
    """
    config, tables = ctx.config, ctx.tables
    model = load_registered_model(tables, config, ())
    purpose = config.embeddings.purpose or config.consent.training_purpose
    allowed = eligible_customers(tables, ctx.cache, purpose, ctx.started_at)
    consent_version = tables.read_versions["consent"]
    sequences = visible_sequences(
        tables, ctx.cache, config, allowed, model.layout, purpose, ctx.as_of, ctx.started_at
    )
    hour_of_week = local_hour_of_week(ctx.as_of, config.time_zone)
    as_of = sql_literal(ctx.as_of)
    result = embeddings(sequences.rows, model, micros(ctx.as_of), hour_of_week).select(
        "customer_key",
        F.expr(as_of).alias("as_of"),
        "embedding",
        F.lit(model.digest).alias("model_digest"),
        F.lit(model.version).alias("model_version"),
        F.lit(consent_version).alias("consent_version"),
        F.lit(ctx.run_id).alias("run_id"),
    )
    written = tables.overwrite(result, "embeddings", where=f"as_of = {as_of}")
    customer_count = allowed.count()
    return EmbedResult(
        customers_eligible=customer_count,
        without_sequence=customer_count - sequences.total,
        truncated=sequences.truncated,
        embeddings=written,
        d_model=model.d_model,
        purpose=purpose,
        model_digest=model.digest,
        model_version=model.version,
    )


def embeddings(sequences: DataFrame, model: RegisteredModel, at: int, hour_of_week: int) -> DataFrame:
    """The model's embedding of every customer at an instant.

    Memory of a worker: the model, which is built once per Python process, and one Arrow batch.

    Args:
        sequences: Rows of the table `sequences`.
        model: The model; it travels by broadcast.
        at: The instant, microseconds UTC.
        hour_of_week: Local hour of the week of the instant (0 = Sunday 00:00).

    Returns:
        `customer_key`, `embedding` ARRAY<FLOAT>; grain of `sequences`.
    """
    parts = Broadcast(sequences.sparkSession, (model.weights, model.card, model.digest))
    layout, names = model.layout, event_columns(model.layout)
    # The rows bring no queries: every customer gets the same empty query.
    no_queries = dict.fromkeys(query_columns(layout))

    def embed_batches(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:  # type: ignore[type-arg]
        artifact = cached_artifact(*parts.value)
        for series in batches:
            batch = pd.DataFrame({**dict(zip(names, series, strict=True)), **no_queries})
            yield pd.Series(list(embed_customers(artifact, customers(layout, batch), at, hour_of_week)))

    udf: Callable[..., Column] = pandas_udf(embed_batches, "array<float>")  # type: ignore[call-overload]
    rows = sequences.select("customer_key", udf(*names).alias("embedding"))
    # An embedding that is not a number fails the job before anything is published.
    is_damaged = F.col("embedding").isNull() | F.exists("embedding", F.isnan)
    checked = F.when(is_damaged, F.raise_error(F.lit(NOT_A_NUMBER))).otherwise(F.col("embedding"))
    return rows.select("customer_key", checked.alias("embedding"))
