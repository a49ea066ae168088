"""Selects of channels and link statements: run over new raw rows, cast to the declared types, checked by rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DateType

from lam_spark.config import ChannelConfig, ClockConfig, FieldConfig, LinkConfig
from lam_spark.errors import ConfigError, did_you_mean, first_line
from lam_spark.events.clock import read_local_time, require_clock_format
from lam_spark.events.quarantine import with_reason
from lam_spark.events.rules import (
    SELECTED,
    Rules,
    TimeLimits,
    channel_rules,
    event_rules,
    field_rules,
    link_rules,
    text_rules,
)
from lam_spark.events.schema import CHANNEL_COLUMNS, channel_schema
from lam_spark.identity.pseudonyms import CUSTOMER, id_column
from lam_spark.sources.files import Input
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import require_columns
from lam_spark.storage.wall_clock import end_of_local_day

_LINK_TYPES = {"id_kind": "string", "id": "string", "customer_id": "string", "linked_at": "timestamp"}
_TIME_EXISTS = "_time_exists"


def map_channel(
    inputs: Inputs,
    name: str,
    channel: ChannelConfig,
    fields: Mapping[str, FieldConfig],
    limits: TimeLimits,
    new: Input,
    time_zone: str,
    fold_case: Sequence[str] = (),
) -> DataFrame:
    """Run a channel's select over the new rows of its grain, and apply the rules to each row.

    An `event_time` that is a DATE is the last microsecond of this local day: the event is not known before.

    Grain: a row of the channel's `grain` input. Columns: `customer_id` (raw), `event_time` (UTC), `event_key`, the
    declared fields (null if the select does not yield them), `reason` (null: accepted), `raw` (JSON of the selected
    values, of refused rows only) and `source`. Ids of the kinds `fold_case` are in lower case.

    Raises:
        ConfigError: The select, the clock or a rule does not run, a required column is missing, a column is not
            declared (the message gives the nearest declared name), or ids are of a floating type.
    """
    key = f"channels.{name}.select"
    selected = inputs.select(channel.select, key, channel.grain, new)
    _check_columns(key, fields, selected)
    rows = selected.select(
        F.struct(*selected.columns).alias(SELECTED),
        id_column(selected, "customer_id", key, folds=channel.id in fold_case).alias("customer_id"),
        *(
            (
                F.col(field.name).try_cast(field.dataType)
                if field.name in selected.columns
                else F.lit(None).cast(field.dataType)
            ).alias(field.name)
            for field in channel_schema(fields)
            if field.name != "customer_id"
        ),
    )
    rules = text_rules(selected.schema)
    if isinstance(selected.schema["event_time"].dataType, DateType):
        zone = channel.clock.zone if channel.clock else time_zone
        rows = rows.withColumn("event_time", end_of_local_day(F.col(f"{SELECTED}.event_time"), zone))
    elif channel.clock is not None:
        rows, time_exists = _read_clock(rows, name, channel.clock)
        rules.append((F.col("event_time").isNull(), "event_time is missing or not a time"))
        rules.append((~time_exists, f"event_time does not exist in {channel.clock.zone}"))
    rules += event_rules(limits) + field_rules(fields, selected.schema) + channel_rules(channel)
    try:
        return with_reason(rows, rules, selected.columns, name).drop(_TIME_EXISTS)
    except (AnalysisException, ParseException) as error:
        raise ConfigError(f"channels.{name}.rules: {first_line(error)}") from error


def map_links(
    inputs: Inputs,
    name: str,
    link: LinkConfig,
    limits: TimeLimits,
    new: Input,
    time_zone: str,
    fold_case: Sequence[str] = (),
) -> DataFrame:
    """Run a link statement's select over the new rows of its grain, and apply the rules to each row.

    Grain: a row of its `grain` input. Columns: `id_kind, id, customer_id, linked_at, reason, raw, source`. A
    `linked_at` that is a DATE is the last microsecond of this local day.

    Raises:
        ConfigError: The select does not run, yields other columns, or ids of a floating type.
    """
    key = f"identity.links.{name}.select"
    selected = inputs.select(link.select, key, link.grain, new)
    if sorted(selected.columns) != sorted(_LINK_TYPES):
        raise ConfigError(
            f"{key} must yield {', '.join(_LINK_TYPES)}; it yields {', '.join(selected.columns)}"
        )
    id_folds: Column | bool = F.col("id_kind").try_cast("string").isin(*fold_case) if fold_case else False
    rows = selected.select(
        F.struct("id_kind", "linked_at").alias(SELECTED),
        id_column(selected, "id", key, folds=id_folds).alias("id"),
        id_column(selected, "customer_id", key, folds=CUSTOMER in fold_case).alias("customer_id"),
        *(F.col(column).try_cast(_LINK_TYPES[column]).alias(column) for column in ("id_kind", "linked_at")),
    )
    if isinstance(selected.schema["linked_at"].dataType, DateType):
        rows = rows.withColumn("linked_at", end_of_local_day(F.col(f"{SELECTED}.linked_at"), time_zone))
    rules: Rules = link_rules(limits)
    return with_reason(rows, rules, ["id_kind", "linked_at"], name)


def _check_columns(key: str, fields: Mapping[str, FieldConfig], selected: DataFrame) -> None:
    require_columns(selected, CHANNEL_COLUMNS, key)
    declared = channel_schema(fields).names
    for name in selected.columns:
        if name not in declared:
            hint = did_you_mean(name, declared, "declare it under fields")
            raise ConfigError(f"{key} yields {name!r}, which is not declared: {hint}")


def _read_clock(rows: DataFrame, channel: str, clock: ClockConfig) -> tuple[DataFrame, Column]:
    """Convert `event_time` from a local time of the clock's zone to UTC.

    Returns:
        The rows, and a column that is true where the local time existed.
    """
    require_clock_format(rows.sparkSession, f"channels.{channel}.clock.format", clock)
    time, exists = read_local_time(F.col(f"{SELECTED}.event_time"), clock)
    return rows.withColumns({"event_time": time, _TIME_EXISTS: exists}), F.col(_TIME_EXISTS)
