"""Stage `deliver`: the ranked contact list, after asking the newest consent ledger once more.

A run may have taken hours until here: what the ledger's source has come to state in the meantime is taken in first,
and the question is put for the present instant. Cost: what the stage `consent` costs, and one shuffle of the scores
by customer; only the list itself (at most `delivery.capacity` rows) meets in one task.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible
from lam_spark.consent.stage import take_in
from lam_spark.errors import ConfigError
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.sequences.freshness import require_owned

LIST_COLUMNS = ("rank", "customer_key", "proposal_id", "description", "proposal_necessity")


@stage
def run(run: Run) -> StageResult:
    """Publish `contact_list` for this `as_of` (grain: a customer) and the same as CSV.

    Statements that are new go to the table `consent` first, as in the stage of that name.

    Raises:
        ConfigError: no scores for this `as_of` (the stage `score` comes first), or the ledger's source cannot be read.
        ConsentError: the ledger's source is refused (`consent.ledger.take_in`), nobody may be contacted now, or events
            that were scored belong now to somebody who may not be (`sequences.dates.require_owned`).
    """
    config = run.config
    as_of = sql_literal(run.as_of)
    scores = run.tables.read("scores").where(
        (F.col("target") == config.scoring.target) & (F.col("as_of") == F.expr(as_of))
    )
    newest = scores.select("run_id", "events_version").first()
    if newest is None:
        raise ConfigError(f"no scores for as_of {config.as_of}: run the stage 'score' with the same --as-of")
    scored = scores.select("customer_key").distinct().count()
    read, new = take_in(run)
    purpose = config.consent.contact_purpose
    again = "run the stages 'sequences' and 'score' again"
    require_owned(run, newest["events_version"], run.as_of, purpose, "the table 'scores'", again)
    now = run.clock()
    allowed = eligible(run, purpose, at=now)
    consent_version = run.tables.read_versions["consent"]
    contactable = scores.join(allowed, "customer_key", "left_semi")
    best = F.max_by(
        F.struct("proposal_id", "description", "calibrated", "model_digest"),
        F.struct("calibrated", "proposal_id"),
    )
    candidates = contactable.groupBy("customer_key").agg(best.alias("best"))
    listed = (
        candidates.orderBy(F.desc("best.calibrated"), "customer_key")
        .limit(config.delivery.capacity)
        .select(
            F.row_number().over(Window.orderBy(F.desc("best.calibrated"), "customer_key")).alias("rank"),
            "customer_key",
            F.col("best.proposal_id").alias("proposal_id"),
            F.col("best.description").alias("description"),
            F.col("best.calibrated").alias("proposal_necessity"),
            F.expr(as_of).alias("as_of"),
            F.col("best.model_digest").alias("model_digest"),
            F.lit(consent_version).alias("consent_version"),
            F.lit(run.run_id).alias("run_id"),
        )
    )
    delivered = run.tables.overwrite(listed, "contact_list", where=f"as_of = {as_of}")
    published = run.tables.read("contact_list").where(F.col("as_of") == F.expr(as_of))
    path = config.workspace / "delivery" / f"contact_list_{config.as_of}.csv"
    _write_csv(published.select(*LIST_COLUMNS).orderBy("rank"), path)
    still = candidates.count()
    return StageResult(
        says=f"{delivered:,} customers on the list, {scored - still:,} withheld by the newest ledger: {path}",
        counts={
            "statements_in": read,
            "statements_new": new,
            "customers_scored": scored,
            "suppressed_by_consent": scored - still,
            "below_capacity": still - delivered,
            "delivered": delivered,
        },
        facts={
            "path": str(path),
            "consent_asked_at": now.isoformat(),
            "scores_run_id": newest["run_id"],  # all of them: a run replaces those of its day whole
        },
    )


def _write_csv(rows: DataFrame, path: Path) -> None:
    """One file, written by one task, put in place by a rename."""
    draft = path.with_suffix(".draft")
    # A quote inside a quoted text is written twice (RFC 4180); Spark alone would put a backslash before it.
    writer = rows.coalesce(1).write.mode("overwrite").option("header", "true").option("escape", '"')
    writer.csv(str(draft))
    (part,) = draft.glob("part-*.csv")
    part.replace(path)
    shutil.rmtree(draft)
