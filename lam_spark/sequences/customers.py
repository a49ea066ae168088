"""Whose sequences may exist: customers who are eligible for training or for contact, now and at the last run."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.consent.eligibility import OPT_IN, nobody, standing
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.sequences.lineage import Built
from lam_spark.sequences.time_range import instant, micros

# More customers than this are not sent to every executor: events are shuffled to them instead.
MOST_BROADCAST = 2_000_000


def allowed_now(run: Run) -> DataFrame:
    """`customer_key, trains, contacts`; grain: a customer who is eligible for training or for contact, or both.

    Kept for the stage.

    Raises:
        ConsentError: nobody is eligible for one of them.
    """
    consent = run.config.consent
    kept = run.keep(allowed_of(run.tables.read("consent"), run.started_at, run.config))
    told = kept.agg(F.max("trains"), F.max("contacts")).first()
    assert told is not None  # an aggregate without keys gives one row
    for some, purpose in zip(told, (consent.training_purpose, consent.contact_purpose), strict=True):
        if not some:
            raise nobody(purpose)
    return kept


def beside_events(customers: DataFrame) -> DataFrame:
    """Kept customers as one side of a join with events: where they are few, the events stay where they are."""
    return customers.hint("broadcast") if customers.count() <= MOST_BROADCAST else customers


def allowed_of(ledger: DataFrame, at: dt.datetime, config: Config) -> DataFrame:
    """As `allowed_now`, by the statements of `ledger` at the instant `at`, whoever they leave."""
    consent = config.consent
    stands = standing(ledger, at).where(
        F.col("purpose").isin(consent.training_purpose, consent.contact_purpose)
        & (F.col("standing") == OPT_IN)
    )
    return stands.groupBy("customer_key").agg(
        F.max(F.col("purpose") == consent.training_purpose).alias("trains"),
        F.max(F.col("purpose") == consent.contact_purpose).alias("contacts"),
    )


def standings_moved(run: Run, built: Built) -> bool:
    """Whether a statement has come, or taken effect, since the last run."""
    if run.tables.version("consent") != built.consent:
        return True
    then, now = sorted([built.asked_at, micros(run.started_at)])
    at = F.unix_micros("effective_at")
    return not run.tables.read("consent").where((at > then) & (at <= now)).isEmpty()


def changed_standings(run: Run, built: Built) -> DataFrame:
    """Customers whose eligibility is not what it was; grain: a customer.

    Columns: `customer_key`, `was_allowed, allowed, trained, trains` (booleans, never null).
    """
    now = allowed_now(run)
    then = allowed_of(run.tables.read("consent", built.consent), instant(built.asked_at), run.config)
    run.tables.read("consent")  # notes the version that decided
    flags = now.withColumn("allowed", F.lit(True)).join(
        then.select("customer_key", F.col("trains").alias("trained"), F.lit(True).alias("was_allowed")),
        "customer_key",
        "full",
    )
    no = F.lit(False)
    told = flags.select(
        "customer_key",
        *(F.coalesce(name, no).alias(name) for name in ("was_allowed", "allowed", "trained", "trains")),
    )
    return told.where("was_allowed <> allowed OR trained <> trains")


def before(events: DataFrame, cut: int) -> DataFrame:
    """The events before an instant (microseconds UTC)."""
    return events.where(F.col("event_time") < F.expr(sql_literal(instant(cut))))
