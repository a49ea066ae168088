"""Stage `evaluate`: the registered model and the baseline on the test period.

Test examples go through the same scoring job as all customers. Histograms of about ten thousand bins come to the
driver, whatever the number of examples.
"""

from __future__ import annotations

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible_customers
from lam_spark.errors import ModelError
from lam_spark.evaluation.calibration import calibration_bins, expected_calibration_error
from lam_spark.evaluation.histogram import histogram_of, ranked
from lam_spark.evaluation.intervals import CustomerIntervals, customer_intervals
from lam_spark.evaluation.ranking import Histogram
from lam_spark.evaluation.results import (
    TAG_PREFIX,
    CalibrationBin,
    CalibrationMetrics,
    Decile,
    EvaluateResult,
    Interval,
    MeasuredRankings,
    RankingMetrics,
)
from lam_spark.evaluation.secondary_targets import evaluate_secondary_targets
from lam_spark.labels.freshness import require_examples
from lam_spark.labels.splits import TEST, too_few
from lam_spark.runtime.context import RunContext, stage
from lam_spark.scoring.udf import load_registered_model, predict_probabilities
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.wall_clock import local_day
from lam_spark.training.registry import tag_model_version
from lam_spark.training_data.columns import (
    collect_queries,
    event_columns,
    truncated_rows,
    with_complete_history,
)

_NO_TEST_PERIOD = (
    "not evaluated: split.test_start is none, the model has learned from everything before as_of"
)
# Intervals narrow with the square root of the number of examples: these are enough for any decision.
_MAX_RESAMPLED = 20_000


@stage
def evaluate(ctx: RunContext) -> EvaluateResult:
    """Publish `held_out_scores` (grain: a test example of a customer eligible for training) and measure.

    Examples of other targets go to `held_out_predictions`. The numbers of all targets become tags of the model version.
    A target with too few test examples (`quality.min_positives`) is predicted and not measured. Without a test period
    (`split.test_start: none`) nothing is published.

    Raises:
        DataQualityError: Tables were made for another configuration or other dates (`labels.freshness`).
        ModelError: No model fits, the registered one was trained on a part of the test period, or MLflow refuses the
            tags.
    """
    config, tables = ctx.config, ctx.tables
    target, least = config.scoring.target, config.quality.min_positives
    model = load_registered_model(tables, config, [target])
    if not config.split.has_test:
        nothing = EvaluateResult(target, 0, 0, 0, model.digest, None, None, _NO_TEST_PERIOD, {})
        tag_model_version(config, model.version, nothing.tags, prefix=TAG_PREFIX)
        return nothing
    checked = require_examples(tables, ctx.cache, config, ctx.started_at)
    test_start = config.instant(checked.periods.test_start)
    if model.test_start > test_start:
        raise ModelError(
            f"expected a model that has seen nothing from {checked.periods.test_start} on, the start of the test "
            f"period; the registered one was trained on what happened before {model.test_start:%Y-%m-%d %H:%M} (UTC): "
            "run the stages 'snapshot' and 'train', or 'examples' for the as_of of the model or a later one"
        )
    purpose = config.consent.training_purpose
    allowed = eligible_customers(tables, ctx.cache, purpose, ctx.started_at)
    examples = tables.read("examples").where(F.col("split") == TEST)
    examples = examples.join(allowed, "customer_key", "left_semi")
    sequences = tables.read("sequences")
    truncated = ctx.cache(truncated_rows(sequences, model.layout))
    scored_examples = examples.where(F.col("target") == target)
    left_out = with_complete_history(scored_examples, truncated, complete=False).count()
    test = with_complete_history(scored_examples, truncated)
    rows = sequences.select("customer_key", *event_columns(model.layout)).join(
        collect_queries(test, model.layout), "customer_key"
    )
    labels = test.select("customer_key", "target", "query_id", "as_of", "label", "baseline_score")
    scored = predict_probabilities(rows, model, target).join(labels, ["customer_key", "query_id"])
    written = tables.overwrite(scored.withColumn("model_digest", F.lit(model.digest)), "held_out_scores")
    published = ctx.cache(tables.read("held_out_scores"))
    secondary_examples = with_complete_history(examples, truncated).where(F.col("target") != target)
    secondary_targets = evaluate_secondary_targets(tables, model, secondary_examples, target, least)
    positives = published.where("label > 0").count()
    why = too_few("binary", written, positives, least)
    result = EvaluateResult(
        target=target,
        examples=written,
        positives=positives,
        truncated=left_out,
        model_digest=model.digest,
        period=_period(published, config.time_zone),
        rankings=None if why else _rankings(published),
        not_measured=why,
        secondary_targets=secondary_targets,
    )
    tag_model_version(config, model.version, result.tags, prefix=TAG_PREFIX)
    return result


def _rankings(published: DataFrame) -> MeasuredRankings:
    """Measure the model and the baseline on `held_out_scores`."""
    by_model = histogram_of(published, F.col("logit"), F.col("probability"))
    by_baseline = histogram_of(published, F.col("baseline_score"), F.col("probability"))
    intervals = _intervals(published)
    return MeasuredRankings(
        model=_ranking_metrics(by_model, intervals.auc.model, intervals.lift.model),
        baseline=_ranking_metrics(by_baseline, intervals.auc.baseline, intervals.lift.baseline),
        auc_difference=intervals.auc.difference,
        lift_difference=intervals.lift.difference,
        calibration=_calibration_metrics(published, by_model),
    )


def _period(scores: DataFrame, time_zone: str) -> tuple[str, str] | None:
    """First and last local day of the queries (ISO 8601); None without any."""
    days = (local_day(bound("as_of"), time_zone) for bound in (F.min, F.max))
    first, last = one_row(scores.agg(*days))
    return None if first is None else (str(first), str(last))


def _ranking_metrics(histogram: Histogram, auc: Interval, lift: Interval) -> RankingMetrics:
    deciles = tuple(
        Decile(
            decile=int(values["decile"]),
            **{name: value for name, value in values.items() if name != "decile"},
        )
        for values in histogram.deciles()
    )
    return RankingMetrics(histogram.auc, auc, lift, deciles)


def _calibration_metrics(scores: DataFrame, histogram: Histogram) -> CalibrationMetrics:
    bins = calibration_bins(histogram)
    brier = one_row(scores.agg(F.avg(F.pow(F.col("probability") - F.col("label"), 2))))[0]
    base_rate = int(histogram.positives.sum()) / float(histogram.rows.sum())
    return CalibrationMetrics(
        bins=tuple(CalibrationBin(**values) for values in bins),
        brier=float(brier),
        brier_of_base_rate=base_rate * (1 - base_rate),
        expected_calibration_error=expected_calibration_error(bins),
    )


def _intervals(scores: DataFrame) -> CustomerIntervals:
    """Bootstrap intervals over a bounded sample of examples, chosen by a hash of the customer."""
    sample = scores.orderBy(F.xxhash64("customer_key"), "query_id").limit(_MAX_RESAMPLED)
    rows = list(
        sample.select("customer_key", "label", "logit", ranked(F.col("baseline_score"))).toLocalIterator()
    )
    customer, label, model, baseline = (np.array(column) for column in zip(*rows, strict=True))
    return customer_intervals(customer, label.astype(float), model.astype(float), baseline.astype(float))
