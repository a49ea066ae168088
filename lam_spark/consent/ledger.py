"""Statements from the ledger's source into the append-only table `consent`."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.errors import ConsentError
from lam_spark.events.rules import blank, not_utf8
from lam_spark.identity.pseudonyms import Secret, id_text, resolve_customers
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import FrameCache, require_columns
from lam_spark.storage.session_settings import configured_sql
from lam_spark.storage.tables.store import Tables

_SELECTED = {
    "customer_id": "string",
    "purpose": "string",
    "state": "string",
    "effective_at": "timestamp",
    "recorded_at": "timestamp",
    "source": "string",
}
_STATEMENT = ["customer_key", "purpose", "state", "effective_at", "recorded_at", "source"]


@dataclass(frozen=True)
class LedgerUpdate:
    """Statements that the ledger's source holds, and those that were new."""

    statements_in: int
    statements_new: int


def update_ledger(
    tables: Tables, cache: FrameCache, inputs: Inputs, consent: ConsentConfig, secret: Secret
) -> LedgerUpdate:
    """Append to the table `consent` the statements of its source that it does not hold yet.

    Grain: a statement. A rerun appends nothing.

    Raises:
        ConfigError: The source cannot be read, or lacks a column.
        ConsentError: It holds no statement, or one without a readable customer, purpose or time. By default
            deny every customer would be ineligible; that must not happen by accident.
    """
    with configured_sql(inputs.spark):
        selected = inputs.select(consent.select, "consent.select")
        require_columns(selected, _SELECTED, "consent.select")
        typed = selected.select(*(F.col(name).try_cast(kind).alias(name) for name, kind in _SELECTED.items()))
    # White space around a value means nothing: an opt-out must not be missed because of it.
    typed = typed.withColumns({name: id_text(F.col(name)) for name in ("customer_id", "purpose")})
    # Read once: a live database may hold more statements at the insertion, which were not checked.
    statements = cache(typed)
    total = statements.count()
    if total == 0:
        raise ConsentError(
            "the consent ledger has no statements: by default deny no customer could be trained on or contacted"
        )
    _require_complete(statements, total)
    keyed = resolve_customers(tables, statements, secret).select(*_STATEMENT)
    return LedgerUpdate(total, tables.insert_missing(keyed, "consent", _STATEMENT))


def _require_complete(statements: DataFrame, total: int) -> None:
    incomplete = statements.where(
        blank("customer_id")
        | not_utf8("customer_id")
        | blank("purpose")
        | F.col("effective_at").isNull()
        | F.col("recorded_at").isNull()
    ).count()
    if incomplete:
        raise ConsentError(
            f"{incomplete:,} of {total:,} consent statements lack a readable customer, purpose or time; an opt-out "
            "may be among them, so none is ingested. Correct the ledger's source"
        )
