"""Who may be processed for a purpose. One function, default deny, asked by every stage.

The newest effective statement of a customer for a purpose decides; only `opt_in` says yes. No statement,
an unknown state, or two newest statements that disagree mean no.
"""

from __future__ import annotations

import datetime as dt

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConsentError
from lam_spark.run import Run, sql_literal

OPT_IN = "opt_in"


def standing(ledger: DataFrame, at: dt.datetime) -> DataFrame:
    """Where each customer stands for each purpose at the instant `at`.

    Grain: (customer_key, purpose). `standing` is `opt_in`, `opt_out` or `unclear` (an unknown state, or
    newest statements that disagree). One shuffle by customer; linear in statements.
    """
    newest = F.max(F.struct("effective_at", "recorded_at"))
    effective = ledger.where(F.col("effective_at") <= F.expr(sql_literal(at)))
    last = effective.groupBy("customer_key", "purpose").agg(newest.alias("newest"))
    states = (
        effective.join(last, ["customer_key", "purpose"])
        .where(
            (F.col("effective_at") == F.col("newest.effective_at"))
            & (F.col("recorded_at") == F.col("newest.recorded_at"))
        )
        .groupBy("customer_key", "purpose")
        .agg(F.collect_set("state").alias("states"), F.max(F.col("state").isNull()).alias("has_null"))
    )
    one = (F.size("states") == 1) & ~F.col("has_null")
    state = F.when(one & F.col("states")[0].isin(OPT_IN, "opt_out"), F.col("states")[0])
    return states.select("customer_key", "purpose", F.coalesce(state, F.lit("unclear")).alias("standing"))


def eligible(run: Run, purpose: str, at: dt.datetime | None = None) -> DataFrame:
    """The customers (column `customer_key`, unique) who may be processed for `purpose`.

    Reads the newest ledger and notes its version. `at` is the run's start where not given.

    Raises:
        ConsentError: nobody is eligible.
    """
    everyone = standing(run.tables.read("consent"), at or run.started_at)
    chosen = everyone.where((F.col("purpose") == purpose) & (F.col("standing") == OPT_IN))
    if chosen.isEmpty():
        raise ConsentError(
            f"no customer is eligible for the purpose {purpose!r}: nobody's newest statement is {OPT_IN}. "
            "Check consent.select and the names of the purposes"
        )
    return chosen.select("customer_key")


def count_standings(run: Run, purpose: str, customers: DataFrame) -> dict[str, int]:
    """How `customers` (unique customer_key) stand: opted_in, opted_out, unclear, never_asked."""
    stands = standing(run.tables.read("consent"), run.started_at).where(F.col("purpose") == purpose)
    counted = customers.join(stands, "customer_key", "left").groupBy("standing").count()
    found = {row["standing"]: row["count"] for row in counted.toLocalIterator()}
    return {
        "opted_in": found.get(OPT_IN, 0),
        "opted_out": found.get("opt_out", 0),
        "unclear": found.get("unclear", 0),
        "never_asked": found.get(None, 0),
    }
