"""Labels of a channel that stopped: they mature only up to the day that it delivered completely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lam_spark.labels.stage import ExamplesResult, build_examples
from lam_spark.storage.time import micros
from tests.support.shop import context_builder, settings
from tests.support.tables import event, publish, utc

Row = dict[str, Any]
Build = Callable[..., tuple[ExamplesResult, list[Row]]]

CUSTOMERS = ("ann", "bob")
# The shop's export stops on 2 November, unnoticed; mail goes on to the day before as_of. Local days begin at 23:00 UTC.
DAYS = [f"2023-{month:02d}-{day:02d}" for month in range(8, 13) for day in range(1, 31, 2)]
STOPPED, STOPS_AT = "2023-11-02", "2023-11-01T23:00:00"
TARGET: Row = {
    "description": "buys again within 14 days",
    "population": "action = 'purchase'",
    "outcome_filter": "action = 'purchase'",
    "horizon_days": 14,
}
SPLIT = {"train_start": "2023-08-01", "validation_start": "2023-09-10", "test_start": "2023-10-10"}


def all_events() -> list[Row]:
    bought = [
        event(customer, f"{day}T12:00:00", f"{customer} bought {day}", action="purchase")
        for customer in CUSTOMERS
        for day in [*(day for day in DAYS if day < STOPPED), STOPPED]
    ]
    mailed = [
        event("ann", f"{day}T12:00:00", f"mailed {day}", action="propose")
        for day in DAYS
        if day < "2023-12-20"
    ]
    return bought + mailed


@pytest.fixture
def build(spark: SparkSession, tmp_path: Path) -> Build:
    """Runs the stage; returns its result and the examples."""

    def run(shop: Row | None = None, target: Row | None = None) -> tuple[ExamplesResult, list[Row]]:
        channels = settings(Path("shop"))["channels"]
        channels["shop"] |= shop or {}
        ctx = context_builder(spark, tmp_path / "shop")(
            channels=channels,
            targets={"response": TARGET | (target or {})},
            split=SPLIT,
            quality={"min_positives": 1},
        )
        publish(ctx, all_events(), dict.fromkeys(CUSTOMERS, ("opt_in", "opt_in")))
        ctx.tables.append(
            ctx.spark.sql("SELECT 'action' field, 'purchase' value, 3 token_id, 9L count_when_added"),
            "vocabulary",
        )
        result = build_examples(ctx)
        examples = ctx.tables.read("examples").selectExpr("*", "unix_micros(label_end) AS ends")
        return result, [row.asDict() for row in examples.collect()]

    return run


def test_labels_wait_for_a_channel_that_stopped(build: Build) -> None:
    result, examples = build()
    assert max(row["ends"] for row in examples) <= micros(utc(STOPS_AT))
    assert {row["label"] for row in examples} == {1.0}  # everybody went on buying while it was observed
    counts = result.targets["response"]
    assert (counts.outcome_channels, counts.complete_until) == (("shop",), "2023-11-01T23:00:00+00:00")
    assert counts.queries == len(examples) + sum(counts.unused.values())
    assert result.data_end == "2023-12-19T23:00:00+00:00"
    assert result.warnings[0] == (
        "channel shop: no event since 2023-11-02, silent for 47 days (usual: at most 7); what customers did there is "
        "unknown from 2023-11-01 23:00 (UTC) on; labels that need it wait: response"
    )


@pytest.mark.parametrize(
    ("shop", "target"),
    [
        ({"max_silence_days": None}, {}),
        ({"max_silence_days": 47}, {}),
        ({}, {"outcome_channels": ["mailing"]}),
    ],
)
def test_an_allowed_silence_is_an_answer(build: Build, shop: Row, target: Row) -> None:
    result, examples = build(shop, target)
    silent = [row for row in examples if row["label"] == 0.0]
    assert {row["customer_key"] for row in silent} == set(CUSTOMERS)
    assert result.targets["response"].complete_until == result.data_end
