"""Who may be processed for a purpose. One function, default deny, asked by every stage.

The newest effective statement of a customer for a purpose decides; only `opt_in` says yes. No statement,
an unknown state, or two newest statements that disagree mean no.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConsentError
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.storage.tables.store import FILES_VACUUMED

OPT_IN = "opt_in"


@dataclass(frozen=True)
class Asked:
    """How the ledger was asked about the customers of a table; kept with its commit, as plain JSON values.

    Attributes:
        purpose: that they agreed to.
        consent: version of the ledger.
        at: the instant at which statements had to be in effect (ISO 8601).
    """

    purpose: str
    consent: int
    at: str


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
    kept = run.keep(_agreed(run.tables.read("consent"), purpose, at or run.started_at))
    if kept.isEmpty():
        raise nobody(purpose)
    return kept


def _agreed(ledger: DataFrame, purpose: str, at: dt.datetime) -> DataFrame:
    """Column `customer_key`, unique."""
    chosen = (F.col("purpose") == purpose) & (F.col("standing") == OPT_IN)
    return standing(ledger, at).where(chosen).select("customer_key")


def asked_now(run: Run, purpose: str) -> Asked:
    """What to keep of the question that `eligible` has just put to the ledger, at the run's start."""
    return Asked(purpose, run.tables.read_versions["consent"], run.started_at.isoformat())


def count_withdrawn(run: Run, asked: Asked, purpose: str) -> int | None:
    """How many of those who agreed when they were asked do not agree to `purpose` now, at the run's start.

    By the newest ledger: a statement that came since counts, and so does one that has taken effect since. None: the
    ledger that was asked is not in its table's log any more, or VACUUM has removed its files, so it cannot be told.
    Cost: two shuffles of the ledger.

    Raises:
        ConsentError: nobody is eligible now.
    """
    if run.tables.history("consent", asked.consent) is None:
        return None
    ledger, at = run.tables.read("consent", asked.consent), dt.datetime.fromisoformat(asked.at)
    now = eligible(run, purpose)  # read last: the newest version is the one that decides, and is noted
    agreed = _agreed(ledger, asked.purpose, at)
    return _unless_vacuumed(lambda: agreed.join(now, "customer_key", "left_anti").count())


def count_disowned(run: Run, since: int, until: dt.datetime, purpose: str) -> int | None:
    """How many events before `until` that `events` held at version `since` are not to be processed any more.

    They were somebody's who agrees to `purpose`, and are gone, or belong now to somebody who does not: a late link
    moves events to another customer. Of who does not agree nothing was made, or asking the ledger leaves it out. None:
    it cannot be told, since the table was replaced, its log has a gap or VACUUM has removed its change feed. Cost:
    nothing where no event came or went; else the change feed, and a join of the events that it says were changed.

    Raises:
        ConsentError: nobody is eligible now.
    """
    tables = run.tables
    if not tables.told_since("events", since):
        return None
    if not tables.history("events", since):
        return 0
    feed = tables.changes("events", since).where(F.col("event_time") < F.expr(sql_literal(until)))
    before = feed.where("_change_type <> 'update_postimage'")
    state = F.struct("_commit_version", "_change_type", "customer_key")
    first = (
        before.groupBy("event_id").agg(F.min(state).alias("first")).where("first._change_type <> 'insert'")
    )
    was = first.select("event_id", F.col("first.customer_key").alias("customer_key"))
    allowed = eligible(run, purpose)
    changed = run.keep(was.join(allowed, "customer_key", "left_semi").select("event_id"))
    count = _unless_vacuumed(changed.count)
    if not count:
        return count
    events = tables.read("events").join(changed, "event_id", "left_semi")
    return count - events.join(allowed, "customer_key", "left_semi").count()


def _unless_vacuumed(count: Callable[[], int]) -> int | None:
    """A count; None where the files that it takes are gone."""
    try:
        return count()
    except (Py4JJavaError, PySparkException) as error:
        if FILES_VACUUMED in str(error):
            return None
        raise


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
