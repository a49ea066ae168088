"""Stage `consent`: append new statements of the ledger's source to the table `consent`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lam_spark.consent.ledger import LedgerUpdate
from lam_spark.consent.refresh import refresh_ledger
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult

# Counts that are shown only where they are not zero.
_REMARKS = {
    "irrelevant": "statements about purposes that are not used here",
    "unknown_states": "statements with an unknown state, which counts as a withdrawal",
    "consents_ended": "consents that the source no longer states have ended",
    "unmatched_opt_outs": "customers who opted out have no event",
    "ids_in_other_case": "ids differ from those of events only in case (identity.fold_case)",
}


@dataclass(frozen=True)
class ConsentResult(StageResult, LedgerUpdate):
    """Statements that the source holds, those that were new, and what is to be known about them."""

    FORMAT: ClassVar[int] = 2

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.statements_in:,} statements read, {self.statements_new:,} new"

    @property
    def details(self) -> tuple[str, ...]:
        """What is unusual about the ledger."""
        counts = ((getattr(self, name), text) for name, text in _REMARKS.items())
        return tuple(f"{count:,} {text}" for count, text in counts if count)


@stage
def update_consent(ctx: RunContext) -> ConsentResult:
    """Append the statements that are new (grain: a statement; a rerun appends nothing).

    Raises:
        ConfigError, ConsentError, DataQualityError: See `refresh_ledger`.
    """
    return ConsentResult(**vars(refresh_ledger(ctx.tables, ctx.cache, ctx.config, ctx.clock, ctx.log)))
