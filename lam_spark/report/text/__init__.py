"""Numbers as text, and the sentences of the report that are generated from numbers.

A sentence states what the numbers show, including that the baseline is better or that a difference may be chance.
"""

from lam_spark.report.text.comparison import Comparison, auc_text, compare_with_baseline
from lam_spark.report.text.counts import (
    Reconciliation,
    expected_successes,
    later_links_sentence,
    list_sentence,
    reconcile,
    starts_scale,
)
from lam_spark.report.text.evaluation import (
    calibration_sentence,
    gains_sentence,
    lift_sentence,
    top_decile,
)
from lam_spark.report.text.numbers import (
    MINUS,
    MISSING,
    count,
    counted,
    day,
    duration,
    gib,
    is_number,
    percent,
    ratio,
    signed,
    three_decimals,
    timestamp,
    unit,
)

__all__ = [
    "MINUS",
    "MISSING",
    "Comparison",
    "Reconciliation",
    "auc_text",
    "calibration_sentence",
    "compare_with_baseline",
    "count",
    "counted",
    "day",
    "duration",
    "expected_successes",
    "gains_sentence",
    "gib",
    "is_number",
    "later_links_sentence",
    "lift_sentence",
    "list_sentence",
    "percent",
    "ratio",
    "reconcile",
    "signed",
    "starts_scale",
    "three_decimals",
    "timestamp",
    "top_decile",
    "unit",
]
