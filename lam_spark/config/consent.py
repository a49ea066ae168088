"""Section `consent`: the source of the consent ledger and its purposes."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Name, Section
from lam_spark.config.sql import SqlQuery


class ConsentConfig(Section):
    """Source of the consent ledger. A customer without an effective opt-in for a purpose is not eligible for it."""

    select: SqlQuery = Field(
        description="SELECT that yields `customer_id, purpose, state, effective_at, recorded_at, source`; "
        "`state` is opt_in or opt_out"
    )
    training_purpose: Name = Field(
        default="model_training", description="purpose that permits training on a customer's events"
    )
    contact_purpose: Name = Field(
        default="direct_marketing", description="purpose that permits scoring and listing a customer"
    )
