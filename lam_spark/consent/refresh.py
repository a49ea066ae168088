"""Consent is what the source says now: refreshes of the ledger, and the check that every reader of customers passes.

A stage compares the fingerprint of the ledger's source with that of the last refresh. With the secret it refreshes the
ledger where they differ; without it, it stops if the ledger is too old.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable

from pyspark.sql import SparkSession

from lam_spark.config import Config
from lam_spark.consent.ledger import LedgerUpdate, update_ledger
from lam_spark.consent.record import last_refresh
from lam_spark.consent.statements import read_statements
from lam_spark.errors import ConfigError, ConsentError, DataQualityError, without_values
from lam_spark.identity.pseudonyms import CUSTOMER, matching_secret
from lam_spark.runtime.log import RunLog
from lam_spark.sources.fingerprint import input_fingerprint
from lam_spark.sources.inputs import Inputs
from lam_spark.sources.mapping_digest import inputs_behind, ledger_digest
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.session_settings import configured_sql
from lam_spark.storage.tables.store import Tables

_REMEDY = "run the stage 'consent' where the secret and the ledger's source are, then this stage again"


def refresh_ledger(
    tables: Tables, cache: FrameCache, config: Config, clock: Callable[[], dt.datetime], log: RunLog
) -> LedgerUpdate:
    """Bring the table `consent` up to date with the ledger's source.

    Grain: a statement. A rerun appends nothing, but records that the source was read. Cost: see `read_statements` and
    `update_ledger`.

    Raises:
        ConfigError: The secret is missing or another one, or the source cannot be read.
        ConsentError: The source is refused (`read_statements`, `update_ledger`); nothing is
            ingested.
        DataQualityError: The source has lines that do not parse.
    """
    secret = matching_secret(tables, config.identity)
    # Before the rows are read: what changes in between is read again by the next refresh.
    fingerprint = source_fingerprint(tables.spark, config)
    inputs = Inputs(tables.spark, config.inputs, config.views)
    folds_case = CUSTOMER in config.identity.fold_case
    with configured_sql(tables.spark):
        statements = read_statements(
            inputs, cache, config.consent, config.purposes, clock, folds_case=folds_case
        )
    update = update_ledger(tables, cache, config.consent, config.purposes, statements, fingerprint, secret)
    log.event("consent ledger refreshed", **vars(update))
    return update


def source_fingerprint(spark: SparkSession, config: Config) -> dict[str, str | None]:
    """Fingerprint of each input of the ledger, and of the configuration that reads them ("configuration").

    Raises:
        ConfigError: An input does not exist or cannot be reached.
    """
    names = inputs_behind(config, config.consent.select)
    prints = {name: input_fingerprint(spark, name, config.inputs[name]) for name in names}
    return {**prints, "configuration": ledger_digest(config)}


def require_current_ledger(
    tables: Tables, cache: FrameCache, config: Config, clock: Callable[[], dt.datetime], log: RunLog
) -> None:
    """Check that the table `consent` is what its source says now; with the secret, make it so.

    Cost: a listing of the source's files, or two small queries to its database. A refresh where the source changed.

    Raises:
        ConfigError, DataQualityError: See `refresh_ledger`.
        ConsentError: The source is refused; or without the secret, the last refresh is older than
            `consent.max_age_hours`, or the source changed and it is older than `consent.max_lag_minutes`.
    """
    record, consent = last_refresh(tables), config.consent
    has_secret = config.identity.secret_env in os.environ
    if record is None and has_secret:
        refresh_ledger(tables, cache, config, clock, log)
        return
    if record is None:
        tables.version("consent")
        raise ConsentError(
            f"the table consent does not record when its source was last read, another program wrote it: {_REMEDY}"
        )
    age = clock() - record.instant
    is_old = age > dt.timedelta(hours=consent.max_age_hours)
    if has_secret:
        if is_old or not record.is_of(source_fingerprint(tables.spark, config)):
            refresh_ledger(tables, cache, config, clock, log)
        return
    if is_old:
        raise ConsentError(
            f"the consent ledger was last refreshed at {record.instant:%Y-%m-%d %H:%M} (UTC), more than "
            f"consent.max_age_hours = {consent.max_age_hours:g} ago: withdrawals may be missing; {_REMEDY}"
        )
    if age > dt.timedelta(minutes=consent.max_lag_minutes) and _has_changed(
        tables.spark, config, record.is_of, log
    ):
        raise ConsentError(
            f"the consent ledger's source changed since its last refresh at {record.instant:%Y-%m-%d %H:%M} (UTC), "
            f"more than consent.max_lag_minutes = {consent.max_lag_minutes:g} ago: {_REMEDY}"
        )


def _has_changed(
    spark: SparkSession,
    config: Config,
    is_of: Callable[[dict[str, str | None]], bool],
    log: RunLog,
) -> bool:
    """Whether the source changed; False, with a warning, where it cannot be reached from here."""
    try:
        return not is_of(source_fingerprint(spark, config))
    except (ConfigError, DataQualityError) as error:
        log.event("consent source not compared", level="warning", error=without_values(error))
        return False
