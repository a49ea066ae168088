"""Stage `consent`: statements from the ledger's source into the append-only table `consent`."""

from __future__ import annotations

from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, ConsentError
from lam_spark.events.mapping import blank, not_utf8
from lam_spark.identity.pseudonyms import id_text, resolve
from lam_spark.runtime.context import Run, StageResult, stage
from lam_spark.sources.inputs import Inputs

_COLUMNS = {
    "customer_id": "string",
    "purpose": "string",
    "state": "string",
    "effective_at": "timestamp",
    "recorded_at": "timestamp",
    "source": "string",
}
_STATEMENT = ["customer_key", "purpose", "state", "effective_at", "recorded_at", "source"]


@stage
def run(run: Run) -> StageResult:
    """Append the statements that are new (grain: a statement; a rerun appends nothing).

    Raises:
        ConfigError, ConsentError: as of `take_in`.
    """
    read, new = take_in(run)
    return StageResult(
        says=f"{read:,} statements read, {new:,} new",
        counts={"statements_in": read, "statements_new": new},
    )


def take_in(run: Run) -> tuple[int, int]:
    """Append to the table `consent` what its source states and the table does not hold yet.

    Returns:
        Statements that were read, and that were new.

    Raises:
        ConfigError: the source cannot be read, or lacks a column.
        ConsentError: it holds no statement, or one without a readable customer, purpose or time. Default deny
            would silence every customer; that is not a state to run on by accident.
    """
    stated = Inputs(run.spark, run.config).select(run.config.consent.select, "consent.select")
    lacking = [name for name in _COLUMNS if name not in stated.columns]
    if lacking:
        raise ConfigError(f"consent.select must yield {', '.join(_COLUMNS)}; it lacks {', '.join(lacking)}")
    stated = stated.select(*(F.col(name).try_cast(kind).alias(name) for name, kind in _COLUMNS.items()))
    # White space around them means nothing: an opt-out is not to be missed for it.
    stated = stated.withColumns({name: id_text(F.col(name)) for name in ("customer_id", "purpose")})
    # Read once: a live database may state more between the check and the insertion, which nobody would have checked.
    stated = run.keep(stated)
    total = stated.count()
    if total == 0:
        raise ConsentError(
            "the consent ledger has no statements: default deny leaves nobody to train on or to contact"
        )
    incomplete = stated.where(
        blank("customer_id")
        | not_utf8("customer_id")
        | blank("purpose")
        | F.col("effective_at").isNull()
        | F.col("recorded_at").isNull()
    ).count()
    if incomplete:
        raise ConsentError(
            f"{incomplete:,} of {total:,} consent statements lack a readable customer, purpose or time; "
            "an opt-out may be among them, so none is taken. Mend the ledger's source"
        )
    return total, run.tables.insert_new(resolve(run, stated).select(*_STATEMENT), "consent", _STATEMENT)
