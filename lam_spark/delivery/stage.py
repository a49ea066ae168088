"""Stage `deliver`: the ranked contact list, after reading the consent source again.

A run may have taken hours until here: the list of this `as_of` is withdrawn, new statements of the ledger's source are
ingested, and eligibility is decided for the present instant. Cost: the stage `consent`, and one shuffle of the scores
by customer; only the list itself (at most `delivery.capacity` rows) meets in one task.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, ClassVar

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible_customers
from lam_spark.consent.guards import require_assigned
from lam_spark.consent.refresh import refresh_ledger
from lam_spark.delivery.export import write_csv
from lam_spark.delivery.publication import VALID, ListFiles, withdraw, write_manifest
from lam_spark.errors import ConfigError
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.scoring.freshness import require_scores
from lam_spark.storage.time import sql_literal

LIST_COLUMNS = ("rank", "customer_key", "proposal_id", "description", "proposal_necessity")


@dataclass(frozen=True)
class DeliverResult(StageResult):
    """The contact list of one `as_of`.

    Attributes:
        statements_in, statements_new: Consent statements of the ledger's source.
        customers_scored: Customers with scores.
        suppressed_by_consent: Those who are not eligible any more.
        below_capacity: Eligible customers ranked below the capacity of the list.
        delivered: Customers on the list.
        path: The CSV file.
        consent_checked_at: Instant of the decision.
        scores_run_id: Run that wrote the scores.
        manifest: JSON file with the status of the list.
        valid_until: Instant until which the list may be used.
        sha256: Of the CSV file (hex).
        stale_channels: Channels that were silent for too long when the customers were scored.
    """

    FORMAT: ClassVar[int] = 2

    statements_in: int
    statements_new: int
    customers_scored: int
    suppressed_by_consent: int
    below_capacity: int
    delivered: int
    path: str
    consent_checked_at: dt.datetime
    scores_run_id: str
    manifest: str
    valid_until: dt.datetime
    sha256: str
    stale_channels: tuple[str, ...]

    @property
    def manifest_facts(self) -> dict[str, Any]:
        """What the manifest says about the list."""
        return {
            "consent_checked_at": self.consent_checked_at.isoformat(),
            "valid_until": self.valid_until.isoformat(),
            "counts": dict(self.counts),
            "stale_channels": list(self.stale_channels),
            "sha256": self.sha256,
        }

    @property
    def message(self) -> str:
        """One line for people."""
        return (
            f"{self.delivered:,} customers on the list, {self.suppressed_by_consent:,} withheld by the newest "
            f"ledger: {self.path}"
        )


@stage
def deliver(ctx: RunContext) -> DeliverResult:
    """Publish `contact_list` for this `as_of` (grain: a customer), the same as CSV, and a manifest.

    An earlier list of this `as_of` is withdrawn first, so that none remains if this stage fails. Then new statements
    are appended to the table `consent`, as in the stage of that name.

    Raises:
        ConfigError: There are no scores for this `as_of`, or the ledger's source cannot be read.
        DataQualityError: The scores were made for another configuration.
        ConsentError: The ledger's source is refused (`consent.refresh`), no customer may be contacted now, or scored
            events were reassigned to customers who may not be (`consent.guards`).
    """
    config, tables, purpose = ctx.config, ctx.tables, ctx.config.consent.contact_purpose
    files = ListFiles.of(config.workspace / "delivery", config.as_of)
    if withdraw(tables, files, ctx.as_of, ctx.run_id, ctx.clock()):
        ctx.log.event("list withdrawn", as_of=config.as_of.isoformat(), file=str(files.csv))
    as_of = sql_literal(ctx.as_of)
    is_of_day = F.col("as_of") == F.expr(as_of)
    scores = tables.read("scores").where((F.col("target") == config.scoring.target) & is_of_day)
    # A run replaces the scores of its day as a whole.
    newest = scores.select("run_id", "events_version", "definition", "stale_channels").first()
    if newest is None:
        raise ConfigError(f"no scores for as_of {config.as_of}: run the stage 'score' with the same --as-of")
    require_scores(tables, config, newest["definition"])
    customers_scored = scores.select("customer_key").distinct().count()
    update = refresh_ledger(tables, ctx.cache, config, ctx.clock, ctx.log)
    require_assigned(
        tables,
        ctx.cache,
        newest["events_version"],
        ctx.as_of,
        purpose,
        ctx.started_at,
        data_name="the table 'scores'",
        remedy="run the stages 'sequences' and 'score' again",
    )
    now = ctx.clock()
    allowed = eligible_customers(tables, ctx.cache, purpose, now)
    consent_version = tables.read_versions["consent"]
    candidates = _best_proposals(scores.join(allowed, "customer_key", "left_semi"))
    listed = _ranked(candidates, config.delivery.capacity).withColumns(
        {
            "as_of": F.expr(as_of),
            "model_digest": F.col("_best.model_digest"),
            "consent_version": F.lit(consent_version),
            "run_id": F.lit(ctx.run_id),
        }
    )
    delivered = tables.overwrite(listed.drop("_best"), "contact_list", where=f"as_of = {as_of}")
    published = tables.read("contact_list").where(is_of_day)
    sha256 = write_csv(published.select(*LIST_COLUMNS).orderBy("rank"), files.csv)
    eligible_count = candidates.count()
    result = DeliverResult(
        statements_in=update.statements_in,
        statements_new=update.statements_new,
        customers_scored=customers_scored,
        suppressed_by_consent=customers_scored - eligible_count,
        below_capacity=eligible_count - delivered,
        delivered=delivered,
        path=str(files.csv),
        consent_checked_at=now,
        scores_run_id=newest["run_id"],
        manifest=str(files.manifest),
        valid_until=now + dt.timedelta(hours=config.delivery.valid_hours),
        sha256=sha256,
        stale_channels=tuple(newest["stale_channels"]),
    )
    facts = {"target": config.scoring.target, "purpose": purpose, "consent_version": consent_version}
    write_manifest(files, VALID, ctx.as_of, ctx.run_id, {**facts, **result.manifest_facts})
    return result


def _best_proposals(scores: DataFrame) -> DataFrame:
    """`customer_key` and the struct `_best`: the customer's proposal of the highest probability."""
    best = F.max_by(
        F.struct("proposal_id", "description", "probability", "model_digest"),
        F.struct("probability", "proposal_id"),
    )
    return scores.groupBy("customer_key").agg(best.alias("_best"))


def _ranked(candidates: DataFrame, capacity: int) -> DataFrame:
    """The first `capacity` candidates with `LIST_COLUMNS` and `_best`; ties are ordered by `customer_key`."""
    order: tuple[Column | str, ...] = (F.desc("_best.probability"), "customer_key")
    return (
        candidates.orderBy(*order)
        .limit(capacity)
        .select(
            F.row_number().over(Window.orderBy(*order)).alias("rank"),
            "customer_key",
            F.col("_best.proposal_id").alias("proposal_id"),
            F.col("_best.description").alias("description"),
            F.col("_best.probability").alias("proposal_necessity"),
            "_best",
        )
    )
