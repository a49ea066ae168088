"""Baseline scores: which events a baseline uses, and its value without any."""

from __future__ import annotations

import datetime as dt

import pytest
from pyspark.sql import SparkSession

from tests.labels.mailings import LAST, build_cases, mailed, responded
from tests.support.shop import ONE_TARGET

MAX_EVENTS = 16
BASELINES = {
    "counted": "-count(*)",
    "latest": "-datediff(max(as_of), max(before.event_time))",
    "share": "100 / count(*)",  # a division by zero without events
    "lately": "count(*) FILTER (WHERE event_time >= as_of - INTERVAL 3 DAYS)",
}
# Forty responses in March and April, at noon, and mailings on some mornings.
DAYS = [dt.datetime(2023, 3, 1, 12) + dt.timedelta(days=number) for number in range(40)]
MORNINGS = range(0, 41, 4)

Scores = dict[tuple[str, str], float | None]


@pytest.fixture(scope="module")
def scores(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """(target, query) -> baseline score, where rows of `sequences` hold `MAX_EVENTS` events."""
    responses = [responded("another", day.isoformat(), "elsewhere") for day in DAYS]
    mornings = [
        mailed("another", (DAYS[0] + dt.timedelta(days=number, hours=-6)).isoformat(), f"after {number}")
        for number in MORNINGS
    ]
    targets = {name: ONE_TARGET["response"] | {"baseline": sql} for name, sql in BASELINES.items()}
    built = build_cases(
        spark,
        tmp_path_factory.mktemp("baselines") / "shop",
        *(responses + mornings),
        LAST,
        targets=ONE_TARGET | targets,
        sequences={"max_events": MAX_EVENTS},
        model={"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    )
    rows = built.ctx.tables.read("examples").collect()
    return {(row["target"], row["query_id"]): row["baseline_score"] for row in rows}


def of_query(scores: Scores, query_id: str) -> dict[str, float | None]:
    return {name: scores[name, query_id] for name in ("response", *BASELINES)}


def test_a_baseline_without_a_value_for_no_events_gives_no_score(scores: Scores) -> None:
    """With 0 instead, customers without events would be first in the order by `-datediff(...)`."""
    without_events = {"response": 0.0, "counted": 0.0, "latest": None, "share": None, "lately": 0.0}
    assert of_query(scores, "end of spring mailed") == without_events
    with_two = {"response": 2.0, "counted": -2.0, "latest": 0.0, "share": 50.0, "lately": 1.0}
    assert of_query(scores, "before and after mailed") == with_two


@pytest.mark.parametrize("before", MORNINGS)
def test_a_baseline_uses_the_latest_events_that_a_row_could_hold(scores: Scores, before: int) -> None:
    found = of_query(scores, f"after {before}")
    assert found.pop("response") == before  # a running count, without a limit
    if len(DAYS) - before > MAX_EVENTS:  # no row of `sequences` reaches back to this query
        assert found == {"counted": 0.0, "latest": None, "share": None, "lately": 0.0}
    else:
        used = min(before, MAX_EVENTS)
        assert found == {"counted": -used, "latest": -1.0, "share": 100 / used, "lately": 3.0}
