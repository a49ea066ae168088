"""Section `delivery`: the contact list."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Section


class DeliveryConfig(Section):
    """The contact list."""

    capacity: int = Field(default=500, ge=1, le=1_000_000, description="most customers on the contact list")
    valid_hours: int = Field(
        default=24,
        ge=1,
        description="hours after the check of consent in which the list may be used; `valid_until` of its manifest",
    )
