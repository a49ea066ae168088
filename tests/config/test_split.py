"""Dates of the periods: absolute, relative to `as_of`, without a test period, and long enough for the horizons."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from lam_spark.config import Periods, SplitConfig
from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError
from lam_spark.runtime.runner import run_stages

CONF = Path(__file__).parents[2] / "conf" / "purchase_log.yaml"  # as_of 2024-12-30, a horizon of 28 days
AS_OF = dt.date(2024, 12, 30)


def split(train: str, validation: str, test: str) -> SplitConfig:
    return SplitConfig.model_validate(
        {"train_start": train, "validation_start": validation, "test_start": test}
    )


def overrides(train: str, validation: str, test: str) -> tuple[str, ...]:
    return (f"split.train_start={train}", f"split.validation_start={validation}", f"split.test_start={test}")


def test_relative_dates_are_days_before_as_of() -> None:
    relative = split("-270d", "-150d", "-90d")
    days = (dt.date(2024, 4, 4), dt.date(2024, 8, 2), dt.date(2024, 10, 1))
    assert relative.resolve(AS_OF) == Periods(*days)
    assert relative.resolve(AS_OF + dt.timedelta(days=1)).test_start == dt.date(2024, 10, 2)
    assert Periods.from_metadata(Periods(*days).to_metadata()) == Periods(*days)


def test_without_a_test_period_everything_before_as_of_is_learned_from() -> None:
    final = split("2024-04-01", "2024-10-01", "none")
    assert not final.has_test
    assert final.resolve(AS_OF).test_start == AS_OF
    assert load_config(CONF, overrides=["split.test_start=none"]).split.has_test is False


@pytest.mark.parametrize("start", ["90d", "-0d", "'2024-13-01'", "yesterday", "none", "null", "-1.5d"])
def test_a_start_is_a_date_or_days_before_as_of(start: str) -> None:
    with pytest.raises(ConfigError, match=r"split\.train_start: expected a date such as 2024-10-01, or days"):
        load_config(CONF, overrides=[f"split.train_start={start}"])


def test_a_date_that_does_not_exist_is_no_yaml_value() -> None:
    with pytest.raises(ConfigError, match=r"--set split\.train_start: '2024-13-01' is not a YAML value"):
        load_config(CONF, overrides=["split.train_start=2024-13-01"])


@pytest.mark.parametrize(
    ("dates", "period"),
    [
        (("2024-07-10", "2024-08-01", "2024-10-01"), "training period has 22 days"),
        (("2024-04-01", "2024-09-15", "2024-10-01"), "validation period has 16 days"),
        (("2024-04-01", "2024-08-01", "2024-12-10"), "test period has 20 days"),
        (("2024-04-01", "2024-08-01", "2025-02-01"), "test period has 0 days"),
        (("-200d", "-100d", "-27d"), "test period has 27 days"),
        (("2024-04-01", "2024-12-10", "none"), "validation period has 20 days"),
    ],
)
def test_a_period_shorter_than_a_horizon_is_refused_when_the_file_is_read(
    dates: tuple[str, str, str], period: str
) -> None:
    message = (
        rf"split: the {period}, fewer than targets\.buys_again\.horizon_days = 28, so .* Move the dates of"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(CONF, overrides=overrides(*dates))


def test_a_period_of_just_the_horizon_is_accepted() -> None:
    config = load_config(CONF, overrides=overrides("2024-10-07", "2024-11-04", "2024-12-02"))
    assert (AS_OF - config.periods.test_start).days == 28


def test_an_earlier_as_of_is_refused_only_where_examples_are_made(secret: str) -> None:
    """Scores and embeddings of a day before the test period are possible with the present model."""
    config = load_config(CONF, as_of="2024-10-05")
    with pytest.raises(ConfigError, match="the test period has 4 days"):
        run_stages(config, ["ingest", "examples"])


def test_each_period_begins_with_a_day_of_regular_queries() -> None:
    """Also if the step is longer than the period."""
    periods = Periods(dt.date(2024, 4, 1), dt.date(2024, 8, 1), dt.date(2024, 10, 1))
    days = periods.regular_days(91, AS_OF)
    assert [f"{day:%m-%d}" for day in days] == ["04-01", "07-01", "08-01", "10-01"]
    assert [f"{day:%m-%d}" for day in periods.regular_days(28, dt.date(2024, 8, 29))] == [
        *("04-01", "04-29", "05-27", "06-24", "07-22"),
        "08-01",
    ]
    assert periods.regular_days(28, dt.date(2024, 4, 1)) == []
