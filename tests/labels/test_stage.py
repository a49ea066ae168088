"""Examples: labels end exactly at the horizon, histories before the query, and splits do not leak."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.labels.splits import SplitCounts
from lam_spark.labels.stage import ExamplesResult, build_examples
from lam_spark.runtime.context import RunContext
from tests.labels.mailings import (
    AUTUMN,
    CASES,
    LAST,
    QUALITY,
    SPRING,
    Built,
    Row,
    build_cases,
    mailed,
)
from tests.support.shop import ONE_TARGET, context_builder, settings
from tests.support.tables import event


@pytest.fixture(scope="module")
def built(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_cases(spark, tmp_path_factory.mktemp("examples") / "shop", LAST)


@pytest.mark.parametrize("case", CASES)
def test_label_baseline_score_and_split(built: Built, case: str) -> None:
    _, label, score, split = CASES[case]
    row = built.rows.get(case)
    if label is None:
        assert row is None
        return
    assert row is not None
    assert (row["label"], row["baseline_score"], row["split"]) == (label, score, split)


def test_the_counts_are_those_of_the_table(built: Built) -> None:
    rows = list(built.rows.values())
    result = built.result
    for split in ("train", "validation", "straddling", "test"):
        labels = [row["label"] for row in rows if row["split"] == split]
        assert result.targets["response"].used[split] == SplitCounts(len(labels), sum(labels))
        assert result.counts[f"response.{split}"] == len(labels) > 0
        assert result.counts[f"response.{split}.positives"] == sum(labels)
    assert result.counts["examples"] == result.examples == len(rows)
    unused = {"before_training": 1, "no_horizon": 1, "not_over": 1, "into_test": 1}
    assert result.targets["response"].unused == unused
    assert {reason: result.counts[f"response.unused.{reason}"] for reason in unused} == unused
    assert result.counts["response.queries"] == len(rows) + 4 == len(CASES) - 1  # "refused" has no query
    sizes = {split: found.examples for split, found in result.targets["response"].used.items()}
    assert result.message == (
        f"response: {len(rows) + 4} queries = {sizes['train']} train, {sizes['straddling']} straddling, "
        f"{sizes['validation']} validation, {sizes['test']} test, 4 not used"
    )
    assert result.data_end == "2023-12-19T23:00:00+00:00"
    assert ExamplesResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("last", "is_observed"),
    [
        # Local days end at 23:00 UTC. The example "just over" matures at the end of 19 December.
        ("2023-12-18T22:59:59", False),
        ("2023-12-18T23:00:00", True),
        ("2023-12-19T23:00:00", False),  # at as_of, so not visible; the last visible event is of 7 December
    ],
)
def test_a_horizon_whose_last_days_were_not_ingested_is_not_over(
    spark: SparkSession, tmp_path: Path, built: Built, last: str, is_observed: bool
) -> None:
    last_event = event("refused", last, "the last event", action="look")
    rows = build_cases(spark, tmp_path / "shop", last_event).rows
    assert rows.keys() ^ built.rows.keys() == (set() if is_observed else {"just over"})


def test_the_query_is_encoded_and_its_reference_field_is_copied(built: Built) -> None:
    row = built.rows["end of spring"]
    assert (row["action"], row["item"], row["touchpoint"]) == (3, 3, 2)
    assert row["offer_days"] == 14.0
    assert row["amount"] is None
    assert row["campaign"] == "c"
    assert row["query_hour_of_week"] == 24  # Monday, local midnight
    assert row["query_time"] == 1_679_266_800_000_000


def with_label(ctx: RunContext, label: str) -> Row:
    """Sections of the configuration in which the target has another label."""
    target = settings(ctx.config.workspace)["targets"]["response"] | {"label": label}
    return {"targets": {"response": target}, "quality": QUALITY}


def test_a_population_that_matches_nothing_is_refused_and_the_last_examples_stay(
    spark: SparkSession, built: Built
) -> None:
    version = built.ctx.tables.version("examples")
    target = ONE_TARGET["response"] | {"population": "action = 'prropose'"}
    ctx = context_builder(spark, built.ctx.config.workspace)(targets={"response": target}, quality=QUALITY)
    message = (
        "targets.response.population: no event of a customer eligible for training matches \"action = 'prropose'\", so "
        "the target has no query."
    )
    with pytest.raises(DataQualityError, match=f"^{re.escape(message)}"):
        build_examples(ctx)
    assert ctx.tables.version("examples") == version


def test_periods_with_too_few_queries_of_a_class_are_named(spark: SparkSession, tmp_path: Path) -> None:
    result = build_cases(spark, tmp_path / "shop", LAST, quality=QUALITY | {"min_positives": 2}).result
    counts = result.targets["response"]
    found = {period: counts.used[period].positives for period in counts.too_few}
    assert found == {"validation": 1, "test": 1}
    queries = counts.used["validation"].examples
    few = f"too few to judge: 1 (1 positive of {queries} queries; quality.min_positives is 2)"
    assert result.warnings[0] == f"response, validation period: {few}"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("outcome.campain = query.campaign", r"targets\.response: .*campain"),
        ("outcome.", r"targets\.response: "),
    ],
)
def test_a_predicate_that_does_not_run_is_a_configuration_error(
    spark: SparkSession, built: Built, label: str, message: str
) -> None:
    version = built.ctx.tables.version("examples")
    with pytest.raises(ConfigError, match=message):
        build_examples(context_builder(spark, built.ctx.config.workspace)(**with_label(built.ctx, label)))
    assert built.ctx.tables.version("examples") == version


def test_a_horizon_that_is_not_whole_days_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    """Cut to whole days, the horizon would be shorter than configured, or empty."""
    message = (
        "targets.response.horizon_days: expected a whole number of days from 1, or null where a query has no horizon; "
        "'query.offer_days' gives 2 queries another number. Round it, or exclude these queries from the population"
    )
    invalid = [mailed("another", at, at, days) for at, days in ((SPRING, 1.5), (AUTUMN, 0.0))]
    with pytest.raises(DataQualityError, match=f"^{re.escape(message)}$"):
        build_cases(spark, tmp_path / "shop", *invalid, LAST)


def test_an_as_of_long_after_the_last_event_is_refused(spark: SparkSession, built: Built) -> None:
    """All horizons would seem to be over, without any response."""
    version = built.ctx.tables.version("examples")
    ctx = context_builder(spark, built.ctx.config.workspace)(
        targets=ONE_TARGET, quality=QUALITY, as_of="2024-06-01"
    )
    message = (
        "as_of 2024-06-01 is outside the data: events run from 2023-01-31 to 2023-12-19 (UTC), and as_of may be at "
        "most quality.max_staleness_days = 31 days after the last"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_examples(ctx)
    assert ctx.tables.version("examples") == version


def test_examples_need_events(make_context: Callable[..., RunContext]) -> None:
    with pytest.raises(ConfigError, match="run the stage 'consent' first"):
        build_examples(make_context())
