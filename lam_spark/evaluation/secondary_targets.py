"""Targets that are not scored, on the test period: how well the same model predicts them.

Histograms and sums come to the driver: about ten thousand rows per target, whatever the number of examples.
"""

from __future__ import annotations

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.evaluation.calibration import calibration_bins
from lam_spark.evaluation.histogram import histogram_of
from lam_spark.evaluation.results import CalibrationBin, SecondaryTargetMetrics
from lam_spark.labels.splits import too_few
from lam_spark.model.metrics import auc
from lam_spark.scoring.udf import RegisteredModel, predict
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.storage.dataframes import one_row, union_all
from lam_spark.storage.tables.store import Tables
from lam_spark.training_data.columns import collect_queries, event_columns
from lam_spark.training_data.layout import Target

_MOST_FREQUENT = 20
_LOGIT_DECIMALS = 2


def evaluate_secondary_targets(
    tables: Tables, model: RegisteredModel, examples: DataFrame, scored_target: str, least: int
) -> dict[str, SecondaryTargetMetrics]:
    """Publish `held_out_predictions` and measure each target that has enough test examples.

    Args:
        tables: Tables of the workspace.
        model: The registered model.
        examples: Test examples of all targets but the scored one; columns of the table `examples`.
        scored_target: Name of the scored target.
        least: `quality.min_positives`.

    Returns:
        Target -> metrics of the model and of the baseline.
    """
    targets = [target for target in model.layout.targets if target.name != scored_target]
    if not targets:
        return {}
    columns = ["customer_key", "target", "query_id", "as_of", "label", "label_ids", "baseline_score"]
    sequences = tables.read("sequences").select("customer_key", *event_columns(model.layout))
    parts = []
    for target in targets:
        target_examples = examples.where(F.col("target") == target.name)
        rows = sequences.join(collect_queries(target_examples, model.layout), "customer_key")
        labels = target_examples.select(*columns)
        predicted = predict(rows, model, target.name).join(labels, ["customer_key", "query_id"])
        parts.append(predicted.select(*columns, _calibrated(target, model).alias("prediction")))
    predictions = union_all(parts).withColumn("model_digest", F.lit(model.digest))
    tables.overwrite(predictions, "held_out_predictions")
    published = tables.read("held_out_predictions")
    return {
        target.name: _measure(target, published.where(F.col("target") == target.name), least)
        for target in targets
    }


def _calibrated(target: Target, model: RegisteredModel) -> Column:
    calibration = model.calibration[target.name]
    if target.kind == "value":
        return F.array(F.col("prediction")[0] * calibration.slope, F.col("prediction")[1])
    return F.transform(
        "prediction", lambda logit: 1 / (1 + F.exp(-(logit * calibration.slope + calibration.intercept)))
    )


def _measure(target: Target, predictions: DataFrame, least: int) -> SecondaryTargetMetrics:
    is_positive = (F.col("label") > 0) | (F.size("label_ids") > 0)
    examples, positives = one_row(predictions.agg(F.count("*"), F.count_if(is_positive)))
    why = too_few(target.kind, examples, positives, least)
    if why:
        return SecondaryTargetMetrics(target.kind, examples, {}, not_measured=why)
    if target.kind == "value":
        return SecondaryTargetMetrics(target.kind, examples, _measure_amounts(predictions))
    if target.kind == "next":
        return SecondaryTargetMetrics(target.kind, examples, _measure_values(predictions))
    probability = F.col("prediction")[0]
    by_model = histogram_of(predictions, probability, probability)
    by_baseline = histogram_of(predictions, F.col("baseline_score"), probability)
    metrics = {
        "positives": float(by_model.positives.sum()),
        "auc": by_model.auc,
        "baseline_auc": by_baseline.auc,
    }
    bins = tuple(CalibrationBin(**values) for values in calibration_bins(by_model))
    return SecondaryTargetMetrics(target.kind, examples, metrics, bins)


def _measure_amounts(predictions: DataFrame) -> dict[str, float]:
    mean, median = F.col("prediction")[0], F.col("prediction")[1]
    by_baseline = F.coalesce(
        "baseline_score", F.lit(0.0)
    )  # where the baseline has no score, it expects nothing
    constant = one_row(predictions.agg(F.percentile_approx("label", 0.5)))[0]
    row = one_row(
        predictions.agg(
            F.avg("label"),
            F.avg(mean),
            F.avg(F.abs(F.col("label") - median)),
            F.avg(F.abs(F.col("label") - by_baseline)),
            F.avg(F.abs(F.col("label") - F.lit(constant))),
        )
    )
    names = (
        "mean",
        "mean_predicted",
        "mean_absolute_error",
        "baseline_mean_absolute_error",
        "constant_mean_absolute_error",
    )
    return dict(zip(names, (float(value) for value in row), strict=True))


def _measure_values(predictions: DataFrame) -> dict[str, float]:
    """Macro AUC over the values that followed most often, from one histogram per value."""
    probabilities = F.posexplode("prediction").alias("_position", "_probability")
    pairs = predictions.select("label_ids", probabilities).select(
        (F.col("_position") + FIRST_VALUE).alias("_token_id"),
        _rounded_logit(F.col("_probability")).alias("_score"),
        F.array_contains("label_ids", F.col("_position") + FIRST_VALUE).cast("double").alias("_happened"),
    )
    frequencies = pairs.groupBy("_token_id").agg(F.sum("_happened").alias("_frequency"))
    frequent = frequencies.orderBy(F.desc("_frequency"), "_token_id").limit(_MOST_FREQUENT)
    counted = (
        pairs.join(F.broadcast(frequent), "_token_id")
        .groupBy("_token_id", "_score")
        .agg(F.count("*").alias("_rows"), F.sum("_happened").alias("_positives"))
    )
    rows = np.array([[float(value) for value in row] for row in counted.toLocalIterator()])
    areas = []
    for token in np.unique(rows[:, 0]):
        _, score, count, positives = rows[rows[:, 0] == token].T
        labels = np.repeat([1.0, 0.0], len(score))
        areas.append(auc(np.tile(score, 2), labels, np.concatenate([positives, count - positives])))
    return {"values": float(len(areas)), "macro_auc": float(np.nanmean(areas))}


def _rounded_logit(probability: Column) -> Column:
    bounded = F.least(F.greatest(probability, F.lit(1e-9)), F.lit(1 - 1e-9))
    return F.round(F.log(bounded / (1 - bounded)), _LOGIT_DECIMALS)
