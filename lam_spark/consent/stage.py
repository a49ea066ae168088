"""Stage `consent`: append new statements of the ledger's source to the table `consent`."""

from __future__ import annotations

from dataclasses import dataclass

from lam_spark.consent.ledger import update_ledger
from lam_spark.identity.pseudonyms import matching_secret
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.sources.inputs import Inputs


@dataclass(frozen=True)
class ConsentResult(StageResult):
    """Statements that the source holds, and those that were new."""

    statements_in: int
    statements_new: int

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.statements_in:,} statements read, {self.statements_new:,} new"


@stage
def update_consent(ctx: RunContext) -> ConsentResult:
    """Append the statements that are new (grain: a statement; a rerun appends nothing).

    Raises:
        ConfigError, ConsentError: See `update_ledger`.
    """
    config = ctx.config
    secret = matching_secret(ctx.tables, config.identity)
    inputs = Inputs(ctx.spark, config.inputs, config.views)
    update = update_ledger(ctx.tables, ctx.cache, inputs, config.consent, secret)
    return ConsentResult(update.statements_in, update.statements_new)
