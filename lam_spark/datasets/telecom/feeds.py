"""Raw form of every feed: columns, ids and clock as the delivering system writes them.

Raw rows are arrays of Python objects, one array per column: text, integers, floats and None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.parameters import AUTUMN, SPRING, START

Format = Literal["json", "csv", "parquet"]
# Format of times in a feed: `millis` since 1970 (UTC); `iso` text with a Z; `local` and `local_day_first` text in
# Lisbon local time; `instant`; `local_instant`, a timestamp without zone in Lisbon local time; `day`.
Clock = Literal["millis", "iso", "local", "local_day_first", "instant", "local_instant", "day"]

_EPOCH = int(np.datetime64(START, "s").astype(np.int64))


@dataclass(frozen=True)
class Feed:
    """A raw input.

    Attributes:
        name: name of the input in the configuration, and of its folder.
        format: JSON lines, CSV with a header, or Parquet.
        columns: column -> its role (`key`, `id`, `time`, or a name among the values of `Rows`).
        clock: how the feed writes times.
        id_kind: `customer`, or a kind of id that links assign to customers.
        integer_column, float_column: numeric columns; all columns except these and the time hold text.
        text_column: the text column in which another encoding may occur.
        separator: field separator of a CSV feed.
    """

    name: str
    format: Format
    columns: Mapping[str, str]
    clock: Clock
    id_kind: str = "customer"
    integer_column: str = ""
    float_column: str = ""
    text_column: str = ""
    separator: str = ","

    def column_of(self, role: str) -> str:
        """Return the column with a role; empty if there is none."""
        return next((name for name, column_role in self.columns.items() if column_role == role), "")

    @property
    def suffix(self) -> str:
        """Suffix of the feed's file names."""
        return "jsonl" if self.format == "json" else self.format

    @property
    def is_local(self) -> bool:
        """Whether times are Lisbon local time, which skips an hour in spring and repeats one in autumn."""
        return self.clock.startswith("local")

    @property
    def schema(self) -> pa.Schema:
        """Schema of a Parquet feed."""
        zone = "UTC" if self.clock == "instant" else None
        time = pa.date32() if self.clock == "day" else pa.timestamp("us", tz=zone)
        types = {
            self.column_of("time"): time,
            self.integer_column: pa.int64(),
            self.float_column: pa.float64(),
        }
        return pa.schema([(name, types.get(name, pa.string())) for name in self.columns])


def _columns(text: str) -> dict[str, str]:
    """Parse `column=role` pairs separated by blanks; a column without a role has its own name as role."""
    pairs = (pair.partition("=") for pair in text.split())
    return {name: role or name for name, _, role in pairs}


CHANNELS: dict[str, Feed] = {
    feed.name: feed
    for feed in (
        Feed(
            "app",
            "json",
            _columns("id=key device=id ts=time screen=action plan=item seconds=number"),
            "millis",
            id_kind="device",
            integer_column="seconds",
            text_column="screen",
        ),
        Feed(
            "web",
            "json",
            _columns("hit=key cookie=id at=time page=action plan=item"),
            "iso",
            id_kind="cookie",
            text_column="page",
        ),
        Feed(
            "shop",
            "csv",
            _columns("visit=key member=id at=time shop=item what=action"),
            "local_day_first",
            text_column="shop",
        ),
        Feed(
            "call_centre",
            "csv",
            _columns("call=key phone=id started_at=time reason=action answered=item seconds=number"),
            "local",
            id_kind="phone",
            integer_column="seconds",
            text_column="reason",
            separator="|",
        ),
        Feed(
            "telemarketing",
            "parquet",
            _columns("contact=key member=id selected_at=time offer=action arm=item"),
            "instant",
            text_column="offer",
        ),
        Feed(
            "mail",
            "parquet",
            _columns("delivery=key address=id at=time what=action kind=item"),
            "instant",
            id_kind="address",
            text_column="kind",
        ),
        Feed(
            "point_of_sale",
            "parquet",
            _columns("receipt=key card=id sold_at=time kind=action item=item amount=number"),
            "local_instant",
            id_kind="card",
            float_column="amount",
            text_column="item",
        ),
        Feed(
            "crm",
            "parquet",
            _columns("contract=key member=id signed_on=time contract_type plan age_band gender region"),
            "day",
            text_column="region",
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
# Statements contain no defects: the stage `consent` refuses a ledger with an unreadable line as a whole.
STATEMENTS = Feed(
    "consent_statements",
    "csv",
    _columns("member=id purpose state effective_at=time recorded_at source"),
    "iso",
)


def format_times(clock: Clock, at: Array) -> Array:
    """Format times (seconds after `START`, UTC) as text or numbers of a clock."""
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


def ingested_times(feed: Feed, at: Array) -> Array:
    """Return the instants that ingestion reads from the written times: an ambiguous local time is the earlier one."""
    if not feed.is_local:
        return at
    return np.asarray(at - 3_600 * ((at >= AUTUMN) & (at < AUTUMN + 3_600)))


def _objects(values: Array | list[str]) -> Array:
    return np.asarray(values, dtype=object)


def _texts(at: Array) -> list[str]:
    return list(np.datetime_as_string((at + _EPOCH).astype("datetime64[s]")).tolist())
