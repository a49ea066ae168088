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
# matures before the test period. Unused examples are not written.
TRAIN, VALIDATION, TEST, STRADDLING, UNUSED = "train", "validation", "test", "straddling", "unused"
# Instead of a split, where the horizon is not a whole number of days: such examples stop the stage.
_INVALID_HORIZON = "invalid_horizon"


@dataclass(frozen=True)
class SplitCounts:
    """Examples of one target in one split.

    Attributes:
        examples: All examples.
        positives: Examples with a label above 0, or with a value that followed.
        without_horizon: Examples whose horizon is null; they are unused.
    """

    examples: int
    positives: int
    without_horizon: int


def split_of(target: TargetConfig, periods: Mapping[str, str], observed_until: dt.datetime) -> Column:
    """Split of an example, from the query's columns and `label_end`.

    Args:
        target: Defines the horizon.
        periods: Starts of the periods (`Config.split_instants`).
        observed_until: Instant up to which events are known: a later `label_end` is not observed.
    """
    start, validation, test = (
        F.expr(sql_literal(dt.datetime.fromisoformat(periods[name])))
        for name in ("train_start", "validation_start", "test_start")
    )
    opens, ends = F.col("event_time"), F.col("label_end")
    observed_end = F.expr(sql_literal(observed_until))
    horizon, is_whole = horizon_days(target)
    return (
        F.when(horizon.isNotNull() & ~is_whole, _INVALID_HORIZON)
        .when((opens < start) | (ends > observed_end) | ends.isNull(), UNUSED)
        .when(opens >= test, TEST)
        .when(ends > test, UNUSED)
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


def require_labels(name: str, target: TargetConfig, counts: Mapping[str, SplitCounts]) -> None:
    """Check that the training and the validation period have labels to learn from.

    Raises:
        DataQualityError: A period lacks one class of a binary target, or positive labels of another target.
    """
    for split in (TRAIN, VALIDATION):
        split_counts = counts.get(split, SplitCounts(0, 0, 0))
        max_positives = split_counts.examples - (1 if target.kind == "binary" else 0)
        if not 0 < split_counts.positives <= max_positives:
            needed = "both classes are" if target.kind == "binary" else "at least one positive is"
            raise DataQualityError(
                f"target {name!r} has {split_counts.positives:,} positive of {split_counts.examples:,} examples in the "
                f"{split} period; {needed} needed. Check its population, label and the dates of split"
            )
