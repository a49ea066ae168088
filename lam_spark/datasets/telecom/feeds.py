"""The raw form of every feed: its columns, ids and clock as the system that delivers it writes them.

Raw rows are arrays of Python objects, one a column: text, whole numbers, floats, None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.parameters import AUTUMN, SPRING, START

Form = Literal["json", "csv", "parquet"]
# How a time is written: since 1970 in milliseconds (UTC); text with a Z; text on Lisbon's clock in two orders;
# an instant; a timestamp without zone on Lisbon's clock; a day.
Clock = Literal["millis", "iso", "local", "local_day_first", "instant", "local_instant", "day"]

_EPOCH = int(np.datetime64(START, "s").astype(np.int64))


@dataclass(frozen=True)
class Feed:
    """A raw input.

    Attributes:
        form: JSON lines, CSV with a header, or Parquet.
        columns: column -> what it holds (`key`, `id`, `time`, or a name of the rows' own).
        clock: how its times are written.
        kind: of its ids: `customer`, or one that links tie to customers.
        whole, real: columns of numbers; all others but the time are text.
        text: the column of text where another encoding may turn up.
        separator: of a CSV's fields.
    """

    name: str
    form: Form
    columns: Mapping[str, str]
    clock: Clock
    kind: str = "customer"
    whole: str = ""
    real: str = ""
    text: str = ""
    separator: str = ","

    def column(self, holds: str) -> str:
        """The column that holds something; empty where none does."""
        return next((name for name, held in self.columns.items() if held == holds), "")

    @property
    def suffix(self) -> str:
        """Of its files' names."""
        return "jsonl" if self.form == "json" else self.form

    @property
    def is_local(self) -> bool:
        """On Lisbon's clock, which leaves an hour out in spring and shows one twice in autumn."""
        return self.clock.startswith("local")

    @property
    def schema(self) -> pa.Schema:
        """Of a Parquet feed."""
        zone = "UTC" if self.clock == "instant" else None
        time = pa.date32() if self.clock == "day" else pa.timestamp("us", tz=zone)
        types = {self.column("time"): time, self.whole: pa.int64(), self.real: pa.float64()}
        return pa.schema([(name, types.get(name, pa.string())) for name in self.columns])


def _columns(text: str) -> dict[str, str]:
    """`column=what it holds`, separated by blanks; a column without it holds what it says."""
    pairs = (word.partition("=") for word in text.split())
    return {name: holds or name for name, _, holds in pairs}


CHANNELS: dict[str, Feed] = {
    feed.name: feed
    for feed in (
        Feed(
            "app",
            "json",
            _columns("id=key device=id ts=time screen=word plan=item seconds=number"),
            "millis",
            kind="device",
            whole="seconds",
            text="screen",
        ),
        Feed(
            "web",
            "json",
            _columns("hit=key cookie=id at=time page=word plan=item"),
            "iso",
            kind="cookie",
            text="page",
        ),
        Feed(
            "shop",
            "csv",
            _columns("visit=key member=id at=time shop=item what=word"),
            "local_day_first",
            text="shop",
        ),
        Feed(
            "call_centre",
            "csv",
            _columns("call=key phone=id started_at=time reason=word answered=item seconds=number"),
            "local",
            kind="phone",
            whole="seconds",
            text="reason",
            separator="|",
        ),
        Feed(
            "telemarketing",
            "parquet",
            _columns("contact=key member=id selected_at=time offer=word arm=item"),
            "instant",
            text="offer",
        ),
        Feed(
            "mail",
            "parquet",
            _columns("delivery=key address=id at=time what=word kind=item"),
            "instant",
            kind="address",
            text="kind",
        ),
        Feed(
            "point_of_sale",
            "parquet",
            _columns("receipt=key card=id sold_at=time kind=word item=item amount=number"),
            "local_instant",
            kind="card",
            real="amount",
            text="item",
        ),
        Feed(
            "crm",
            "parquet",
            _columns("contract=key member=id signed_on=time contract_type plan age_band gender region"),
            "day",
            text="region",
        ),
    )
}
LINKS: dict[str, Feed] = {
    feed.name: feed
    for feed in (
        Feed("logins", "json", _columns("kind token member=id at=time"), "iso"),
        Feed("phone_numbers", "csv", _columns("phone=token member=id owned_from=time"), "iso", separator=";"),
        Feed("cards", "parquet", _columns("card=token member=id issued_at=time"), "instant"),
        Feed("addresses", "parquet", _columns("address=token member=id confirmed_at=time"), "instant"),
    )
}
# Statements are never soiled: a ledger with one unreadable line is refused as a whole.
STATEMENTS = Feed(
    "consent_statements",
    "csv",
    _columns("member=id purpose state effective_at=time recorded_at source"),
    "iso",
)


def write_times(clock: Clock, at: Array) -> Array:
    """Times (seconds after `START`, UTC) as a clock's own text or number."""
    if clock == "millis":
        return _objects((at + _EPOCH) * 1000)
    if clock == "day":
        return _objects((at + _EPOCH) // 86_400)
    if clock == "instant":
        return _objects((at + _EPOCH) * 1_000_000)
    if clock == "iso":
        return _objects([f"{text}Z" for text in _texts(at)])
    local = at + 3_600 * ((at >= SPRING) & (at < AUTUMN))
    if clock == "local_instant":
        return _objects((local + _EPOCH) * 1_000_000)
    if clock == "local":
        return _objects([f"{text[:10]} {text[11:]}" for text in _texts(local)])
    return _objects([f"{t[8:10]}/{t[5:7]}/{t[:4]} {t[11:]}" for t in _texts(local)])


def read_back(feed: Feed, at: Array) -> Array:
    """The instants that the written times are read as: of an hour shown twice, the first is meant."""
    if not feed.is_local:
        return at
    return np.asarray(at - 3_600 * ((at >= AUTUMN) & (at < AUTUMN + 3_600)))


def _objects(values: Array | list[str]) -> Array:
    return np.asarray(values, dtype=object)


def _texts(at: Array) -> list[str]:
    return list(np.datetime_as_string((at + _EPOCH).astype("datetime64[s]")).tolist())
