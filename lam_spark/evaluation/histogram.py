"""Histogram of a ranking's scores, counted by Spark; its size is bounded for any distribution of scores."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.evaluation.ranking import Float, Histogram

# Above this number of distinct scores, scores are grouped between quantiles. The rank error of a quantile is
# 0.1 of a step.
_QUANTILES = 10_000
_RANK_ERROR = 0.1 / _QUANTILES


def ranked(score: Column) -> Column:
    """Cast the score to a double that orders all examples; a missing score (null) becomes the lowest."""
    return F.coalesce(score.cast("double"), F.lit(-math.inf))


def histogram_of(examples: DataFrame, score: Column, predicted: Column) -> Histogram:
    """Count examples by score.

    Up to `_QUANTILES` distinct scores get one bin each. With more (a time in seconds is nearly unique per example),
    each quantile's score gets a bin, and so do all scores between two neighbouring quantiles. Equal scores stay
    together and a frequent score keeps its own bin. Only scores within about 1/10,000 of the examples become ties,
    which changes the AUC by less than that.

    Cost: one aggregation, or two and an approximate quantile; at most about twice `_QUANTILES` rows reach the driver.

    Args:
        examples: One row per example, with a column `label` of 0 or 1.
        score: Score to rank by; null ranks last.
        predicted: Calibrated probability.
    """
    scored = examples.select(ranked(score).alias("score"), "label", predicted.alias("predicted"))
    rows = _rows(scored, F.col("score"), _QUANTILES + 1)
    if len(rows) > _QUANTILES:
        steps = np.linspace(0, 1, _QUANTILES + 1).tolist()
        quantiles = np.unique(scored.approxQuantile("score", steps, _RANK_ERROR))
        rows = _rows(scored, _bin(quantiles, F.col("score")), 2 * len(quantiles) + 1)
    return Histogram(*rows[np.argsort(rows[:, 0])].T)


def _rows(scored: DataFrame, bin_of: Column, limit: int) -> Float:
    """Collect at most `limit` bins, unordered; shape (bins, 4): lowest score, rows, positives, sum of `predicted`."""
    counted = scored.groupBy(bin_of.alias("bin")).agg(
        F.min("score"), F.count("*"), F.sum("label"), F.sum("predicted")
    )
    rows = counted.drop("bin").limit(limit).toLocalIterator()
    return np.array([[float(value) for value in row] for row in rows]).reshape(-1, 4)


def _bin(quantiles: Float, score: Column) -> Column:
    """Number of a score's bin: odd if the score equals a quantile, even between two quantiles."""

    def bin_number(scores: pd.Series) -> pd.Series:  # type: ignore[type-arg]
        values = scores.to_numpy()
        return pd.Series(np.searchsorted(quantiles, values) + np.searchsorted(quantiles, values, "right"))

    numbered: Column = pandas_udf(bin_number, "bigint")(score)  # type: ignore[call-overload]
    return numbered
