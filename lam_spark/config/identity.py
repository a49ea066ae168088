"""Section `identity`: how raw ids become customers."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import NO_DELAY, Duration, Name, Section, Variable
from lam_spark.config.sql import SqlQuery


class LinkConfig(Section):
    """Statements that an id belongs to a customer from an instant on, such as logins or contracts."""

    grain: str = Field(description="input of which each row is one statement")
    select: SqlQuery = Field(
        description="SELECT that yields `id_kind, id, customer_id, linked_at` (UTC), one row per row of `grain`"
    )
    arrival_delay: Duration = Field(
        default=NO_DELAY, description="how long after `linked_at` a link becomes known"
    )


class IdentityConfig(Section):
    """How raw ids become customers.

    An id of a kind other than `customer` belongs to the customer of its latest link at or before the event.
    Events before the first link belong to the first customer if they are at most `lookback_days` older.
    An id that is linked to more than `max_customers` customers (a kiosk, a switchboard) belongs to no customer.
    """

    secret_env: Variable = Field(
        default="LAM_SPARK_SECRET",
        description="environment variable with the HMAC key of the pseudonyms, at least 32 characters",
    )
    links: dict[Name, LinkConfig] = Field(default_factory=dict, description="sources of links, by name")
    lookback_days: int = Field(
        default=30, ge=0, description="days before the first link of an id in which its events are assigned"
    )
    max_customers: int = Field(
        default=5,
        ge=1,
        description="most customers that an id may be linked to; above, it is a shared device",
    )
    fold_case: tuple[Name, ...] = Field(
        default=(),
        description="kinds of ids that are compared without case, such as `[customer]`: for ids that come from a "
        "case-insensitive column of a database",
    )
