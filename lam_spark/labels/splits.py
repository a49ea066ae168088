"""Splits of examples by time: no label of one period is known before the next one starts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from lam_spark.config import TargetConfig
from lam_spark.errors import DataQualityError
from lam_spark.labels.queries import horizon_days
from lam_spark.storage.time import sql_literal

# A straddling example opens in one period and matures in the next. It is used only by the final refit, if it
# matures before the test period.
TRAIN, VALIDATION, TEST, STRADDLING = "train", "validation", "test", "straddling"
USED = (TRAIN, STRADDLING, VALIDATION, TEST)
# Why a query gives no example: these are counted and not written.
NO_HORIZON, TOO_EARLY, NOT_OVER, INTO_TEST = "no_horizon", "before_training", "not_over", "into_test"
UNUSED = {
    TOO_EARLY: "before the training period",
    NO_HORIZON: "without a horizon",
    NOT_OVER: "the horizon is not over, or the channels of the outcomes are not complete up to its end",
    INTO_TEST: "opens before the test period and ends in it",
}
# Instead of a split, where the horizon is not a whole number of days: such examples stop the stage.
_INVALID_HORIZON = "invalid_horizon"


@dataclass(frozen=True)
class SplitCounts:
    """Queries of one target in one split, or not used for one reason.

    Attributes:
        examples: All queries.
        positives: Queries with a label above 0, or with a value that followed.
    """

    examples: int
    positives: int


def split_of(target: TargetConfig, starts: Mapping[str, dt.datetime], complete_until: dt.datetime) -> Column:
    """Split of an example, or why it is not used, from the query's columns and `label_end`.

    Args:
        target: Defines the horizon.
        starts: Starts of the periods (`Config.period_starts`).
        complete_until: Instant up to which the channels of the outcomes are complete: a later `label_end` is not over.
    """
    start, validation, test = (
        F.expr(sql_literal(starts[name])) for name in ("train_start", "validation_start", "test_start")
    )
    opens, ends = F.col("event_time"), F.col("label_end")
    observed_end = F.expr(sql_literal(complete_until))
    horizon, is_whole = horizon_days(target)
    return (
        F.when(horizon.isNotNull() & ~is_whole, _INVALID_HORIZON)
        .when(opens < start, TOO_EARLY)
        .when(ends.isNull(), NO_HORIZON)
        .when(ends > observed_end, NOT_OVER)
        .when(opens >= test, TEST)
        .when(ends > test, INTO_TEST)
        .when(opens >= validation, VALIDATION)
        .when(ends > validation, STRADDLING)
        .otherwise(TRAIN)
    )


def require_whole_days(name: str, target: TargetConfig, counts: Mapping[str, SplitCounts]) -> None:
    """Check that every horizon is a whole number of days from 1, or null.

    Raises:
        DataQualityError: Queries have another horizon.
    """
    if _INVALID_HORIZON in counts:
        raise DataQualityError(
            f"targets.{name}.horizon_days: expected a whole number of days from 1, or null where a query has no "
            f"horizon; {target.horizon_days!r} gives {counts[_INVALID_HORIZON].examples:,} queries another number. "
            "Round it, or exclude these queries from the population"
        )


def require_queries(name: str, target: TargetConfig, counts: Mapping[str, SplitCounts]) -> None:
    """Check that a target has queries at all.

    Raises:
        DataQualityError: No event is in its population, or makes a customer active.
    """
    if counts:
        return
    key, predicate = (
        ("population", target.population) if target.every_days is None else ("active", target.active)
    )
    raise DataQualityError(
        f"targets.{name}.{key}: no event of a customer eligible for training matches {predicate!r}, so the target has "
        "no query. Check the predicate, the values in the table events and the consent to the training purpose"
    )


def smaller_class(kind: str, queries: int, positives: int) -> int:
    """What `quality.min_positives` is compared with.

    Returns:
        The queries of the smaller class of a binary target; all queries of another target, 0 where none has an
        outcome.
    """
    if kind == "binary":
        return min(positives, queries - positives)
    return queries if positives else 0


def too_few(kind: str, queries: int, positives: int, least: int) -> str:
    """Why a target cannot be measured in a period, as text; empty if it can.

    Args:
        kind: Kind of the target.
        queries: Queries in the period.
        positives: Queries with a label above 0, or with a value that followed.
        least: `quality.min_positives`.
    """
    count = smaller_class(kind, queries, positives)
    if count >= least:
        return ""
    what = f"{positives:,} positive of " if kind == "binary" or not positives else ""
    return f"too few to judge: {count:,} ({what}{queries:,} queries; quality.min_positives is {least:,})"
