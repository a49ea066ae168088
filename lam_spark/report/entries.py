"""The audit entries that belong to one contact list."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from lam_spark.delivery.stage import DeliverResult
from lam_spark.errors import ConfigError
from lam_spark.evaluation.results import EvaluateResult
from lam_spark.labels.stage import ExamplesResult
from lam_spark.runtime.audit import AuditEntry, latest_entries
from lam_spark.scoring.stage import ScoreResult
from lam_spark.stages import NIGHTLY
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal
from lam_spark.training.stage import TrainResult

_NEEDED = ("ingest", "score", "evaluate", "train", "deliver")


@dataclass(frozen=True)
class ListEntries:
    """Audit entries of the stages that led to a list, with their typed results.

    Attributes:
        by_stage: Stage -> entry, in the order of the data flow.
        examples: Of the newest run of that stage; None if there is none.
    """

    by_stage: dict[str, AuditEntry]
    examples: ExamplesResult | None
    train: TrainResult
    score: ScoreResult
    evaluate: EvaluateResult
    deliver: DeliverResult

    @property
    def table_versions(self) -> dict[str, int]:
        """Versions that the list comes from; of a table that several stages touched, the last one's."""
        versions: dict[str, int] = {}
        for entry in self.by_stage.values():
            versions |= entry.tables_read | entry.tables_written
        return versions


def entries_of_list(tables: Tables, target: str, day: dt.date, as_of: dt.datetime) -> ListEntries:
    """The newest entries that belong to the list of a target and an `as_of`.

    These are the scores that the tables hold, the list that was made of them, and the training and evaluation of the
    model that gave them. Other stages may have run since: for another day, target or model.

    Args:
        tables: Tables of the workspace.
        target: The scored target.
        day: `as_of` of the configuration.
        as_of: The same as an instant.

    Raises:
        ConfigError: A stage has not run, or not for this day, target or model.
        AuditError: An entry was written by another version.
    """
    is_of_day = F.col("as_of") == F.expr(sql_literal(as_of))
    scored_by = _run_of(tables, "scores", is_of_day & (F.col("target") == target))
    listed_by = _run_of(tables, "contact_list", is_of_day)

    def is_of_target(entry: AuditEntry) -> bool:
        return (entry.config["scoring"]["target"], entry.as_of) == (target, day.isoformat())

    def is_of_scores(entry: AuditEntry) -> bool:
        return is_of_target(entry) and entry.run_id == scored_by

    def is_of_list(entry: AuditEntry) -> bool:
        result = entry.result_of(DeliverResult)
        # An empty list has no rows from which its run could be read; neither has one that was withdrawn.
        is_listed = listed_by == entry.run_id or (listed_by is None and not result.delivered)
        return is_of_target(entry) and is_listed and result.scores_run_id == scored_by

    conditions: dict[str, Callable[[AuditEntry], bool]] = {"score": is_of_scores, "deliver": is_of_list}
    newest = latest_entries(tables, conditions)
    missing = [stage for stage in _NEEDED if stage not in newest]
    if missing:
        raise ConfigError(
            f"the report of {day} needs audit entries of the stages {', '.join(missing)}, of "
            f"{' and '.join(conditions)} those of the present scores and list of this --as-of and of the target "
            f"{target!r}: run them in this order"
        )
    score = newest["score"].result_of(ScoreResult)

    def is_of_model(entry: AuditEntry) -> bool:
        return entry.result_of(TrainResult).model_digest == score.model_digest

    def is_evaluation(entry: AuditEntry) -> bool:
        is_same_model = entry.result_of(EvaluateResult).model_digest == score.model_digest
        return is_same_model and entry.config["scoring"]["target"] == target

    entries = latest_entries(tables, {**conditions, "train": is_of_model, "evaluate": is_evaluation})
    unknown = [stage for stage in ("train", "evaluate") if stage not in entries]
    if unknown:
        again = ("train", "score", "evaluate", "deliver")
        raise ConfigError(
            f"the scores of {day} come from model version {score.model_version}, for which there is no audit entry of "
            f"{' or '.join(unknown)}: run {', '.join(again['train' not in unknown :])} with the same --as-of"
        )
    return ListEntries(
        by_stage={stage: entries[stage] for stage in NIGHTLY if stage in entries},
        examples=entries["examples"].result_of(ExamplesResult) if "examples" in entries else None,
        train=entries["train"].result_of(TrainResult),
        score=score,
        evaluate=entries["evaluate"].result_of(EvaluateResult),
        deliver=entries["deliver"].result_of(DeliverResult),
    )


def _run_of(tables: Tables, table: str, where: Column) -> str | None:
    """Run that wrote these rows; a stage always replaces all rows of its day."""
    frame = tables.read_if_exists(table)
    row = None if frame is None else frame.where(where).select("run_id").first()
    return None if row is None else str(row["run_id"])
