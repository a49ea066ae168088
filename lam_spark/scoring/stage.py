"""Stage `score`: predictions of every eligible customer for every proposal at `as_of`.

The proposal-necessity score is the calibrated probability of the target after the proposal. Cost: one pass over the
eligible customers' sequences, without a shuffle if these are few enough to be broadcast; proposals always are. For the
funnel, one pass over the keys of `events` and a shuffle of the ledger; for stale channels, one over a year of times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from pyspark.sql import functions as F

from lam_spark.config.definition import scores_definition
from lam_spark.consent.eligibility import StatusCounts, count_by_status, eligible_customers
from lam_spark.errors import DataQualityError
from lam_spark.events.completeness import active_days, channel_completeness, stale_channels
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.scoring.proposals import as_queries, read_proposals
from lam_spark.scoring.udf import load_registered_model, predict_probabilities, visible_sequences
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.time import sql_literal
from lam_spark.training_data.columns import collect_queries, event_columns


@dataclass(frozen=True)
class ScoreResult(StageResult):
    """Scores of one target and `as_of`.

    Attributes:
        customers_with_events: All customers that the channels know.
        truncated: Eligible customers whose history before `as_of` is truncated too much to be scored.
        customers_scored: Customers with scores.
        proposals: Proposals of each customer.
        scores: Rows written.
        consent: Purpose -> all customers with events by consent status.
        stale: Channel that is silent for too long -> the silence in words.
    """

    FORMAT: ClassVar[int] = 2

    customers_with_events: int
    truncated: int
    customers_scored: int
    proposals: int
    scores: int
    consent: dict[str, StatusCounts]
    model_digest: str
    model_version: int
    stale: dict[str, str]

    @property
    def message(self) -> str:
        """One line for people."""
        if self.proposals == 1:
            return f"{self.customers_scored:,} customers scored"
        return f"{self.customers_scored:,} customers x {self.proposals} proposals = {self.scores:,} scores"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Channels whose latest events the scores lack."""
        return tuple(f"channel {name}: {silence}" for name, silence in self.stale.items())

    @property
    def counts(self) -> dict[str, int]:
        """Customers, proposals and rows."""
        names = ("customers_with_events", "truncated", "customers_scored", "proposals", "scores")
        return {name: getattr(self, name) for name in names}


@stage
def score(ctx: RunContext) -> ScoreResult:
    """Publish `scores` for this target and `as_of` (a rerun replaces them).

    Grain: (customer_key, target, proposal_id, as_of). Customers without an event known before `as_of` have no row, as
    if the sequences had been built on that day. Customers whose history before it is truncated too much have none
    either.

    Raises:
        ConsentError: No customer may be contacted.
        DataQualityError: No such customer has an event known before `as_of`, or the sequences were built for an
            earlier one.
        ModelError: No model fits.
        ConfigError: No proposals, or too many.
    """
    config, tables = ctx.config, ctx.tables
    target, purpose = config.scoring.target, config.consent.contact_purpose
    model = load_registered_model(tables, config, [target])
    proposals = read_proposals(Inputs(ctx.spark, config.inputs, config.views), config)
    allowed = eligible_customers(tables, ctx.cache, purpose, ctx.started_at)
    consent_version = tables.read_versions["consent"]
    events = tables.read("events")
    active = active_days(events, ctx.as_of, config.time_zone)
    stale = stale_channels(channel_completeness(config.channels, active, ctx.as_of, config.time_zone))
    all_customers = events.select("customer_key").distinct()
    purposes = (config.consent.training_purpose, purpose)
    consent = count_by_status(tables, purposes, ctx.started_at, all_customers)
    sequences = visible_sequences(
        tables, ctx.cache, config, allowed, model.layout, purpose, ctx.as_of, ctx.started_at
    )
    as_of = sql_literal(ctx.as_of)
    visible = sequences.rows.where(F.col("first_known_at") < F.expr(as_of))
    if visible.isEmpty():
        raise DataQualityError(
            f"no eligible customer has an event that is known before as_of {config.as_of} and kept: no customer can be "
            "scored. Use a later --as-of"
        )
    encoded = as_queries(proposals, ctx.cache(tables.read("vocabulary")), config, ctx.as_of)
    queries = collect_queries(encoded, model.layout).drop("customer_key")
    rows = visible.select("customer_key", *event_columns(model.layout)).crossJoin(F.broadcast(queries))
    scored = predict_probabilities(rows, model, target)
    result = scored.join(
        F.broadcast(proposals.select("proposal_id", "description")),
        F.col("query_id") == F.col("proposal_id"),
    ).select(
        "customer_key",
        F.lit(target).alias("target"),
        "proposal_id",
        "description",
        F.expr(as_of).alias("as_of"),
        "logit",
        "probability",
        F.lit(model.digest).alias("model_digest"),
        F.lit(model.version).alias("model_version"),
        F.lit(json.dumps(scores_definition(config))).alias("definition"),
        F.array(*(F.lit(name) for name in stale)).cast("array<string>").alias("stale_channels"),
        F.lit(consent_version).alias("consent_version"),
        F.lit(sequences.events_version).cast("bigint").alias("events_version"),
        F.lit(ctx.run_id).alias("run_id"),
    )
    written = tables.overwrite(result, "scores", where=f"target = '{target}' AND as_of = {as_of}")
    proposal_count = proposals.count()
    return ScoreResult(
        customers_with_events=consent[purpose].customers,
        truncated=sequences.truncated,
        customers_scored=written // proposal_count,
        proposals=proposal_count,
        scores=written,
        consent=consent,
        model_digest=model.digest,
        model_version=model.version,
        stale=stale,
    )
