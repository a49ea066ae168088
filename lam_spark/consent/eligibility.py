"""Who may be processed for a purpose. One function, default deny, asked by every stage.

The newest effective statement of a customer for a purpose decides; only `opt_in` says yes. No statement,
an unknown state, or two newest statements that disagree mean no.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

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
    moment = F.struct("effective_at", "recorded_at")
    told = (
        ledger.where(F.col("effective_at") <= F.expr(sql_literal(at)))
        # The one shuffle: it serves both groupings.
        .repartition("customer_key", "purpose")
        .groupBy("customer_key", "purpose", "effective_at", "recorded_at")
        .agg(F.collect_set("state").alias("states"), F.max(F.col("state").isNull()).alias("has_null"))
    )
    newest = told.groupBy("customer_key", "purpose").agg(
        F.max_by(F.struct("states", "has_null"), moment).alias("last")
    )
    states = F.col("last.states")
    one = (F.size(states) == 1) & ~F.col("last.has_null")
    state = F.when(one & states[0].isin(OPT_IN, "opt_out"), states[0])
    return newest.select("customer_key", "purpose", F.coalesce(state, F.lit("unclear")).alias("standing"))


def eligible(run: Run, purpose: str, at: dt.datetime | None = None) -> DataFrame:
    """The customers (column `customer_key`, unique) who may be processed for `purpose`; kept for the stage.

    Reads the newest ledger and notes its version. `at` is the run's start where not given.

    Raises:
        ConsentError: nobody is eligible.
    """
    everyone = standing(run.tables.read("consent"), at or run.started_at)
    chosen = everyone.where((F.col("purpose") == purpose) & (F.col("standing") == OPT_IN))
    kept = run.keep(chosen.select("customer_key"))
    if kept.isEmpty():
        raise nobody(purpose)
    return kept


def nobody(purpose: str) -> ConsentError:
    """What to say where no customer is eligible."""
    return ConsentError(
        f"no customer is eligible for the purpose {purpose!r}: nobody's newest statement is {OPT_IN}. "
        "Check consent.select and the names of the purposes"
    )


def count_standings(run: Run, purposes: Sequence[str], customers: DataFrame) -> dict[str, dict[str, int]]:
    """How `customers` (unique customer_key) stand, by purpose: opted_in, opted_out, unclear, never_asked."""
    stands = standing(run.tables.read("consent"), run.started_at)
    asked = customers.withColumn("purpose", F.explode(F.array(*(F.lit(name) for name in purposes))))
    joined = asked.join(stands, ["customer_key", "purpose"], "left")
    found = {
        (row["purpose"], row["standing"]): row["count"]
        for row in joined.groupBy("purpose", "standing").count().toLocalIterator()
    }
    names = {"opted_in": OPT_IN, "opted_out": "opt_out", "unclear": "unclear", "never_asked": None}
    return {
        purpose: {name: found.get((purpose, state), 0) for name, state in names.items()}
        for purpose in purposes
    }
