"""What the ledger's source no longer states: refused, or the consents that end with it.

Stored statements are never removed. A consent that ends is recorded as a withdrawal of our own at the refresh.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.consent.eligibility import OPT_IN, OPT_OUT, consent_status, eligible
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.identity.pseudonyms import id_text
from lam_spark.storage.dataframes import FrameCache, one_row, union_all
from lam_spark.storage.time import sql_literal

# Columns that identify a statement.
STATEMENT = ["customer_key", "purpose", "state", "effective_at", "recorded_at", "source"]
# `source` of our own withdrawals.
ENDED = "lam_spark: no longer in the consent source"
_PAIR = ["customer_key", "purpose"]
_FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)


def ended_consents(
    stored: DataFrame,
    present: DataFrame,
    cache: FrameCache,
    consent: ConsentConfig,
    purposes: Sequence[str],
    now: dt.datetime,
) -> DataFrame | None:
    """Withdrawals for the consents that were in force, or would have come into force, and are no longer stated.

    Grain: (customer_key, purpose). Columns: those of the table `consent`. None if no statement disappeared. Cost: an
    anti-join of the ledger; if statements disappeared, four shuffles of those of the customers concerned.

    Args:
        stored: Table `consent`.
        present: Statements that the source holds now (`STATEMENT`).
        cache: Cache of the stage.
        consent: Source of the ledger.
        purposes: Purposes that stages ask for.
        now: Instant of the refresh.

    Raises:
        ConfigError: The file `consent.erased_ids` cannot be read.
        ConsentError: More disappeared than `consent` accepts.
    """
    is_ours = F.col("source").eqNullSafe(F.lit(ENDED))
    theirs = stored.where(~is_ours & F.col("purpose").isin(*purposes)).alias("theirs")
    same = [F.col(f"theirs.{name}").eqNullSafe(F.col(f"present.{name}")) for name in STATEMENT]
    missing = cache(theirs.join(present.alias("present"), same, "left_anti").select(*_PAIR))
    if missing.isEmpty():
        return None
    erased = None if consent.erased_ids is None else _erased_ids(stored.sparkSession, consent.erased_ids)
    if consent.kind == "history":
        _require_complete_history(_without(missing, erased), consent)
    ended = cache(_ended_pairs(stored, present, missing.distinct(), now))
    if consent.kind == "state":
        count = _without(ended, erased).count()
        if count > consent.accept_loss:
            _require_small_share(count, eligible(stored, purposes, now).count(), consent)
    at = F.expr(sql_literal(now))
    return ended.select(
        *_PAIR,
        F.lit(OPT_OUT).alias("state"),
        at.alias("effective_at"),
        at.alias("recorded_at"),
        F.lit(ENDED).alias("source"),
        at.alias("ingested_at"),
    )


def require_size(statements: int, last: int | None, consent: ConsentConfig) -> None:
    """Check that the source did not shrink, whatever its kind.

    Args:
        statements: Statements of the source now.
        last: Statements at the last refresh; None if unknown.
        consent: Source of the ledger.

    Raises:
        ConsentError: It lost more statements than `consent` accepts.
    """
    fewer = (last or 0) - statements
    if fewer > max(consent.accept_loss, consent.max_shrink_share * (last or 0)):
        raise ConsentError(
            f"the consent ledger's source has {statements:,} statements, {fewer:,} fewer than at the last refresh: "
            f"more than consent.max_shrink_share = {consent.max_shrink_share:g} allows; nothing is ingested. Is its "
            f"export complete? If so, run once with --set consent.accept_loss={fewer}"
        )


def _require_complete_history(missing: DataFrame, consent: ConsentConfig) -> None:
    count, customers = one_row(missing.agg(F.count("*"), F.count_distinct("customer_key")))
    if count > consent.accept_loss:
        raise ConsentError(
            f"{count:,} statements of {customers:,} customers that the table consent holds are no longer in the "
            "ledger's source, which is declared as a history that only grows; nothing is ingested. Restore the "
            "source, or list the pseudonyms of erased customers in the file consent.erased_ids, or set "
            f"consent.accept_loss={count}, or declare consent.kind: state if the source holds only what is valid now. "
            "A consent that is no longer stated ends in each of these cases"
        )


def _require_small_share(count: int, in_force: int, consent: ConsentConfig) -> None:
    if count > consent.max_shrink_share * in_force:
        raise ConsentError(
            f"{count:,} of {in_force:,} consents in force are no longer stated by the ledger's source: more than "
            f"consent.max_shrink_share = {consent.max_shrink_share:g} allows; nothing is ingested. Is its export "
            "complete? If so, list the pseudonyms of erased customers in the file consent.erased_ids, or run once "
            f"with --set consent.accept_loss={count}"
        )


def _ended_pairs(stored: DataFrame, present: DataFrame, pairs: DataFrame, now: dt.datetime) -> DataFrame:
    """Customers and purposes of `pairs` that all statements allow, but not those that the source still makes.

    Withdrawals never end. Compared now and for all time, so that an opt-in that is not in effect yet ends, too.
    """
    known = stored.join(pairs, _PAIR, "left_semi").select(*STATEMENT, "ingested_at")
    stated = (
        present.join(pairs, _PAIR, "left_semi")
        .select(*STATEMENT)
        .withColumn("ingested_at", F.expr(sql_literal(now)))
    )
    withdrawals = known.where(F.coalesce(F.col("state") != OPT_IN, F.lit(True)))
    ended = [
        _opted_in(known.unionByName(stated), at).join(
            _opted_in(withdrawals.unionByName(stated), at), _PAIR, "left_anti"
        )
        for at in (now, _FOREVER)
    ]
    return union_all(ended).distinct()


def _opted_in(statements: DataFrame, at: dt.datetime) -> DataFrame:
    return consent_status(statements, at).where(F.col("status") == OPT_IN).select(*_PAIR)


def _erased_ids(spark: SparkSession, path: str) -> DataFrame:
    """Pseudonyms of the file, as `customer_key`."""
    try:
        lines = spark.read.text(path)
    except AnalysisException as error:
        raise ConfigError(
            f"consent.erased_ids: expected a text file with a pseudonym a line at {path}, found none"
        ) from error
    return lines.select(id_text(F.col("value")).alias("customer_key")).distinct()


def _without(rows: DataFrame, erased: DataFrame | None) -> DataFrame:
    return rows if erased is None else rows.join(erased, "customer_key", "left_anti")
