"""The proposals that customers are scored for: the configured select, checked, and as encoded queries."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.events.schema import field_types
from lam_spark.sequences.entries import hour_of_week
from lam_spark.sequences.vocabulary import encode
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.session_settings import configured_sql
from lam_spark.storage.time import sql_literal

_KEY = "scoring.proposals"
_REQUIRED = ("proposal_id", "description")


def read_proposals(inputs: Inputs, config: Config) -> DataFrame:
    """The proposals at `as_of` (grain: a proposal; at most `scoring.max_proposals` rows).

    Columns: `proposal_id`, `description` and every declared field but reference fields.

    Raises:
        ConfigError: The select does not run, yields an unknown column, no row, a missing or repeated id, or too
            many rows.
    """
    statement = config.scoring.proposals.replace("{as_of}", config.as_of.isoformat())
    selected = inputs.select(statement, _KEY)
    types = {n: t for n, t in field_types(config.fields).items() if n not in config.reference}
    for name in selected.columns:
        if name not in (*_REQUIRED, *types):
            hint = did_you_mean(name, types, f"expected {', '.join(_REQUIRED)} and fields")
            raise ConfigError(f"{_KEY} yields {name!r}, which is not a field of the model: {hint}")
    missing = [name for name in _REQUIRED if name not in selected.columns]
    if missing:
        raise ConfigError(f"{_KEY} must yield {', '.join(missing)}")
    with configured_sql(inputs.spark):
        typed = selected.select(
            *(F.col(name).cast("string") for name in _REQUIRED),
            *(
                (F.col(name).cast(kind) if name in selected.columns else F.lit(None).cast(kind)).alias(name)
                for name, kind in types.items()
            ),
        )
    rows: list[Any] = list(typed.limit(config.scoring.max_proposals + 1).toLocalIterator())
    _require_valid(rows, config)
    return local_frame(selected.sparkSession, rows, typed.schema)


def _require_valid(rows: Sequence[Row], config: Config) -> None:
    if not rows:
        raise ConfigError(f"{_KEY} gives no proposal at as_of {config.as_of}: nothing can be proposed")
    if len(rows) > config.scoring.max_proposals:
        raise ConfigError(
            f"{_KEY} gives more than scoring.max_proposals = {config.scoring.max_proposals} rows"
        )
    if not all((row["proposal_id"] or "").strip() for row in rows):
        raise ConfigError(
            f"{_KEY} gives a proposal without a proposal_id: concat is null where one of its parts is "
            "(use COALESCE)"
        )
    if len({row["proposal_id"] for row in rows}) != len(rows):
        raise ConfigError(f"{_KEY} repeats a proposal_id: each proposal needs an id of its own")


def as_queries(proposals: DataFrame, vocabulary: DataFrame, config: Config, as_of: dt.datetime) -> DataFrame:
    """Proposals as encoded query events at `as_of` (grain: a proposal), with the placeholder customer '*'."""
    at = F.expr(sql_literal(as_of))
    events = proposals.select(
        F.lit("*").alias("customer_key"),
        F.col("proposal_id").alias("query_id"),
        F.unix_micros(at).alias("query_time"),
        hour_of_week(F.from_utc_timestamp(at, config.time_zone)).alias("query_hour_of_week"),
        *config.categorical,
        *config.numeric,
    )
    return encode(events, vocabulary, config.categorical)
