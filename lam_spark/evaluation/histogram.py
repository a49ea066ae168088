"""A ranking's histogram, counted by Spark; it stays small whatever the scores are."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lam_spark.evaluation.ranking import Float, Histogram

# More distinct scores than this are gathered between so many quantiles, of which each is off by a tenth of a step.
_QUANTILES = 10_000
_RANK_ERROR = 0.1 / _QUANTILES


def ranked(score: Column) -> Column:
    """The score as a number that orders all examples: where there is none (null), it is the lowest."""
    return F.coalesce(score.cast("double"), F.lit(-math.inf))


def histogram_of(held: DataFrame, score: Column, predicted: Column) -> Histogram:
    """Of examples with a `label` of 0 or 1: rows, positives and the sum of probabilities by score, ascending.

    Up to `_QUANTILES` distinct scores have a bin each. Where there are more (a time in seconds has one an example),
    the score of each quantile has one, and so have all between two neighbours: equal scores stay together, a score
    that many share stays alone, and only scores within about a ten-thousandth of the examples become ties. The AUC
    moves by less than that. Some twice `_QUANTILES` rows at most come to the driver.
    """
    scored = held.select(ranked(score).alias("score"), "label", predicted.alias("predicted"))
    rows = _rows(scored, F.col("score"), _QUANTILES + 1)
    if len(rows) > _QUANTILES:
        steps = np.linspace(0, 1, _QUANTILES + 1).tolist()
        quantiles = np.unique(scored.approxQuantile("score", steps, _RANK_ERROR))
        rows = _rows(scored, _bin(quantiles, F.col("score")), 2 * len(quantiles) + 1)
    return Histogram(*rows[np.argsort(rows[:, 0])].T)


def _rows(scored: DataFrame, bin_of: Column, most: int) -> Float:
    """(bins, 4): the lowest score, rows, positives and probabilities of each bin, in no order; `most` of them."""
    counted = scored.groupBy(bin_of.alias("bin")).agg(
        F.min("score"), F.count("*"), F.sum("label"), F.sum("predicted")
    )
    rows = counted.drop("bin").limit(most).toLocalIterator()
    return np.array([[float(value) for value in row] for row in rows]).reshape(-1, 4)


def _bin(quantiles: Float, score: Column) -> Column:
    """The number of a score's bin: odd at a quantile, even between two."""

    def number(scores: pd.Series) -> pd.Series:  # type: ignore[type-arg]
        values = scores.to_numpy()
        return pd.Series(np.searchsorted(quantiles, values) + np.searchsorted(quantiles, values, "right"))

    numbered: Column = pandas_udf(number, "bigint")(score)  # type: ignore[call-overload]
    return numbered
