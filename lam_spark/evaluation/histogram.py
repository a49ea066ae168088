"""A ranking's histogram, counted by Spark."""

from __future__ import annotations

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.evaluation.ranking import Histogram


def histogram_of(held: DataFrame, score: Column, predicted: Column) -> Histogram:
    """Of examples with a `label` of 0 or 1: rows, positives and the sum of probabilities at each score, ascending.

    As many rows as there are distinct scores come to the driver: round them.
    """
    counted = (
        held.groupBy(score.alias("score"))
        .agg(F.count("*"), F.sum("label"), F.sum(predicted))
        .orderBy("score")
        .toLocalIterator()
    )
    columns = np.array([[float(value) for value in row] for row in counted]).T
    return Histogram(*columns)
