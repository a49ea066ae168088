"""Statements from the ledger's source into the append-only table `consent`."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.consent.losses import STATEMENT, ended_consents, require_size
from lam_spark.consent.matching import match_customers, require_few_unmatched
from lam_spark.consent.record import RefreshRecord, last_refresh
from lam_spark.consent.statements import Statements
from lam_spark.identity.pseudonyms import Secret, resolve_customers
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal


@dataclass(frozen=True)
class LedgerUpdate:
    """What a refresh read and changed.

    Attributes:
        statements_in: Statements that the source holds.
        statements_new: Those that the table `consent` did not hold yet.
        irrelevant: Statements about purposes that are mapped to null.
        unknown_states: Statements with a state other than opt_in and opt_out: withdrawals.
        consents_ended: Consents (customer and purpose) that the source no longer states.
        unmatched_opt_outs: Customers who opted out of a purpose and have no event.
        ids_in_other_case: Ids without events that differ only in case from an id with events.
    """

    statements_in: int
    statements_new: int
    irrelevant: int
    unknown_states: int
    consents_ended: int
    unmatched_opt_outs: int
    ids_in_other_case: int


def update_ledger(
    tables: Tables,
    cache: FrameCache,
    consent: ConsentConfig,
    purposes: tuple[str, ...],
    statements: Statements,
    fingerprint: dict[str, str | None],
    secret: Secret,
) -> LedgerUpdate:
    """Append to the table `consent` the statements that it does not hold yet, and withdrawals for those that ended.

    Grain: a statement. A rerun appends nothing, but records the refresh. Cost: joins of the ledger with its source.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        consent: Source of the ledger.
        purposes: Purposes that stages ask for.
        statements: What the source states now.
        fingerprint: Fingerprint of the source, from before it was read.
        secret: From `matching_secret`.

    Raises:
        ConfigError, ConsentError: See `ended_consents`, `match_customers` and `require_few_unmatched`.
    """
    now, last = statements.read_at, last_refresh(tables)
    require_size(statements.read, last.statements if last else None, consent)
    keyed = resolve_customers(tables, statements.rows, secret)
    present = cache(keyed.select(*STATEMENT).dropDuplicates(STATEMENT))
    rows = present.withColumn("ingested_at", F.expr(sql_literal(now)))
    stored = tables.read_if_exists("consent")
    ended = None if stored is None else ended_consents(stored, present, cache, consent, purposes, now)
    ended_count = 0 if ended is None else ended.count()
    if ended is not None and ended_count:
        rows = rows.unionByName(ended)
    is_same = last is not None and last.is_of(fingerprint)
    matching = match_customers(tables, cache, present, last, is_same=is_same)
    require_few_unmatched(matching, last, consent)
    record = RefreshRecord(now.isoformat(), fingerprint, statements.read, **vars(matching))
    inserted = tables.insert_missing(rows, "consent", STATEMENT, metadata=record.to_metadata())
    return LedgerUpdate(
        statements_in=statements.read,
        statements_new=inserted - ended_count,
        irrelevant=statements.irrelevant,
        unknown_states=statements.unknown_states,
        consents_ended=ended_count,
        unmatched_opt_outs=matching.unmatched_opt_outs,
        ids_in_other_case=matching.ids_in_other_case,
    )
