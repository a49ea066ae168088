"""Who may be processed for a purpose: the one decision, default deny, that every stage passes through.

The newest effective statement of a customer for a purpose decides; only `opt_in` means yes. No statement, an
unknown state, or newest statements that disagree mean no.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.errors import ConsentError
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal

OPT_IN, OPT_OUT = "opt_in", "opt_out"
_UNCLEAR = "unclear"


@dataclass(frozen=True)
class StatusCounts:
    """Customers by consent status for one purpose; each is counted once.

    Attributes:
        unclear: Customers with an unknown state, or newest statements that disagree.
        never_asked: Customers without an effective statement.
    """

    opted_in: int
    opted_out: int
    unclear: int
    never_asked: int

    @property
    def customers(self) -> int:
        """All customers."""
        return self.opted_in + self.opted_out + self.unclear + self.never_asked


def consent_status(ledger: DataFrame, at: dt.datetime) -> DataFrame:
    """Consent status of each customer and purpose at the instant `at`.

    Grain: (customer_key, purpose). Column `status` is `opt_in`, `opt_out` or `unclear`. One shuffle by customer and
    purpose; linear in statements.
    """
    statement_time = F.struct("effective_at", "recorded_at")
    statements = (
        ledger.where(F.col("effective_at") <= F.expr(sql_literal(at)))
        # One shuffle serves both groupings.
        .repartition("customer_key", "purpose")
        .groupBy("customer_key", "purpose", "effective_at", "recorded_at")
        .agg(F.collect_set("state").alias("_states"), F.max(F.col("state").isNull()).alias("_has_null"))
    )
    newest = statements.groupBy("customer_key", "purpose").agg(
        F.max_by(F.struct("_states", "_has_null"), statement_time).alias("_newest")
    )
    states = F.col("_newest._states")
    is_unanimous = (F.size(states) == 1) & ~F.col("_newest._has_null")
    state = F.when(is_unanimous & states[0].isin(OPT_IN, OPT_OUT), states[0])
    return newest.select("customer_key", "purpose", F.coalesce(state, F.lit(_UNCLEAR)).alias("status"))


def eligible(ledger: DataFrame, purposes: Sequence[str], at: dt.datetime) -> DataFrame:
    """The decision: which customers may be processed for which of the purposes at the instant `at`.

    Grain: (customer_key, purpose), opted in. Cost as `consent_status`.
    """
    may_be_processed = F.col("purpose").isin(*purposes) & (F.col("status") == OPT_IN)
    return consent_status(ledger, at).where(may_be_processed).select("customer_key", "purpose")


def eligible_customers(tables: Tables, cache: FrameCache, purpose: str, at: dt.datetime) -> DataFrame:
    """Customers (column `customer_key`, unique) eligible for `purpose` by the newest ledger; cached.

    Raises:
        ConsentError: No customer is eligible.
    """
    customers = cache(eligible(tables.read("consent"), [purpose], at).select("customer_key"))
    if customers.isEmpty():
        raise no_eligible_customer(purpose)
    return customers


def eligible_by_purpose(
    tables: Tables, cache: FrameCache, consent: ConsentConfig, at: dt.datetime
) -> DataFrame:
    """Customers eligible for training, for contact or for both, by the newest ledger; cached.

    Grain: a customer. Columns: `customer_key`, `trains`, `contacts` (booleans).

    Raises:
        ConsentError: No customer is eligible for one of the purposes.
    """
    customers = cache(by_purpose(tables.read("consent"), consent, at))
    any_eligible = one_row(customers.agg(F.max("trains"), F.max("contacts")))
    for is_eligible, purpose in zip(
        any_eligible, (consent.training_purpose, consent.contact_purpose), strict=True
    ):
        if not is_eligible:
            raise no_eligible_customer(purpose)
    return customers


def by_purpose(ledger: DataFrame, consent: ConsentConfig, at: dt.datetime) -> DataFrame:
    """As `eligible_by_purpose`, for the statements of `ledger`, without a check that any customer is eligible."""
    pairs = eligible(ledger, [consent.training_purpose, consent.contact_purpose], at)
    return pairs.groupBy("customer_key").agg(
        F.max(F.col("purpose") == consent.training_purpose).alias("trains"),
        F.max(F.col("purpose") == consent.contact_purpose).alias("contacts"),
    )


def no_eligible_customer(purpose: str) -> ConsentError:
    """The error where no customer is eligible."""
    return ConsentError(
        f"no customer is eligible for the purpose {purpose!r}: no newest statement is {OPT_IN}. "
        "Check consent.select and the names of the purposes"
    )


def count_by_status(
    tables: Tables, purposes: Sequence[str], at: dt.datetime, customers: DataFrame
) -> dict[str, StatusCounts]:
    """Count `customers` (unique customer_key) by consent status, for each purpose."""
    status = consent_status(tables.read("consent"), at)
    pairs = customers.withColumn("purpose", F.explode(F.array(*(F.lit(name) for name in purposes))))
    joined = pairs.join(status, ["customer_key", "purpose"], "left")
    counts = {
        (row["purpose"], row["status"]): row["count"]
        for row in joined.groupBy("purpose", "status").count().toLocalIterator()
    }
    return {
        purpose: StatusCounts(
            opted_in=counts.get((purpose, OPT_IN), 0),
            opted_out=counts.get((purpose, OPT_OUT), 0),
            unclear=counts.get((purpose, _UNCLEAR), 0),
            never_asked=counts.get((purpose, None), 0),
        )
        for purpose in purposes
    }
