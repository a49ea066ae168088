"""Injected defects: dirty rows of declared kinds, and the row status that ingestion must give them.

A dirty row is a copy of a true row with exactly one defect. The true row stays in the feed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.feeds import LINKS, Clock, Feed, format_times
from lam_spark.datasets.telecom.files import Columns
from lam_spark.datasets.telecom.parameters import SPRING, START

NO_DEFECT = ""
DUPLICATE, DUPLICATE_IN_OTHER_FILE = "duplicate", "duplicate in another file"
NEVER_LINKED_ID = "id that is never linked"
NO_CUSTOMER, NO_KEY = "missing customer id", "missing key"
INVALID_TIME, FUTURE_TIME, CLOCK_RESET = "invalid time", "time in the far future", "time of a reset clock"
SKIPPED_TIME = "local time skipped by the clock change"
NOT_UTF8 = "text that is not UTF-8"
NOT_FINITE, NEGATIVE, NOT_A_NUMBER = "number that is not finite", "negative number", "text for a number"
UNDECLARED_VALUE = "undeclared value"
TRUNCATED_LINE, EXTRA_FIELD = "truncated line", "line with too many fields"

DUPLICATES, UNRESOLVED, QUARANTINED = "duplicates", "unresolved", "quarantined"
MALFORMED = "line does not parse under the declared columns"
_WRONG_INSTANTS = {FUTURE_TIME: "2999-01-01T07:00:00", CLOCK_RESET: "1970-01-01T01:00:00"}
# Feed -> a column with declared values, and a value that is not declared.
_UNDECLARED_VALUES = {"telemarketing": ("arm", "maybe"), "crm": ("region", "atlantis")}


@dataclass(frozen=True)
class RowsWithDefects:
    """Raw rows: all true rows, then the dirty rows.

    Attributes:
        columns: column -> values.
        defect: kind of defect of each row; `NO_DEFECT` for a true row.
        source_row: true row from which each row was copied; its own position for a true row.
        truncated: rows of which only the first half of the line is written.
    """

    columns: Columns
    defect: Array
    source_row: Array
    truncated: Array


def defect_shares(feed: Feed) -> dict[str, float]:
    """Return the kinds of defects that a feed can contain, with their shares."""
    weights = {DUPLICATE: 3.0, DUPLICATE_IN_OTHER_FILE: 2.0, NO_CUSTOMER: 1.0}
    if feed.name in LINKS:
        weights |= {TRUNCATED_LINE: 1.0} if feed.format == "json" else {}
        weights |= {EXTRA_FIELD: 1.0} if feed.format == "csv" else {}
        weights |= {INVALID_TIME: 1.0}
    else:
        weights |= dict.fromkeys((NO_KEY, INVALID_TIME, FUTURE_TIME, NOT_UTF8), 1.0)
        applies = {
            NEVER_LINKED_ID: feed.id_kind != "customer",
            CLOCK_RESET: feed.id_kind == "device",
            SKIPPED_TIME: feed.is_local,
            NOT_FINITE: feed.float_column,
            NEGATIVE: feed.float_column or feed.name == "call_centre",
            NOT_A_NUMBER: feed.integer_column,
            UNDECLARED_VALUE: feed.name in _UNDECLARED_VALUES,
            TRUNCATED_LINE: feed.format == "json",
            EXTRA_FIELD: feed.format == "csv",
        }
        weights |= {defect: 1.0 for defect, is_possible in applies.items() if is_possible}
        weights |= {NEVER_LINKED_ID: 2.0} if NEVER_LINKED_ID in weights else {}
    total = sum(weights.values())
    return {defect: weight / total for defect, weight in weights.items()}


def row_status(feed: Feed, defect: str) -> str:
    """Return the status of a row with a defect: duplicates, unresolved or quarantined."""
    if defect == NEVER_LINKED_ID:
        return UNRESOLVED
    return QUARANTINED if quarantine_reason(feed, defect) else DUPLICATES


def quarantine_reason(feed: Feed, defect: str) -> str:
    """Return the reason for which ingestion quarantines a row with a defect; empty if it does not."""
    number = "seconds" if feed.integer_column else "amount"
    time = "linked_at" if feed.name in LINKS else "event_time"
    reasons = {
        NO_CUSTOMER: "customer_id is missing",
        NO_KEY: "event_key is missing",
        INVALID_TIME: f"{time} is missing or not a time",
        FUTURE_TIME: f"{time} is in the future",
        CLOCK_RESET: f"{time} is before 2000-01-01",
        SKIPPED_TIME: f"{time} does not exist in Europe/Lisbon",
        # Spark's JSON reader rejects the line; other readers replace the invalid bytes.
        NOT_UTF8: MALFORMED if feed.format == "json" else "text is not UTF-8",
        NOT_FINITE: f"{number} is not finite",
        NEGATIVE: "seconds is below 0" if feed.integer_column else "rule amount_not_negative",
        NOT_A_NUMBER: MALFORMED if feed.format == "json" else "seconds is not a number",
        TRUNCATED_LINE: MALFORMED,
        EXTRA_FIELD: MALFORMED,
    }
    if defect == UNDECLARED_VALUE:
        return f"{_UNDECLARED_VALUES[feed.name][0]} is not one of the declared values"
    return reasons.get(defect, "")


def inject_defects(
    rng: np.random.Generator,
    feed: Feed,
    columns: Columns,
    share: float,
    never_linked: Callable[[Array], Array],
    new_keys: Callable[[int], Array],
) -> RowsWithDefects:
    """Append dirty rows, such that their expected share among all rows is `share`.

    Args:
        rng: the chunk's generator for defects.
        feed: feed of the rows.
        columns: n true rows.
        share: below 0.5.
        never_linked: returns, for row positions, an id of each row's customer that is never linked.
        new_keys: returns the given number of unused keys.
    """
    rows = len(columns[feed.column_of("id")])
    count = int(rng.binomial(rows, share / (1 - share)))
    shares = defect_shares(feed)
    defect = np.array(list(shares), dtype=object)[rng.choice(len(shares), count, p=list(shares.values()))]
    source_row = rng.integers(0, rows, count)
    dirty = {name: values[source_row] for name, values in columns.items()}
    is_duplicate = np.isin(defect, [DUPLICATE, DUPLICATE_IN_OTHER_FILE])
    if key := feed.column_of("key"):
        dirty[key][~is_duplicate] = new_keys(int((~is_duplicate).sum()))
    for name in shares:
        chosen = np.flatnonzero(defect == name)
        if name == NEVER_LINKED_ID:
            dirty[feed.column_of("id")][chosen] = never_linked(source_row[chosen])
        elif len(chosen):
            _inject(feed, dirty, name, chosen)
    return RowsWithDefects(
        columns={name: np.concatenate([columns[name], dirty[name]]) for name in columns},
        defect=np.concatenate([np.full(rows, NO_DEFECT, dtype=object), defect]),
        source_row=np.concatenate([np.arange(rows), source_row]),
        truncated=np.concatenate([np.zeros(rows, dtype=bool), defect == TRUNCATED_LINE]),
    )


def _inject(feed: Feed, dirty: Columns, defect: str, chosen: Array) -> None:
    """Write a defect into the chosen rows; defects of whole lines and files are applied by the writer."""
    identifier, time = feed.column_of("id"), feed.column_of("time")
    if defect == NO_CUSTOMER:
        dirty[identifier][chosen] = None
        if feed.name not in LINKS:
            dirty[identifier][chosen[::2]] = "  "
    elif defect == NO_KEY:
        dirty[feed.column_of("key")][chosen] = None
    elif defect in (INVALID_TIME, FUTURE_TIME, CLOCK_RESET, SKIPPED_TIME):
        dirty[time][chosen] = _wrong_time(feed.clock, defect)
    elif defect == NOT_UTF8:
        column = feed.text_column
        dirty[column][chosen] = [f"{value}\udce7\udce3o" for value in dirty[column][chosen]]
    elif defect == NOT_FINITE:
        numbers = np.resize([np.nan, np.inf, -np.inf], len(chosen)).astype(object)
        dirty[feed.float_column][chosen] = numbers
    elif defect == NEGATIVE:
        column = feed.float_column or feed.integer_column
        dirty[column][chosen] = -1 - dirty[column][chosen]
    elif defect == NOT_A_NUMBER:
        dirty[feed.integer_column][chosen] = "many"
    elif defect == UNDECLARED_VALUE:
        column, value = _UNDECLARED_VALUES[feed.name]
        dirty[column][chosen] = value
    elif defect == EXTRA_FIELD:
        last = list(feed.columns)[-1]
        dirty[last][chosen] = [f"{value}{feed.separator}see note" for value in dirty[last][chosen]]


def _wrong_time(clock: Clock, defect: str) -> object:
    if defect == INVALID_TIME:
        texts = {"iso": "yesterday", "local": "2024-13-32 25:61:00", "local_day_first": "32/13/2024 25:61:00"}
        return texts.get(clock)
    if defect == SKIPPED_TIME:
        # 01:30 Lisbon local time is skipped in spring: take 00:30 and add one hour.
        winter = format_times(clock, np.array([SPRING - 1_800]))[0]
        return winter + 3_600_000_000 if clock == "local_instant" else winter.replace(" 00:30", " 01:30")
    after = np.datetime64(_WRONG_INSTANTS[defect], "s") - np.datetime64(START, "s")
    return format_times(clock, np.array([after.astype(np.int64)]))[0]
