"""Section `split`: the periods of training, validation and test."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from lam_spark.config.base import Section

NO_TEST = "none"


def _as_start(value: Any) -> dt.date | str:
    """Parse a date, or a number of days before `as_of` such as `-90d`.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    if isinstance(value, str):
        if re.fullmatch(r"-[1-9]\d{0,4}d", value):
            return value
        try:
            return dt.date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("expected a date such as 2024-10-01, or days before as_of such as -90d")


def _as_test_start(value: Any) -> dt.date | str:
    return NO_TEST if value == NO_TEST else _as_start(value)


Start = Annotated[dt.date | str, BeforeValidator(_as_start)]
TestStart = Annotated[dt.date | str, BeforeValidator(_as_test_start)]


@dataclass(frozen=True)
class Periods:
    """First local days of the periods, resolved for one `as_of`.

    Without a test period `test_start` is that `as_of`: all that matured before it is learned from.
    """

    train_start: dt.date
    validation_start: dt.date
    test_start: dt.date

    def to_metadata(self) -> dict[str, str]:
        """JSON values: name -> ISO 8601 date."""
        return {name: day.isoformat() for name, day in asdict(self).items()}

    @classmethod
    def from_metadata(cls, values: Mapping[str, str]) -> Self:
        """Inverse of `to_metadata`."""
        return cls(**{name: dt.date.fromisoformat(day) for name, day in values.items()})

    def regular_days(self, every_days: int, as_of: dt.date) -> list[dt.date]:
        """Days before `as_of`, `every_days` apart within each period; the first day of each period is one."""
        days = []
        starts = (self.train_start, self.validation_start, self.test_start, as_of)
        for start, end in itertools.pairwise(starts):
            length = (min(end, as_of) - start).days
            days += [start + dt.timedelta(days=number) for number in range(0, length, every_days)]
        return days


class SplitConfig(Section):
    """Periods of the queries.

    A start is a date, or a number of days before `as_of` (`-90d`). The stage `examples` resolves it for its `as_of` and
    stores the dates with the examples; `snapshot`, `train` and `evaluate` use the stored ones, also in a later night.
    The horizon of a training example ends before `validation_start`, that of a validation example before `test_start`.
    Queries whose horizon ends after `as_of`, or after the day of the last event before it, are not used.
    The final model is refit on the training and validation periods.
    """

    train_start: Start = Field(description="first day of the training period: a date, or `-540d`")
    validation_start: Start = Field(
        description="first day of the validation period, which selects the number of epochs and calibrates: a date, "
        "or `-180d`"
    )
    test_start: TestStart = Field(
        description="first day of the test period, which measures the final model: a date, or `-90d`; `none`: the "
        "model learns from everything before `as_of` and is not evaluated (a final training after a test)"
    )

    @property
    def has_test(self) -> bool:
        """Whether there is a test period."""
        return self.test_start != NO_TEST

    def resolve(self, as_of: dt.date) -> Periods:
        """The periods for an `as_of`."""
        return Periods(*(_resolved(start, as_of) for _, start in self))

    def problem(self, horizons: Mapping[str, int], as_of: dt.date, any_as_of: bool) -> str | None:
        """Why a period cannot have a query whose horizon ends in it; None if each can.

        Args:
            horizons: Target -> horizon in days, of targets whose horizon is a number.
            as_of: Date of the predictions.
            any_as_of: Report only what is wrong for every `as_of`.
        """
        starts = [start for _, start in self]
        bounds = [*starts, NO_TEST] if self.has_test else starts  # `none` is the as_of itself
        days = [_resolved(start, as_of) for start in bounds]
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            if any_as_of and isinstance(first, str) != isinstance(end, str):
                continue
            length = (days[number + 1] - days[number]).days
            if length <= 0 and number < 2:
                shown = ", ".join(str(day) for day in days[:3])
                return f"split: expected train_start < validation_start < test_start, got {shown}"
            problem = _too_short(("training", "validation", "test")[number], length, horizons)
            if problem:
                return f"split: the {problem} ({days[number]} to {days[number + 1]}). Move the dates of split or as_of"
        return None


def _resolved(start: dt.date | str, as_of: dt.date) -> dt.date:
    if isinstance(start, dt.date):
        return start
    return as_of if start == NO_TEST else as_of + dt.timedelta(days=int(start.removesuffix("d")))


def _too_short(period: str, length: int, horizons: Mapping[str, int]) -> str | None:
    for target, horizon in horizons.items():
        if length < horizon:
            return (
                f"{period} period has {max(length, 0)} days, fewer than targets.{target}.horizon_days = {horizon}, so "
                "no horizon ends in it and the period is empty"
            )
    return None
