"""Section `sequences`: how much history a customer's row holds."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Section


class SequencesConfig(Section):
    """Sequences of events, one row per customer.

    Of a customer with more than `max_events` events, queries whose history is truncated are not used for training and
    evaluation. The customer is scored nevertheless.
    """

    max_events: int = Field(
        default=8192, ge=16, description="latest events in a row, at least `model.context_events`"
    )
    rebuild: bool = Field(
        default=False, description="rebuild all rows; false: update the rows of customers that changed"
    )
