"""Stage `score`: every eligible customer's answer to every proposal at `as_of`.

The proposal-necessity score is the calibrated probability of the target after the proposal. Cost: one pass
over the eligible customers' sequences, without a shuffle where they are few enough to be broadcast; proposals are. For
the funnel, one pass over the keys of `events` and a shuffle of the ledger.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import count_standings, eligible
from lam_spark.errors import ConfigError, DataQualityError, did_you_mean
from lam_spark.events.schema import field_types
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.scoring.udf import champion, predict, sequences_at
from lam_spark.sequences.entries import hour_of_week
from lam_spark.sequences.vocabulary import encode
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import local_frame
from lam_spark.training_data.columns import collect_queries, event_columns

_PROPOSAL_COLUMNS = ("proposal_id", "description")


@stage
def run(run: Run) -> StageResult:
    """Publish `scores` for this target and `as_of` (a rerun replaces them).

    Grain: (customer_key, target, proposal_id, as_of). Columns: `logit, calibrated, description, model_digest,
    model_version, consent_version, events_version, run_id`. Customers without an event before `as_of` have no row, as
    if the sequences had been made on that day; nor have those of whose events before it too few are kept any more.

    Raises:
        ConsentError: nobody may be contacted.
        DataQualityError: nobody of them has an event before `as_of`, or the sequences were made for an earlier one.
        ModelError: no fitting model.
        ConfigError: no proposals, or too many.
    """
    config = run.config
    model = champion(run, [config.scoring.target])
    offers = proposals(run)
    allowed = eligible(run, config.consent.contact_purpose)
    consent_version = run.tables.read_versions["consent"]
    everyone = run.tables.read("events").select("customer_key").distinct()
    purposes = (config.consent.training_purpose, config.consent.contact_purpose)
    standings = count_standings(run, purposes, everyone)
    sequences = sequences_at(run, allowed, config.consent.contact_purpose, model.layout)
    target, as_of = config.scoring.target, sql_literal(run.as_of)
    known = sequences.rows.where(F.col("first_event_time") < F.expr(as_of))
    if known.isEmpty():
        raise DataQualityError(
            f"no eligible customer has an event before as_of {config.as_of} that is kept: there is nobody to score. "
            "Give a later --as-of"
        )
    queries = collect_queries(_as_queries(run, offers), model.layout).drop("customer_key")
    rows = known.select("customer_key", *event_columns(model.layout)).crossJoin(F.broadcast(queries))
    scored = predict(run, rows, model)
    result = scored.join(
        F.broadcast(offers.select("proposal_id", "description")), F.col("query_id") == F.col("proposal_id")
    ).select(
        "customer_key",
        F.lit(target).alias("target"),
        "proposal_id",
        "description",
        F.expr(as_of).alias("as_of"),
        "logit",
        "calibrated",
        F.lit(model.digest).alias("model_digest"),
        F.lit(model.version).alias("model_version"),
        F.lit(consent_version).alias("consent_version"),
        F.lit(sequences.events).cast("bigint").alias("events_version"),
        F.lit(run.run_id).alias("run_id"),
    )
    where = f"target = '{target}' AND as_of = {as_of}"
    written = run.tables.overwrite(result, "scores", where=where)
    offered = offers.count()
    return StageResult(
        says=f"{written // offered:,} customers x {offered} proposals = {written:,} scores",
        counts={
            "customers_with_events": sum(standings[config.consent.contact_purpose].values()),
            "before_kept_events": sequences.lost,
            "customers_scored": written // offered,
            "proposals": offered,
            "scores": written,
        },
        facts={"standings": standings, "digest": model.digest, "model_version": model.version},
    )


def proposals(run: Run) -> DataFrame:
    """The proposals at `as_of` (grain: a proposal; at most `scoring.max_proposals` rows).

    Columns: `proposal_id, description` and every declared field but the reference ones.

    Raises:
        ConfigError: the select does not run, yields an unknown column, no row, a missing or repeated id, or too many
            rows.
    """
    config = run.config
    statement = config.scoring.proposals.replace("{as_of}", config.as_of.isoformat())
    chosen = Inputs(run.spark, config).select(statement, "scoring.proposals")
    types = {n: t for n, t in field_types(config).items() if n not in config.reference}
    for name in chosen.columns:
        if name not in (*_PROPOSAL_COLUMNS, *types):
            hint = did_you_mean(name, types, f"expected {', '.join(_PROPOSAL_COLUMNS)} and fields")
            raise ConfigError(f"scoring.proposals yields {name!r}, which is not a field of the model: {hint}")
    lacking = [name for name in _PROPOSAL_COLUMNS if name not in chosen.columns]
    if lacking:
        raise ConfigError(f"scoring.proposals must yield {', '.join(lacking)}")
    typed = chosen.select(
        *(F.col(name).cast("string") for name in _PROPOSAL_COLUMNS),
        *(
            (F.col(name).cast(kind) if name in chosen.columns else F.lit(None).cast(kind)).alias(name)
            for name, kind in types.items()
        ),
    )
    most = config.scoring.max_proposals
    rows = typed.limit(most + 1).toLocalIterator()
    held = list(rows)
    if not held:
        raise ConfigError(
            f"scoring.proposals gives no proposal at as_of {config.as_of}: nothing can be proposed"
        )
    if len(held) > most:
        raise ConfigError(f"scoring.proposals gives more than scoring.max_proposals = {most} rows")
    if not all((row["proposal_id"] or "").strip() for row in held):
        raise ConfigError(
            "scoring.proposals gives a proposal without a proposal_id: concat is null where one of its parts is "
            "(COALESCE them)"
        )
    if len({row["proposal_id"] for row in held}) != len(held):
        raise ConfigError("scoring.proposals repeats a proposal_id: each proposal needs one of its own")
    return local_frame(run.spark, held, typed.schema)


def _as_queries(run: Run, offers: DataFrame) -> DataFrame:
    """Proposals as query events at `as_of`, of one nobody ('*'), encoded by the vocabulary."""
    config = run.config
    at = F.expr(sql_literal(run.as_of))
    events = offers.select(
        F.lit("*").alias("customer_key"),
        F.col("proposal_id").alias("query_id"),
        F.unix_micros(at).alias("query_time"),
        hour_of_week(F.from_utc_timestamp(at, config.time_zone)).alias("query_hour_of_week"),
        *config.categorical,
        *config.numeric,
    )
    return encode(events, run.keep(run.tables.read("vocabulary")), config.categorical)
