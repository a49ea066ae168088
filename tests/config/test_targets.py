"""Targets: one kind of query, and keys that fit the kind of the label."""

from __future__ import annotations

import pytest

from tests.config.shipped import SHIPPED, error_text

_TARGET = "description: x, outcome_filter: 'true', horizon_days: '7'"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("weight: 1", ": expected either population or every_days, got neither"),
        ("population: 'true', every_days: 7", ": expected either population or every_days, got both"),
        ("every_days: 7, kind: value", ": expected value for kind value, got none"),
        (
            "every_days: 7, value: sum(outcome.quantity)",
            ": value is for kind value, the kind here is binary: remove it",
        ),
        ("every_days: 7, kind: next", ": expected field for kind next, got none"),
        ("every_days: 7, field: item", ": field is for kind next, the kind here is binary: remove it"),
        ("every_days: 7, kind: next, field: itm", ".field 'itm' is not declared: did you mean 'item'?"),
        (
            "every_days: 7, kind: next, field: item, negate: true",
            ": negate is for kind binary, the kind here is next: remove it",
        ),
        (
            "population: 'true', active_days: 7",
            ": active_days requires every_days, got population: remove active_days",
        ),
        (
            "population: 'true', active: action = 'x'",
            ": active requires every_days, got population: remove active",
        ),
        ("every_days: 7, top_k: 3", ": top_k is for kind next, the kind here is binary: remove it"),
    ],
)
def test_a_target_with_contradicting_keys_is_an_error(keys: str, message: str) -> None:
    assert error_text(SHIPPED, f"targets.more={{{_TARGET}, {keys}}}") == f"  - targets.more{message}"


@pytest.mark.parametrize("days", ["1.5", "0.5", "0", "-28", "nan"])
def test_a_constant_horizon_is_a_whole_number_of_days(days: str) -> None:
    assert error_text(SHIPPED, f"targets.coupon_redemption.horizon_days='{days}'") == (
        f"  - targets.coupon_redemption.horizon_days: expected a whole number of days from 1, got '{days}'"
    )
