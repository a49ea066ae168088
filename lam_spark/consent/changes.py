"""Whose eligibility changed between two runs, so that a nightly run updates only these customers."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.consent.eligibility import OPT_IN, by_purpose, eligible_by_purpose
from lam_spark.consent.guards import ConsentCheck
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal


def eligible_among(
    tables: Tables, consent: ConsentConfig, at: dt.datetime, customers: DataFrame
) -> DataFrame:
    """The rows of `customers` (column `customer_key`) that are eligible now, as in `eligible_by_purpose`."""
    distinct = customers.select("customer_key").distinct()
    ledger = tables.read("consent").join(distinct, "customer_key", "left_semi")
    return by_purpose(ledger, consent, at)


def may_have_changed(tables: Tables, check: ConsentCheck, at: dt.datetime) -> bool:
    """Whether a statement was added, or an opt-in took effect, between an earlier check and the instant `at`.

    A withdrawal counts from its recording: time alone does not change what it means.
    """
    if not tables.log("consent").has_same_rows_since(check.version):
        return True
    first, last = sorted([check.instant, at])
    effective_at = F.col("effective_at")
    between = (effective_at > F.expr(sql_literal(first))) & (effective_at <= F.expr(sql_literal(last)))
    return not tables.read("consent").where(between & (F.col("state") == OPT_IN)).isEmpty()


def changed_eligibility(
    tables: Tables, cache: FrameCache, consent: ConsentConfig, check: ConsentCheck, at: dt.datetime
) -> DataFrame:
    """Customers whose eligibility differs from that of an earlier check; grain: a customer.

    Columns: `customer_key` and the booleans `was_eligible`, `is_eligible`, `trained`, `trains` (never null).
    """
    now = eligible_by_purpose(tables, cache, consent, at)
    then = by_purpose(tables.read("consent", check.version), consent, check.instant)
    tables.read("consent")  # remember the version that decides now
    joined = now.withColumn("is_eligible", F.lit(True)).join(
        then.select("customer_key", F.col("trains").alias("trained"), F.lit(True).alias("was_eligible")),
        "customer_key",
        "full",
    )
    flags = ("was_eligible", "is_eligible", "trained", "trains")
    return joined.select(
        "customer_key", *(F.coalesce(flag, F.lit(False)).alias(flag) for flag in flags)
    ).where("was_eligible <> is_eligible OR trained <> trains")
