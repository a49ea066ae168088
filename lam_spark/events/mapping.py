"""A channel's select, checked against the declared fields, and the rules that a row must pass."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.run import sql_literal
from lam_spark.schema import CHANNEL_COLUMNS, channel_schema
from lam_spark.sources.readers import Inputs

REASON = "reason"
# Clocks of a company's systems differ by minutes; a day more than now is a wrong date.
_FUTURE_TOLERANCE = dt.timedelta(days=1)


def map_channel(inputs: Inputs, config: Config, channel: str) -> DataFrame:
    """Run the channel's select and give it the declared columns.

    Grain: a row of the channel's `grain` input. A declared field that the select leaves out is null.
    Values that do not cast become null and are caught by `row_reason` where they matter.

    Raises:
        ConfigError: the select does not run, lacks a column that every event needs, or yields one that is
            not declared (the nearest declared name is given).
    """
    spec = config.channels[channel]
    mapped = inputs.select(spec.select, f"channels.{channel}.select", spec.grain)
    lacking = [name for name in CHANNEL_COLUMNS if name not in mapped.columns]
    if lacking:
        raise ConfigError(
            f"channels.{channel}.select must yield {', '.join(CHANNEL_COLUMNS)}; "
            f"it lacks {', '.join(lacking)}"
        )
    schema = channel_schema(config)
    for name in mapped.columns:
        if name not in schema.names:
            hint = did_you_mean(name, schema.names, "declare it under fields")
            raise ConfigError(f"channels.{channel}.select yields {name!r}, which is not declared: {hint}")
    return mapped.select(
        *(
            (
                F.col(f.name).try_cast(f.dataType)
                if f.name in mapped.columns
                else F.lit(None).cast(f.dataType)
            ).alias(f.name)
            for f in schema
        )
    )


def row_reason(config: Config, now: dt.datetime) -> Column:
    """Why a mapped row is refused, or null. The first rule that fails names it."""
    late = sql_literal(now + _FUTURE_TOLERANCE)
    rules: list[tuple[Column, str]] = [
        (F.col("customer_id").isNull() | (F.trim("customer_id") == ""), "customer_id is missing"),
        (F.col("event_time").isNull(), "event_time is missing or not a time"),
        (F.col("event_time") > F.expr(late), "event_time is in the future"),
        (F.col("event_key").isNull(), "event_key is missing"),
        *(
            (F.isnan(name) | F.col(name).isin(float("inf"), float("-inf")), f"{name} is not finite")
            for name in config.numeric
        ),
    ]
    reason = F.lit(None).cast("string")
    for broken, text in reversed(rules):
        reason = F.when(broken, F.lit(text)).otherwise(reason)
    return reason
