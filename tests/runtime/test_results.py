"""Typed results are stored as JSON and read back only as the same type and format."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import dataclass, replace

import pytest

from lam_spark.errors import AuditError
from lam_spark.runtime.results import StageResult


@dataclass(frozen=True)
class Part:
    """A nested value."""

    low: float
    high: float


@dataclass(frozen=True)
class Measured(StageResult):
    """A result with all kinds of values."""

    rows: int
    is_final: bool
    parts: tuple[Part, ...]
    by_name: dict[str, Part]
    at: dt.datetime
    note: str | None = None


RESULT = Measured(
    rows=3,
    is_final=True,
    parts=(Part(0.1, 0.2), Part(1.0, 1e300)),
    by_name={"a": Part(0.0, -1.5)},
    at=dt.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
)


def test_a_result_is_read_back_from_json_unchanged() -> None:
    stored = json.loads(json.dumps(RESULT.to_json()))
    assert (stored["type"], stored["format"]) == ("Measured", 1)
    assert Measured.from_json(stored) == RESULT


def test_numbers_that_are_not_finite_are_read_back() -> None:
    result = replace(RESULT, parts=(Part(math.nan, math.inf),))
    (part,) = Measured.from_json(json.loads(json.dumps(result.to_json()))).parts
    assert math.isnan(part.low)
    assert part.high == math.inf


def test_counts_contain_the_integer_fields() -> None:
    assert RESULT.counts == {"rows": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Other"}, "expected a result Measured of format 1, found Other of format 1"),
        ({"format": 2}, "expected a result Measured of format 1, found Measured of format 2"),
        ({"values": {"rows": "many"}}, "the stored values are not those of a result Measured of format 1"),
    ],
    ids=["another type", "a newer format", "damaged values"],
)
def test_a_result_of_another_type_or_format_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(AuditError, match=message) as error:
        Measured.from_json(RESULT.to_json() | change)
    assert "Run the stage again" in str(error.value)
