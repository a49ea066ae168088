"""Section `channels`: how raw rows become events."""

from __future__ import annotations

from pydantic import Field, field_validator

from lam_spark.config.base import Name, Section, known_zone
from lam_spark.config.sql import SqlExpression, SqlQuery


class ClockConfig(Section):
    """Clock of a channel that writes local times.

    A local time that is skipped when clocks go forward is rejected. Of a local time that occurs twice, the earlier
    instant is used.
    """

    zone: str = Field(description="IANA time zone of the channel's `event_time`")
    format: str | None = Field(
        default=None,
        description="Spark datetime pattern of a text `event_time`; null: a timestamp without time zone",
    )

    _zone = field_validator("zone")(known_zone)


class ChannelConfig(Section):
    """A channel: a Spark SQL SELECT over the inputs that yields 4W1H columns.

    The select must yield exactly one row per row of `grain`, so that a join that multiplies or drops rows is
    detected.
    """

    grain: str = Field(description="input whose rows are the raw rows of the channel")
    select: SqlQuery = Field(
        description="SELECT that yields `customer_id, event_time, event_key` and declared fields; "
        "without `clock`, `event_time` is UTC"
    )
    id: Name = Field(
        default="customer",
        description="kind of id in `customer_id`: `customer`, or a kind that `identity.links` links to customers",
    )
    clock: ClockConfig | None = Field(default=None, description="clock of local times; null: UTC")
    rules: dict[Name, SqlExpression] = Field(
        default_factory=dict,
        description="SQL conditions over the yielded columns, by name; a row that breaks one is quarantined",
    )
