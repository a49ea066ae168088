"""The targets that are not scored, on the test period: how well the same model answers them.

Histograms and sums come to the driver: some ten thousand rows a target, whatever the number of examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.evaluation.calibration import calibration_bins
from lam_spark.evaluation.histogram import histogram_of
from lam_spark.model.metrics import auc
from lam_spark.runtime.context import Run
from lam_spark.scoring.udf import Champion, answer
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training_data.columns import collect_queries, event_columns
from lam_spark.training_data.layout import Target

_COMMONEST = 20
_LOGIT_DECIMALS = 2


def other_questions(run: Run, model: Champion, examples: DataFrame) -> dict[str, dict[str, Any]]:
    """Publish `held_out_predictions` and measure each target that has held-out examples.

    Grain: a test example. Columns: `customer_key, target, query_id, as_of, label, label_ids, baseline_score`, and `answer`:
    of `binary` the probability, of `value` mean (calibrated) and median amount, of `next` a probability a value.

    Args:
        run: of the stage.
        model: who answers.
        examples: of the test period, of all targets but the scored one; columns of the table of that name.

    Returns:
        target -> `kind, examples` and what it is measured by, of the model and of the simple rule.
    """
    asked = [target for target in model.layout.targets if target.name != run.config.scoring.target]
    told = ["customer_key", "target", "query_id", "as_of", "label", "label_ids", "baseline_score"]
    sequences = run.tables.read("sequences").select("customer_key", *event_columns(model.layout))
    every: DataFrame | None = None
    for target in asked:
        own = examples.where(F.col("target") == target.name)
        rows = sequences.join(collect_queries(own, model.layout), "customer_key")
        part = (
            answer(run, rows, model, target.name)
            .join(own.select(*told), ["customer_key", "query_id"])
            .select(*told, _calibrated(target, model).alias("answer"))
        )
        every = part if every is None else every.unionByName(part)
    if every is None:
        return {}
    run.tables.overwrite(every.withColumn("model_digest", F.lit(model.digest)), "held_out_predictions")
    held = run.tables.read("held_out_predictions")
    measured = {}
    for target in asked:
        own = held.where(F.col("target") == target.name)
        count = own.count()
        if count:
            measured[target.name] = {"kind": target.kind, "examples": count, **_measures(target, own)}
    return measured


def _calibrated(target: Target, model: Champion) -> Any:
    by = model.calibration[target.name]
    if target.kind == "value":
        return F.array(F.col("answer")[0] * by.slope, F.col("answer")[1])
    return F.transform("answer", lambda logit: 1 / (1 + F.exp(-(logit * by.slope + by.intercept))))


def _measures(target: Target, held: DataFrame) -> dict[str, Any]:
    if target.kind == "value":
        return _of_amounts(held)
    if target.kind == "next":
        return _of_values(target, held)
    by_model = histogram_of(held, F.col("answer")[0], F.col("answer")[0])
    by_rule = histogram_of(held, F.col("baseline_score"), F.col("answer")[0])
    return {
        "positives": int(by_model.positives.sum()),
        "auc": by_model.auc,
        "baseline_auc": by_rule.auc,
        "calibration": calibration_bins(by_model),
    }


def _of_amounts(held: DataFrame) -> dict[str, Any]:
    mean, median = F.col("answer")[0], F.col("answer")[1]
    by_rule = F.coalesce("baseline_score", F.lit(0.0))  # where the rule says nothing, nothing is expected
    usual = held.agg(F.percentile_approx("label", 0.5)).first()
    assert usual is not None  # an aggregate without keys gives one row
    row = held.agg(
        F.avg("label"),
        F.avg(mean),
        F.avg(F.abs(F.col("label") - median)),
        F.avg(F.abs(F.col("label") - by_rule)),
        F.avg(F.abs(F.col("label") - F.lit(usual[0]))),
    ).first()
    assert row is not None
    names = ("mean", "mean_predicted", "mean_absolute_error", "baseline_mean_absolute_error")
    return dict(zip((*names, "constant_mean_absolute_error"), (float(value) for value in row), strict=True))


def _of_values(target: Target, held: DataFrame) -> dict[str, Any]:
    """Macro AUC over the values that followed most often, from a histogram a value."""
    shares = F.posexplode("answer").alias("position", "share")
    pairs = held.select("label_ids", shares).select(
        (F.col("position") + FIRST_VALUE).alias("token_id"),
        _logit(F.col("share")).alias("score"),
        F.array_contains("label_ids", F.col("position") + FIRST_VALUE).cast("double").alias("happened"),
    )
    often = pairs.groupBy("token_id").agg(F.sum("happened").alias("times"))
    common = often.orderBy(F.desc("times"), "token_id").limit(_COMMONEST)
    counted = (
        pairs.join(F.broadcast(common), "token_id")
        .groupBy("token_id", "score")
        .agg(F.count("*").alias("rows"), F.sum("happened").alias("positives"))
    )
    rows = np.array([[float(value) for value in row] for row in counted.toLocalIterator()])
    areas = []
    for token in np.unique(rows[:, 0]):
        _, score, count, positives = rows[rows[:, 0] == token].T
        labels = np.repeat([1.0, 0.0], len(score))
        areas.append(auc(np.tile(score, 2), labels, np.concatenate([positives, count - positives])))
    return {"values": len(areas), "macro_auc": float(np.nanmean(areas))}


def _logit(share: Any) -> Any:
    bounded = F.least(F.greatest(share, F.lit(1e-9)), F.lit(1 - 1e-9))
    return F.round(F.log(bounded / (1 - bounded)), _LOGIT_DECIMALS)
