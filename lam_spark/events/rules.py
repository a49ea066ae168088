"""Rules that a mapped row must pass: those of every event, of declared fields, of a channel and of links.

A rule is a condition that is true for a row to refuse, with its reason; the first rule that a row breaks gives its
reason. A condition that is null does not refuse the row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DoubleType, StringType, StructType

from lam_spark.config import ChannelConfig, Config, FieldConfig
from lam_spark.identity.pseudonyms import has_control_characters
from lam_spark.storage.time import sql_literal

# Struct of the values that the select of a channel or link statement yielded, before they were cast.
SELECTED = "_selected"

# The clocks of a company's systems differ by minutes; a time more than a day ahead is wrong.
_FUTURE_TOLERANCE = dt.timedelta(days=1)
# Sequences and the model hold 32-bit numbers: a larger one, such as a sentinel, would become infinite.
_MAX_FLOAT32 = 3.4028234663852886e38
# Decoders put this character in place of bytes that are not UTF-8.
_REPLACEMENT_CHARACTER = "\ufffd"

Rules = list[tuple[Column, str]]


@dataclass(frozen=True)
class TimeLimits:
    """Event times that are accepted.

    Attributes:
        first_day: `quality.earliest`.
        first: Start of that day in the data set's time zone (UTC instant).
        last: Latest accepted instant (UTC).
    """

    first_day: dt.date
    first: dt.datetime
    last: dt.datetime

    @classmethod
    def of(cls, config: Config, started_at: dt.datetime) -> TimeLimits:
        """Limits of a run that started at this instant."""
        earliest = config.quality.earliest
        return cls(earliest, config.instant(earliest), started_at + _FUTURE_TOLERANCE)


def blank(name: str) -> Column:
    """Whether a column holds no text: null, empty or white space."""
    return F.col(name).isNull() | (F.trim(name) == "")


def not_utf8(name: str) -> Column:
    """Whether the text of a column was not UTF-8 in its source."""
    text = F.col(name).cast("string")
    return ~F.is_valid_utf8(text) | F.contains(text, F.lit(_REPLACEMENT_CHARACTER))


def text_rules(selected: StructType) -> Rules:
    """Rules that are checked first: the customer's id is there and readable, and all selected text is UTF-8."""
    is_broken = F.lit(False)
    for field in selected:
        if isinstance(field.dataType, StringType | BinaryType):
            is_broken = is_broken | F.coalesce(not_utf8(f"{SELECTED}.{field.name}"), F.lit(False))
    return [
        (blank("customer_id"), "customer_id is missing"),
        (is_broken, "text is not UTF-8"),
        _no_control_characters("customer_id"),
    ]


def _no_control_characters(name: str) -> tuple[Column, str]:
    """Rule of a column of ids: one with an invisible character inside matches no other id."""
    return has_control_characters(name), f"{name} has a control or format character inside"


def event_rules(limits: TimeLimits) -> Rules:
    """Rules of every event: its time is readable and within the limits, and its key is there."""
    time = F.col("event_time")
    return [
        (time.isNull(), "event_time is missing or not a time"),
        (time < F.expr(sql_literal(limits.first)), f"event_time is before {limits.first_day}"),
        (time > F.expr(sql_literal(limits.last)), "event_time is in the future"),
        (F.col("event_key").isNull(), "event_key is missing"),
    ]


def field_rules(fields: Mapping[str, FieldConfig], selected: StructType) -> Rules:
    """Rules of the declared fields that the select yields: numeric fields first, then those with declared values."""
    yielded = {name: spec for name, spec in fields.items() if name in selected.names}
    rules: Rules = []
    for name, spec in yielded.items():
        if spec.kind == "numeric":
            rules += _numeric_rules(name, spec, is_double=isinstance(selected[name].dataType, DoubleType))
    for kind in ("categorical", "reference"):
        rules += [
            (~F.col(name).isin(*spec.values), f"{name} is not one of the declared values")
            for name, spec in yielded.items()
            if spec.kind == kind and spec.values
        ]
    return rules


def _numeric_rules(name: str, spec: FieldConfig, *, is_double: bool) -> Rules:
    value = F.col(name)
    rules: Rules = []
    if not is_double:
        rules.append((F.col(f"{SELECTED}.{name}").isNotNull() & value.isNull(), f"{name} is not a number"))
    rules.append((F.isnan(value) | value.isin(float("inf"), float("-inf")), f"{name} is not finite"))
    rules.append((F.abs(value) > _MAX_FLOAT32, f"{name} is larger than a 32-bit number"))
    if spec.min is not None:
        rules.append((value < spec.min, f"{name} is below {spec.min:g}"))
    if spec.max is not None:
        rules.append((value > spec.max, f"{name} is above {spec.max:g}"))
    return rules


def channel_rules(channel: ChannelConfig) -> Rules:
    """The named predicates of a channel's configuration; a row that makes one false is refused."""
    return [(~F.expr(f"({predicate})"), f"rule {name}") for name, predicate in channel.rules.items()]


def link_rules(limits: TimeLimits) -> Rules:
    """Rules of a link: its kind, ids and time are there, readable and not in the future."""
    return [
        *((blank(column), f"{column} is missing") for column in ("id_kind", "id", "customer_id")),
        (not_utf8("id") | not_utf8("customer_id"), "text is not UTF-8"),
        _no_control_characters("id"),
        _no_control_characters("customer_id"),
        (F.col("linked_at").isNull(), "linked_at is missing or not a time"),
        (F.col("linked_at") > F.expr(sql_literal(limits.last)), "linked_at is in the future"),
    ]


def first_broken(rules: Sequence[tuple[Column, str]]) -> Column:
    """Reason of the first rule that a row breaks; null if it passes all."""
    reason = F.lit(None).cast("string")
    for is_broken, text in reversed(rules):
        reason = F.when(is_broken, F.lit(text)).otherwise(reason)
    return reason
