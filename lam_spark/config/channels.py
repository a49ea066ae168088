"""Section `channels`: how raw rows become events."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lam_spark.config.base import NO_DELAY, Duration, Name, Section, known_zone
from lam_spark.config.sql import SqlExpression, SqlQuery

# Value of `max_silence_days`: twice the longest gap of the 90 days before the last event, at least 7.
MEASURED: Literal["measured"] = "measured"


class ClockConfig(Section):
    """Clock of a source that writes local times.

    A local time that is skipped when clocks go forward is rejected. Of a local time that occurs twice, the earlier
    instant is used.
    """

    zone: str = Field(description="IANA time zone of the local times")
    format: str | None = Field(
        default=None,
        description="Spark datetime pattern of times that are text; null: a timestamp without time zone, or a text "
        "that Spark reads; one that names its zone is the instant that it says",
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
        "without `clock`, `event_time` is UTC; a DATE is the last microsecond of this local day"
    )
    id: Name = Field(
        default="customer",
        description="kind of id in `customer_id`: `customer`, or a kind that `identity.links` links to customers",
    )
    clock: ClockConfig | None = Field(default=None, description="clock of local times; null: UTC")
    arrival_delay: Duration = Field(
        default=NO_DELAY,
        description="how long after `event_time` an event becomes known; "
        "contacts that the company makes are known when they are sent: 0",
    )
    max_silence_days: Annotated[int, Field(ge=1)] | Literal["measured"] | None = Field(
        default=MEASURED,
        description="days without an event after which the channel is stale and labels that need it do not mature; "
        "`measured`: twice the longest gap of the 90 days before its last event, at least 7; null: never, a silence "
        "of any length says that nothing happened",
    )
    rules: dict[Name, SqlExpression] = Field(
        default_factory=dict,
        description="SQL conditions over the yielded columns, by name; a row that breaks one is quarantined",
    )
