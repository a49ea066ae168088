"""Who may be processed for a purpose: the one decision, default deny, that every stage passes through.

An opt-in counts only if it is in effect and later than every withdrawal, in `effective_at` and in `recorded_at`; a tie
means no. A withdrawal counts from its recording, whatever its effective date. Any state but `opt_in` is a withdrawal.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, Window
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
        unclear: Customers whose last withdrawal is an unknown state, or whose opt-in and withdrawal have no clear
            order.
        never_asked: Customers without a withdrawal or an opt-in in effect.
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

    Grain: (customer_key, purpose). Column `status` is `opt_in`, `opt_out` or `unclear`: an opt-in in effect was not
    recorded before the last withdrawal, yet is not later than all, or the last withdrawal is an unknown state. One
    shuffle by customer and purpose; linear in statements.
    """
    pair = Window.partitionBy("customer_key", "purpose")
    is_opt_in = F.coalesce(F.col("state") == OPT_IN, F.lit(False))
    # A withdrawal that is dated later than it was first read counts from then.
    recorded_at = F.when(is_opt_in, F.col("recorded_at")).otherwise(F.least("recorded_at", "ingested_at"))
    statements = ledger.select(
        "customer_key",
        "purpose",
        "effective_at",
        recorded_at.alias("recorded_at"),
        is_opt_in.alias("_is_opt_in"),
        (~is_opt_in & ~F.coalesce(F.col("state") == OPT_OUT, F.lit(False))).alias("_is_unknown"),
    ).withColumns(
        {
            f"_withdrawal_{name}": F.max(F.when(~F.col("_is_opt_in"), F.col(name))).over(pair)
            for name in ("effective_at", "recorded_at")
        }
    )
    never_withdrawn = F.col("_withdrawal_recorded_at").isNull()
    is_recorded_later = F.col("recorded_at") > F.col("_withdrawal_recorded_at")
    is_effective_later = F.col("effective_at") > F.col("_withdrawal_effective_at")
    is_last_recorded = F.col("recorded_at") >= F.col("_withdrawal_recorded_at")
    in_effect = F.col("_is_opt_in") & (F.col("effective_at") <= F.expr(sql_literal(at)))
    facts = statements.groupBy("customer_key", "purpose").agg(
        F.max(in_effect).alias("_opted_in"),
        F.max(~F.col("_is_opt_in")).alias("_withdrew"),
        F.max(in_effect & (never_withdrawn | (is_recorded_later & is_effective_later))).alias("_is_later"),
        F.max(is_last_recorded & (in_effect | F.col("_is_unknown"))).alias("_is_unclear"),
    )
    status = F.when(F.col("_is_later"), OPT_IN).when(F.col("_is_unclear"), _UNCLEAR).otherwise(OPT_OUT)
    return facts.where("_opted_in OR _withdrew").select("customer_key", "purpose", status.alias("status"))


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
        f"no customer is eligible for the purpose {purpose!r}: no {OPT_IN} is in effect and later than all "
        "withdrawals. Check consent.select and the names of the purposes"
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
