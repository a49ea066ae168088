"""A channel's select, checked against the declared fields, and the rules that a row must pass.

A refused row keeps its reason and the values that its select gave, without the customer's id.
"""

from __future__ import annotations

import datetime as dt

from pyspark.errors import AnalysisException, ParseException
from pyspark.errors.exceptions.base import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DoubleType, StringType

from lam_spark.config import ChannelConfig, ClockConfig, Config
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.events.schema import CHANNEL_COLUMNS, channel_schema
from lam_spark.identity.pseudonyms import id_text
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.sources.inputs import Inputs

REASON = "reason"
RAW = "raw"
# Clocks of a company's systems differ by minutes; a day more than now is a wrong date.
_FUTURE_TOLERANCE = dt.timedelta(days=1)
# Sequences and the model hold numbers of 32 bits: a larger one, say a sentinel, would be infinite there.
_LARGEST = 3.4028234663852886e38
# What decoders put where bytes were not UTF-8.
_REPLACEMENT = "\ufffd"
# Columns that live only between two selects.
_GIVEN, _EXISTS, _WALL = "_given", "_exists", "_wall"

Rules = list[tuple[Column, str]]


def map_channel(run: Run, inputs: Inputs, channel: str) -> DataFrame:
    """Run the channel's select over what is new of its grain, and judge every row.

    Grain: a row of the channel's `grain` input. Columns: `customer_id` (raw), `event_time` (UTC), `event_key`,
    the declared fields (one that the select leaves out is null), `source`, `reason` (null: accepted) and `raw`
    (JSON of what the select gave, of refused rows only).

    Raises:
        ConfigError: the select, the clock or a rule does not run, a column that every event needs is lacking,
            or one is yielded that is not declared (the nearest declared name is given).
    """
    config, spec = run.config, run.config.channels[channel]
    given = inputs.select(spec.select, f"channels.{channel}.select", spec.grain)
    _check_columns(config, channel, given)
    schema = channel_schema(config)
    typed = given.select(
        F.struct(*given.columns).alias(_GIVEN),
        *(
            (
                F.col(f.name).try_cast(f.dataType)
                if f.name in given.columns
                else F.lit(None).cast(f.dataType)
            ).alias(f.name)
            for f in schema
        ),
    )
    typed = typed.withColumn("customer_id", id_text(F.col("customer_id")))
    rules = _before_the_clock(given)
    if spec.clock is not None:
        typed, exists = _read_clock(run.spark, channel, spec.clock, typed)
        rules.append((F.col("event_time").isNull(), "event_time is missing or not a time"))
        rules.append((~exists, f"event_time does not exist in {spec.clock.zone}"))
    rules += _rules(config, given, run.started_at)
    try:
        return _judged(typed, rules + _own_rules(spec), given.columns, channel)
    except (AnalysisException, ParseException) as error:
        raise ConfigError(f"channels.{channel}.rules: {str(error).splitlines()[0]}") from error


def judged_links(inputs: Inputs, name: str, config: Config, now: dt.datetime) -> DataFrame:
    """Run a link statement's select over what is new of its grain, and judge every row.

    Grain: a row of its `grain` input. Columns: `id_kind, id, customer_id, linked_at, source, reason, raw`.
    """
    spec, columns = config.identity.links[name], ["id_kind", "id", "customer_id", "linked_at"]
    given = inputs.select(spec.select, f"identity.links.{name}.select", spec.grain)
    if sorted(given.columns) != sorted(columns):
        raise ConfigError(
            f"identity.links.{name}.select must yield {', '.join(columns)}; it yields {', '.join(given.columns)}"
        )
    typed = given.select(
        F.struct("id_kind", "linked_at").alias(_GIVEN),
        *(F.col(c).try_cast("timestamp" if c == "linked_at" else "string").alias(c) for c in columns),
    )
    typed = typed.withColumns({name: id_text(F.col(name)) for name in ("id", "customer_id")})
    late = F.expr(sql_literal(now + _FUTURE_TOLERANCE))
    rules: Rules = [
        *((blank(column), f"{column} is missing") for column in ("id_kind", "id", "customer_id")),
        (not_utf8("id") | not_utf8("customer_id"), "text is not UTF-8"),
        (F.col("linked_at").isNull(), "linked_at is missing or not a time"),
        (F.col("linked_at") > late, "linked_at is in the future"),
    ]
    return _judged(typed, rules, ["id_kind", "linked_at"], name)


def _check_columns(config: Config, channel: str, given: DataFrame) -> None:
    lacking = [name for name in CHANNEL_COLUMNS if name not in given.columns]
    if lacking:
        raise ConfigError(
            f"channels.{channel}.select must yield {', '.join(CHANNEL_COLUMNS)}; "
            f"it lacks {', '.join(lacking)}"
        )
    known = channel_schema(config).names
    for name in given.columns:
        if name not in known:
            hint = did_you_mean(name, known, "declare it under fields")
            raise ConfigError(f"channels.{channel}.select yields {name!r}, which is not declared: {hint}")


def _judged(typed: DataFrame, rules: Rules, given: list[str], source: str) -> DataFrame:
    """Add `source`, `reason` (the first rule that is broken) and `raw`; drop what was given."""
    reason = F.lit(None).cast("string")
    for broken, text in reversed(rules):
        reason = F.when(broken, F.lit(text)).otherwise(reason)
    kept = [F.col(f"{_GIVEN}.{name}").alias(name) for name in given if name != "customer_id"]
    # Text that is not UTF-8 may not be written as text; what was valid of it stays readable.
    raw = F.make_valid_utf8(F.to_json(F.struct(*kept)))
    return (
        typed.withColumn(REASON, reason)
        .withColumn(RAW, F.when(F.col(REASON).isNotNull(), raw))
        .withColumn("source", F.lit(source))
        .drop(_GIVEN, _EXISTS)
    )


def _read_clock(
    spark: SparkSession, channel: str, clock: ClockConfig, typed: DataFrame
) -> tuple[DataFrame, Column]:
    """Read `event_time` as a local time of the clock's zone; the column tells whether that time existed.

    Of a time that came twice in autumn the earlier is meant (what `to_utc_timestamp` takes).
    """
    local = F.col(f"{_GIVEN}.event_time")
    if clock.format is None:
        wall = local.try_cast("timestamp")
    else:
        wall = F.try_to_timestamp(local.cast("string"), F.lit(clock.format))
        try:
            spark.range(1).select(F.date_format(F.current_timestamp(), clock.format)).first()
        except PySparkException as error:
            first_line = str(error).splitlines()[0]
            raise ConfigError(f"channels.{channel}.clock.format {clock.format!r}: {first_line}") from error
    instant = F.to_utc_timestamp(wall, clock.zone)
    read = typed.withColumn("event_time", instant).withColumn(_WALL, wall)
    exists = F.from_utc_timestamp("event_time", clock.zone) == F.col(_WALL)
    return read.withColumn(_EXISTS, exists).drop(_WALL), F.col(_EXISTS)


def _before_the_clock(given: DataFrame) -> Rules:
    texts = [f.name for f in given.schema if isinstance(f.dataType, StringType | BinaryType)]
    broken = F.lit(False)
    for name in texts:
        broken = broken | F.coalesce(not_utf8(f"{_GIVEN}.{name}"), F.lit(False))
    return [(blank("customer_id"), "customer_id is missing"), (broken, "text is not UTF-8")]


def _rules(config: Config, given: DataFrame, now: dt.datetime) -> Rules:
    """What holds of every event, then of every declared field."""
    earliest = F.expr(sql_literal(config.instant(config.quality.earliest)))
    late = F.expr(sql_literal(now + _FUTURE_TOLERANCE))
    time = F.col("event_time")
    rules: Rules = [
        (time.isNull(), "event_time is missing or not a time"),
        (time < earliest, f"event_time is before {config.quality.earliest}"),
        (time > late, "event_time is in the future"),
        (F.col("event_key").isNull(), "event_key is missing"),
    ]
    for name in config.numeric:
        if name not in given.columns:
            continue
        value, spec = F.col(name), config.fields[name]
        if not isinstance(given.schema[name].dataType, DoubleType):
            rules.append((F.col(f"{_GIVEN}.{name}").isNotNull() & value.isNull(), f"{name} is not a number"))
        rules.append((F.isnan(value) | value.isin(float("inf"), float("-inf")), f"{name} is not finite"))
        rules.append((F.abs(value) > _LARGEST, f"{name} is larger than a 32-bit number"))
        if spec.min is not None:
            rules.append((value < spec.min, f"{name} is below {spec.min:g}"))
        if spec.max is not None:
            rules.append((value > spec.max, f"{name} is above {spec.max:g}"))
    for name in (*config.categorical, *config.reference):
        allowed = config.fields[name].values
        if allowed and name in given.columns:
            rules.append((~F.col(name).isin(*allowed), f"{name} is not one of the declared values"))
    return rules


def _own_rules(spec: ChannelConfig) -> Rules:
    return [(~F.expr(f"({rule})"), f"rule {name}") for name, rule in spec.rules.items()]


def blank(name: str) -> Column:
    """Whether there is no text."""
    return F.col(name).isNull() | (F.trim(name) == "")


def not_utf8(name: str) -> Column:
    """Whether text was not UTF-8 where it came from."""
    text = F.col(name).cast("string")
    return ~F.is_valid_utf8(text) | F.contains(text, F.lit(_REPLACEMENT))
