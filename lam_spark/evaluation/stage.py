"""Stage `evaluate`: the registered model on the test period, beside the simple rule.

The held-out examples go through the same scoring job as everyone else. Histograms of some ten thousand bins
come to the driver, whatever the number of examples.
"""

from __future__ import annotations

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible
from lam_spark.errors import DataQualityError, ModelError
from lam_spark.evaluation.calibration import calibration_bins, expected_calibration_error
from lam_spark.evaluation.histogram import histogram_of, ranked
from lam_spark.evaluation.intervals import CustomerIntervals, customer_intervals
from lam_spark.evaluation.secondary_targets import other_questions
from lam_spark.labels.stage import TEST
from lam_spark.runtime.context import Run, StageResult, stage
from lam_spark.scoring.udf import champion, predict
from lam_spark.sequences.freshness import require_examples
from lam_spark.training_data.columns import answerable, collect_queries, cut_off, event_columns

# Intervals are drawn from at most so many examples: they narrow with the root of the number, and this many
# are narrow enough for any decision.
_MOST_RESAMPLED = 20_000


@stage
def run(run: Run) -> StageResult:
    """Publish `held_out_scores` (grain: a test example of a customer eligible for training) and measure.

    The other targets' examples go to `held_out_predictions`.

    Raises:
        DataQualityError: the test period has no example, or tables were made for other dates
            (`sequences.dates.require_examples`).
        ModelError: no fitting model, or one that has learned from the test period.
    """
    config = run.config
    model = champion(run, [config.scoring.target])
    if model.test_start > config.instant(config.split.test_start):
        raise ModelError(
            f"expected a model that has seen nothing from split.test_start = {config.split.test_start} on, the "
            f"registered one has learned from what happened before {model.test_start:%Y-%m-%d %H:%M} (UTC): run the "
            "stages 'snapshot' and 'train', or move the date back"
        )
    require_examples(run)
    target = config.scoring.target
    allowed = eligible(run, config.consent.training_purpose)
    every = (
        run.tables.read("examples").where(F.col("split") == TEST).join(allowed, "customer_key", "left_semi")
    )
    test = every.where(F.col("target") == target)
    sequences = run.tables.read("sequences")
    cut = run.keep(cut_off(sequences, model.layout))
    forgotten = answerable(test, cut, held=False).count()
    test = answerable(test, cut)
    rows = sequences.select("customer_key", *event_columns(model.layout)).join(
        collect_queries(test, model.layout), "customer_key"
    )
    if rows.isEmpty():
        raise DataQualityError(
            f"no example of {target!r} opens on or after {config.split.test_start} and matures before as_of "
            f"{config.as_of}: nothing to hold the model against"
        )
    facts = test.select("customer_key", "target", "query_id", "as_of", "label", "baseline_score")
    scored = (
        predict(run, rows, model)
        .join(facts, ["customer_key", "query_id"])
        .withColumn("model_digest", F.lit(model.digest))
    )
    written = run.tables.overwrite(scored, "held_out_scores")
    held = run.keep(run.tables.read("held_out_scores"))
    by_model = histogram_of(held, F.col("logit"), F.col("calibrated"))
    by_rule = histogram_of(held, F.col("baseline_score"), F.col("calibrated"))
    positives = int(by_model.positives.sum())
    calibration = calibration_bins(by_model)
    told = held.agg(
        F.avg(F.pow(F.col("calibrated") - F.col("label"), 2)),
        *(F.to_date(F.from_utc_timestamp(bound("as_of"), config.time_zone)) for bound in (F.min, F.max)),
    ).first()
    assert told is not None  # an aggregate without keys gives one row
    others = other_questions(run, model, answerable(every, cut).where(F.col("target") != target))
    base = positives / written
    intervals = _intervals(held)
    tenths, rule_tenths = by_model.deciles(), by_rule.deciles()
    return StageResult(
        says=(
            f"{written:,} held-out examples, {positives:,} positive: AUC {by_model.auc:.3f} "
            f"(rule {by_rule.auc:.3f}), lift of the first tenth {tenths[0]['lift']:.2f} "
            f"(rule {rule_tenths[0]['lift']:.2f})"
        ),
        counts={"examples": written, "positives": positives, "examples_before_kept_events": forgotten},
        facts={
            "digest": model.digest,
            "period": [str(told[1]), str(told[2])],
            "model": {
                "auc": by_model.auc,
                "interval": intervals.auc.model,
                "lift_interval": intervals.lift.model,
                "deciles": tenths,
            },
            "rule": {
                "auc": by_rule.auc,
                "interval": intervals.auc.baseline,
                "lift_interval": intervals.lift.baseline,
                "deciles": rule_tenths,
            },
            "lead": intervals.auc.difference,
            "lift_lead": intervals.lift.difference,
            "others": others,
            "calibration": {
                "bins": calibration,
                "brier": float(told[0]),
                "brier_of_base_rate": base * (1 - base),
                "expected_calibration_error": expected_calibration_error(calibration),
            },
        },
    )


def _intervals(held: DataFrame) -> CustomerIntervals:
    """Bootstrap intervals over a bounded sample of whole examples, chosen by the customers' hash."""
    sample = held.orderBy(F.xxhash64("customer_key"), "query_id").limit(_MOST_RESAMPLED)
    rows = list(
        sample.select("customer_key", "label", "logit", ranked(F.col("baseline_score"))).toLocalIterator()
    )
    customer, label, model, rule = (np.array(column) for column in zip(*rows, strict=True))
    return customer_intervals(customer, label.astype(float), model.astype(float), rule.astype(float))
