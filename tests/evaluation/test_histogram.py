"""The histogram of scores: exact enough for a ranking, and bounded in size for any scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sklearn.metrics import roc_auc_score

from lam_spark.evaluation import histogram
from lam_spark.evaluation.histogram import histogram_of, ranked
from lam_spark.evaluation.ranking import Histogram

Float = npt.NDArray[np.float64]
ROWS = 60_000


def histogram_from(spark: SparkSession, folder: Path, score: Float, label: Float) -> Histogram:
    """Count scores (NaN is a missing score), each with a predicted probability of 0.5."""
    table = pa.table({"score": pa.array(score, from_pandas=True), "label": label})
    pq.write_table(table, folder / "examples.parquet")
    return histogram_of(spark.read.parquet(str(folder / "examples.parquet")), F.col("score"), F.lit(0.5))


def draw_times(rng: np.random.Generator) -> tuple[Float, Float]:
    """Times in seconds: nearly unique per example."""
    seconds = rng.integers(1_700_000_000, 1_730_000_000, ROWS).astype(float)
    return seconds, rng.random(ROWS) < (seconds - 1.69e9) / 6e7


def draw_tiny(rng: np.random.Generator) -> tuple[Float, Float]:
    """All scores are below 1e-4."""
    score = rng.random(ROWS) * 1e-5
    return score, rng.random(ROWS) < score * 3e4


def draw_heavy_tailed(rng: np.random.Generator) -> tuple[Float, Float]:
    """Half of the scores are 0, many tie at whole numbers, the tail is heavy, and some scores are missing."""
    score = rng.pareto(0.7, ROWS) * 10
    score[rng.random(ROWS) < 0.3] = 7.5
    score[: ROWS // 4] = np.round(score[: ROWS // 4])
    score[rng.random(ROWS) < 0.5] = 0
    label = rng.random(ROWS) < 0.1 + 0.3 * (score > 3)
    score[rng.random(ROWS) < 0.05] = np.nan
    return score, label


def draw_rare_positives_above_a_tie(rng: np.random.Generator) -> tuple[Float, Float]:
    """The few positives score just above a value that most of the examples share."""
    score = np.where(rng.random(ROWS) < 0.6, 0, 1 + rng.random(ROWS))
    label = np.zeros(ROWS)
    score[:4], label[:4] = 1e-9 * np.arange(1, 5), 1
    return score, label


@pytest.mark.parametrize("draw", [draw_times, draw_tiny, draw_heavy_tailed, draw_rare_positives_above_a_tie])
def test_many_distinct_scores_keep_the_auc(
    spark: SparkSession,
    tmp_path: Path,
    draw: Callable[[np.random.Generator], tuple[Float, Float]],
) -> None:
    score, label = draw(np.random.default_rng(3))
    label = label.astype(float)
    result = histogram_from(spark, tmp_path, score, label)
    assert len(np.unique(score)) > histogram._QUANTILES
    assert 5_000 < len(result.score) <= 2 * histogram._QUANTILES + 1
    assert result.rows.sum() == ROWS
    assert result.positives.sum() == label.sum()
    assert result.predicted.sum() == ROWS / 2
    lowest = np.nan_to_num(score, nan=-1)
    assert result.auc == pytest.approx(roc_auc_score(label, lowest), abs=1e-4)


def test_few_distinct_scores_are_exact_and_a_missing_score_is_lowest(
    spark: SparkSession, tmp_path: Path
) -> None:
    score = np.array([-2e-5, np.nan, -1e-5, -1e-5, 3.0, np.nan])
    label = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    result = histogram_from(spark, tmp_path, score, label)
    expected: dict[str, list[Any]] = {
        "score": [-np.inf, -2e-5, -1e-5, 3.0],
        "rows": [2, 1, 2, 1],
        "positives": [1, 0, 1, 1],
        "predicted": [1, 0.5, 1, 0.5],
    }
    for name, values in expected.items():
        assert getattr(result, name).tolist() == values
    assert result.auc == roc_auc_score(label, np.nan_to_num(score, nan=-9))


def test_a_missing_score_becomes_the_lowest_number(spark: SparkSession) -> None:
    frame = spark.sql("SELECT * FROM VALUES (1.5D), (NULL), (-7D) AS scores(score)")
    assert [row[0] for row in frame.select(ranked(F.col("score"))).collect()] == [1.5, -np.inf, -7.0]
