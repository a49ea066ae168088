"""Numbers, dates and durations as text. A missing or non-finite number becomes ``MISSING``."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import TypeGuard

from lam_spark.report.content import Unit

MISSING = "n/a"
MINUS = "\u2212"
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def is_number(value: float | None) -> TypeGuard[float]:
    """Return whether ``value`` is a finite number."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """Format a count with thousands separators, with one decimal only if it is not whole."""
    if not is_number(value):
        return MISSING
    if abs(value - round(value)) < 0.05:
        return f"{round(value):,}"
    return f"{value:,.1f}"


def counted(value: float | None, singular: str, plural: str) -> str:
    """Format a count with its noun."""
    text = count(value)
    return f"{text} {singular if text == '1' else plural}"


def unit(name: Unit, customers: str) -> str:
    """Return a funnel step's unit in the data set's own words."""
    return customers if name == "customers" else name


def percent(value: float | None) -> str:
    """Format a fraction as a percentage: one decimal, two below 1%, none at 0% and 100%."""
    if not is_number(value):
        return MISSING
    shown = value * 100
    if shown in (0.0, 100.0):
        return f"{shown:.0f}%"
    if 0 < shown < 0.01:
        return "<0.01%"
    if 99.95 <= shown < 100:
        return ">99.9%"
    return f"{shown:.2f}%" if abs(shown) < 1 else f"{shown:.1f}%"


def ratio(value: float | None) -> str:
    """Format a ratio such as a lift with one decimal, two below 1."""
    if not is_number(value):
        return MISSING
    if value == 0:
        return "0"
    if value < 0.995:
        return f"{value:.2f}"
    return f"{value:,.1f}"


def three_decimals(value: float | None) -> str:
    """Format a fraction such as an AUC with three decimals."""
    return f"{value:.3f}" if is_number(value) else MISSING


def signed(value: float, decimals: int = 3) -> str:
    """Format a difference with its sign."""
    return f"{MINUS if value < 0 else '+'}{abs(value):.{decimals}f}"


def duration(seconds: float | None) -> str:
    """Format seconds in the largest fitting units, e.g. "4 min 12 s"."""
    if not is_number(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gib(value: float | None) -> str:
    """Format a memory size in GiB."""
    return f"{value:.1f} GiB" if is_number(value) else MISSING


def day(value: date) -> str:
    """Format a date as "14 March 2017", in any locale."""
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def timestamp(value: datetime) -> str:
    """Format a time as "14 March 2017, 09:30 UTC"."""
    utc = value.astimezone(UTC)
    return f"{day(utc.date())}, {utc:%H:%M} UTC"
