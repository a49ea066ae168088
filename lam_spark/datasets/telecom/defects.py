"""Dirty rows of declared kinds, added to a feed's true ones: what they look like and what must become of them.

A dirty row is made after a true one, which stays, and has one fault only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.feeds import LINKS, Clock, Feed, write_times
from lam_spark.datasets.telecom.files import Columns
from lam_spark.datasets.telecom.parameters import SPRING, START

CLEAN = ""
AGAIN, AGAIN_ELSEWHERE = "duplicate", "duplicate in another file"
NEVER_LINKED = "id that is never linked"
NO_CUSTOMER, NO_KEY = "no customer id", "no key"
NO_TIME, FAR_FUTURE, LONG_AGO = "time that is none", "far-future time", "time of a reset clock"
GAP = "time that the clock left out"
NOT_UTF8 = "text that is not UTF-8"
NOT_FINITE, NEGATIVE, NO_NUMBER = "number that is not finite", "negative number", "text for a number"
NO_SUCH_VALUE = "value that there is not"
CUT_LINE, LONG_LINE = "line that breaks off", "line with too many fields"

DUPLICATES, UNRESOLVED, QUARANTINED = "duplicates", "unresolved", "quarantined"
MALFORMED = "line does not parse under the declared columns"
_FALSE_INSTANTS = {FAR_FUTURE: "2999-01-01T07:00:00", LONG_AGO: "1970-01-01T01:00:00"}
# Where a value has to be one of a few: the column, and one that is none of them.
_ENUMERATED = {"telemarketing": ("arm", "maybe"), "crm": ("region", "atlantis")}


@dataclass(frozen=True)
class Soiled:
    """Raw rows with the dirty ones after the true ones.

    Attributes:
        kind: of each row; `CLEAN` of a true one.
        made_after: of each row, the true row that it was made after (its own position for a true one).
        cut: lines of which only the first half is written.
    """

    columns: Columns
    kind: Array
    made_after: Array
    cut: Array


def kinds_of(feed: Feed) -> dict[str, float]:
    """The kinds of dirt that a feed can hold, with their shares."""
    weights = {AGAIN: 3.0, AGAIN_ELSEWHERE: 2.0, NO_CUSTOMER: 1.0}
    if feed.name in LINKS:
        weights |= {CUT_LINE: 1.0} if feed.form == "json" else {}
        weights |= {LONG_LINE: 1.0} if feed.form == "csv" else {}
        weights |= {NO_TIME: 1.0}
    else:
        weights |= dict.fromkeys((NO_KEY, NO_TIME, FAR_FUTURE, NOT_UTF8), 1.0)
        holds = {
            NEVER_LINKED: feed.kind != "customer",
            LONG_AGO: feed.kind == "device",
            GAP: feed.is_local,
            NOT_FINITE: feed.real,
            NEGATIVE: feed.real or feed.name == "call_centre",
            NO_NUMBER: feed.whole,
            NO_SUCH_VALUE: feed.name in _ENUMERATED,
            CUT_LINE: feed.form == "json",
            LONG_LINE: feed.form == "csv",
        }
        weights |= {kind: 1.0 for kind, held in holds.items() if held}
        weights |= {NEVER_LINKED: 2.0} if NEVER_LINKED in weights else {}
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


def outcome(feed: Feed, kind: str) -> str:
    """What becomes of a row of this kind: one of duplicates, unresolved, quarantined."""
    if kind == NEVER_LINKED:
        return UNRESOLVED
    return QUARANTINED if reason(feed, kind) else DUPLICATES


def reason(feed: Feed, kind: str) -> str:
    """Why a row of this kind is refused; empty for one that is not."""
    number = "seconds" if feed.whole else "amount"
    time = "linked_at" if feed.name in LINKS else "event_time"
    reasons = {
        NO_CUSTOMER: "customer_id is missing",
        NO_KEY: "event_key is missing",
        NO_TIME: f"{time} is missing or not a time",
        FAR_FUTURE: f"{time} is in the future",
        LONG_AGO: f"{time} is before 2000-01-01",
        GAP: f"{time} does not exist in Europe/Lisbon",
        # A reader of JSON refuses the line, the others read something else than was written.
        NOT_UTF8: MALFORMED if feed.form == "json" else "text is not UTF-8",
        NOT_FINITE: f"{number} is not finite",
        NEGATIVE: "seconds is below 0" if feed.whole else "rule amount_not_negative",
        NO_NUMBER: MALFORMED if feed.form == "json" else "seconds is not a number",
        CUT_LINE: MALFORMED,
        LONG_LINE: MALFORMED,
    }
    if kind == NO_SUCH_VALUE:
        return f"{_ENUMERATED[feed.name][0]} is not one of the declared values"
    return reasons.get(kind, "")


def soil(
    rng: np.random.Generator,
    feed: Feed,
    columns: Columns,
    share: float,
    never_linked: Callable[[Array], Array],
    new_keys: Callable[[int], Array],
) -> Soiled:
    """Add dirty rows, so many that they are `share` of all rows in the mean.

    Args:
        rng: the chunk's generator for defects.
        feed, columns: n true rows.
        share: below a half.
        never_linked: gives, for positions of rows, an id of each one's customer that no statement links.
        new_keys: gives so many keys that no row has.
    """
    rows = len(columns[feed.column("id")])
    count = int(rng.binomial(rows, share / (1 - share)))
    shares = kinds_of(feed)
    kind = np.array(list(shares), dtype=object)[rng.choice(len(shares), count, p=list(shares.values()))]
    made_after = rng.integers(0, rows, count)
    dirty = {name: values[made_after] for name, values in columns.items()}
    again = np.isin(kind, [AGAIN, AGAIN_ELSEWHERE])
    if key := feed.column("key"):
        dirty[key][~again] = new_keys(int((~again).sum()))
    for name in shares:
        chosen = np.flatnonzero(kind == name)
        if name == NEVER_LINKED:
            dirty[feed.column("id")][chosen] = never_linked(made_after[chosen])
        elif len(chosen):
            _spoil(feed, dirty, name, chosen)
    return Soiled(
        columns={name: np.concatenate([columns[name], dirty[name]]) for name in columns},
        kind=np.concatenate([np.full(rows, CLEAN, dtype=object), kind]),
        made_after=np.concatenate([np.arange(rows), made_after]),
        cut=np.concatenate([np.zeros(rows, dtype=bool), kind == CUT_LINE]),
    )


def _spoil(feed: Feed, dirty: Columns, kind: str, chosen: Array) -> None:
    """Put the fault into the chosen rows; what is done to whole lines or files is done elsewhere."""
    identifier, time = feed.column("id"), feed.column("time")
    if kind == NO_CUSTOMER:
        dirty[identifier][chosen] = None
        if feed.name not in LINKS:
            dirty[identifier][chosen[::2]] = "  "
    elif kind == NO_KEY:
        dirty[feed.column("key")][chosen] = None
    elif kind in (NO_TIME, FAR_FUTURE, LONG_AGO, GAP):
        dirty[time][chosen] = _false_time(feed.clock, kind)
    elif kind == NOT_UTF8:
        dirty[feed.text][chosen] = [f"{value}\udce7\udce3o" for value in dirty[feed.text][chosen]]
    elif kind == NOT_FINITE:
        dirty[feed.real][chosen] = np.resize([np.nan, np.inf, -np.inf], len(chosen)).astype(object)
    elif kind == NEGATIVE:
        dirty[feed.real or feed.whole][chosen] = -1 - dirty[feed.real or feed.whole][chosen]
    elif kind == NO_NUMBER:
        dirty[feed.whole][chosen] = "many"
    elif kind == NO_SUCH_VALUE:
        column, value = _ENUMERATED[feed.name]
        dirty[column][chosen] = value
    elif kind == LONG_LINE:
        last = list(feed.columns)[-1]
        dirty[last][chosen] = [f"{value}{feed.separator}see note" for value in dirty[last][chosen]]


def _false_time(clock: Clock, kind: str) -> object:
    if kind == NO_TIME:
        texts = {"iso": "yesterday", "local": "2024-13-32 25:61:00", "local_day_first": "32/13/2024 25:61:00"}
        return texts.get(clock)
    if kind == GAP:
        # Half past one on Lisbon's clock, in the hour that was left out: half past midnight, an hour on.
        winter = write_times(clock, np.array([SPRING - 1_800]))[0]
        return winter + 3_600_000_000 if clock == "local_instant" else winter.replace(" 00:30", " 01:30")
    after = np.datetime64(_FALSE_INSTANTS[kind], "s") - np.datetime64(START, "s")
    return write_times(clock, np.array([after.astype(np.int64)]))[0]
