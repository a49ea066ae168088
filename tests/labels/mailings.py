"""Customers with one mailing each, and the expected label, baseline score and split of its example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from lam_spark.labels.stage import ExamplesResult, build_examples
from lam_spark.runtime.context import RunContext
from lam_spark.storage.dataframes import local_frame
from tests.support.shop import ONE_TARGET, context_builder
from tests.support.tables import event, publish

Row = dict[str, Any]
BOTH = ("opt_in", "opt_in")
# The last events of these cases are two to four weeks before as_of.
QUALITY = {"max_staleness_days": 31, "min_positives": 1}
VOCABULARY = "field STRING, value STRING, token_id INT, count_when_added BIGINT"


def mailed(
    customer: str,
    at: str,
    key: str = "",
    days: float | None = 14,
    campaign: str = "c",
    known_at: str | None = None,
) -> Row:
    """A mailing, which is a query."""
    fields = {"action": "propose", "offer_days": days, "campaign": campaign, "item": "books"}
    return event(customer, at, key or f"{customer} mailed", known_at, **fields)


def responded(customer: str, at: str, campaign: str = "c", known_at: str | None = None) -> Row:
    """A response to a mailing."""
    return event(customer, at, f"{customer} {at}", known_at, action="respond", campaign=campaign)


# Local midnights: 20 March (before summer time) plus 14 days is 3 April 00:00 in summer time, 22:00 UTC.
SPRING, SPRING_END = "2023-03-19T23:00:00", "2023-04-02T22:00:00"
AUTUMN, AUTUMN_END = "2023-10-19T22:00:00", "2023-11-02T23:00:00"
# Customer -> events; label (None: no example), baseline score and split of the one example.
CASES: dict[str, tuple[list[Row], float | None, float, str]] = {
    "last microsecond of spring": (
        [
            mailed("last microsecond of spring", SPRING),
            responded("last microsecond of spring", "2023-04-02T21:59:59.999999"),
        ],
        1.0,
        0.0,
        "train",
    ),
    "end of spring": (
        [mailed("end of spring", SPRING), responded("end of spring", SPRING_END)],
        0.0,
        0.0,
        "train",
    ),
    "last hour of autumn": (
        [mailed("last hour of autumn", AUTUMN), responded("last hour of autumn", "2023-11-02T22:30:00")],
        1.0,
        0.0,
        "test",
    ),
    "end of autumn": (
        [mailed("end of autumn", AUTUMN), responded("end of autumn", AUTUMN_END)],
        0.0,
        0.0,
        "test",
    ),
    "same instant": ([mailed("same instant", SPRING), responded("same instant", SPRING)], 0.0, 0.0, "train"),
    "just after": (
        [mailed("just after", SPRING), responded("just after", "2023-03-19T23:00:00.000001")],
        1.0,
        0.0,
        "train",
    ),
    "before and after": (
        [mailed("before and after", SPRING)]
        + [responded("before and after", at) for at in ("2023-02-01T00:00:00", "2023-03-19T22:59:59")]
        + [responded("before and after", "2023-03-25T00:00:00", "another")],
        0.0,
        2.0,
        "train",
    ),
    # The query is asked when the mailing is known: the first response is no outcome, and not known either.
    "known two days later": (
        [
            mailed("known two days later", SPRING, known_at="2023-03-21T23:00:00"),
            responded("known two days later", "2023-03-20T12:00:00", known_at="2023-03-21T23:00:00"),
        ],
        0.0,
        0.0,
        "train",
    ),
    "responded once it was known": (
        [
            mailed("responded once it was known", SPRING, known_at="2023-03-21T23:00:00"),
            responded("responded once it was known", "2023-03-20T12:00:00"),
            responded("responded once it was known", "2023-04-04T21:59:59", known_at="2023-12-01T00:00:00"),
        ],
        1.0,
        1.0,
        "train",
    ),
    "another campaign": (
        [
            mailed("another campaign", SPRING, campaign="d"),
            responded("another campaign", "2023-03-21T00:00:00"),
        ],
        0.0,
        0.0,
        "train",
    ),
    "two responses": (
        [mailed("two responses", SPRING)]
        + [responded("two responses", at) for at in ("2023-03-21T00:00:00", "2023-03-22T00:00:00")],
        1.0,
        0.0,
        "train",
    ),
    "before training": ([mailed("before training", "2023-01-31T22:59:59")], None, 0.0, "unused"),
    "first of training": ([mailed("first of training", "2023-01-31T23:00:00")], 0.0, 0.0, "train"),
    # Ends at the very start of validation (30 June 22:00 UTC), then one day later.
    "matured in training": ([mailed("matured in training", "2023-06-16T22:00:00")], 0.0, 0.0, "train"),
    "straddling": ([mailed("straddling", "2023-06-17T22:00:00")], 0.0, 0.0, "straddling"),
    "validation": ([mailed("validation", "2023-06-30T22:00:00")], 0.0, 0.0, "validation"),
    "positive in validation": (
        [
            mailed("positive in validation", "2023-07-15T22:00:00"),
            responded("positive in validation", "2023-07-16T22:00:00"),
        ],
        1.0,
        0.0,
        "validation",
    ),
    "ends in the test period": (
        [mailed("ends in the test period", "2023-09-20T22:00:00")],
        None,
        0.0,
        "unused",
    ),
    # Matures exactly at as_of (19 December 23:00 UTC), then a day after it.
    "just over": ([mailed("just over", "2023-12-05T23:00:00")], 0.0, 0.0, "test"),
    "not over": ([mailed("not over", "2023-12-06T23:00:00")], None, 0.0, "unused"),
    "no horizon": ([mailed("no horizon", SPRING, days=None)], None, 0.0, "unused"),
    "refused": ([mailed("refused", SPRING), responded("refused", "2023-03-21T00:00:00")], None, 0.0, "-"),
}
# Of a customer who refused, on the day before as_of: everything before is observed.
LAST = event("refused", "2023-12-19T12:00:00", "the last event before as_of", action="look")


@dataclass(frozen=True)
class Built:
    """The shop after the stage, with the examples of the target `response` by customer."""

    ctx: RunContext
    result: ExamplesResult
    rows: dict[str, Row]


def build_cases(spark: SparkSession, root: Path, *more: Row, **sections: Any) -> Built:
    """Run the stage over the cases and more events."""
    ctx = context_builder(spark, root)(**{"targets": ONE_TARGET, "quality": QUALITY} | sections)
    statuses = dict.fromkeys([*CASES, "another"], BOTH) | {"refused": ("opt_out", "opt_in")}
    publish(ctx, [row for rows, *_ in CASES.values() for row in rows] + list(more), statuses)
    vocabulary = [("item", "books", 3, 9), ("action", "propose", 3, 9), ("action", "respond", 4, 9)]
    ctx.tables.append(local_frame(spark, vocabulary, VOCABULARY), "vocabulary")
    result = build_examples(ctx)
    examples = [row.asDict() for row in ctx.tables.read("examples").where("target = 'response'").collect()]
    rows = {row["customer_key"]: row for row in examples if row["customer_key"] in CASES}
    assert len(rows) == sum(row["customer_key"] in CASES for row in examples), "a case has at most one query"
    return Built(ctx, result, rows)
