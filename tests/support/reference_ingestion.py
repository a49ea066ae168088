"""Independent re-implementation of ingestion in plain Python, to verify the telecom data set.

Holds everything in memory, so use it for a few hundred customers.
"""

from __future__ import annotations

import bisect
import csv
import datetime as dt
import json
import math
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from lam_spark.config import Config, InputConfig

Row = dict[str, Any]
UTC, LISBON = dt.UTC, zoneinfo.ZoneInfo("Europe/Lisbon")
MALFORMED = "line does not parse under the declared columns"


class SkippedTimeError(ValueError):
    """A local time that is skipped by a clock change."""


@dataclass
class ReferenceResult:
    """Result of ingesting the raw files.

    Attributes:
        channels, links: name -> row status -> rows.
        events: (channel, member number) -> events.
        accepted: channel -> (member number, raw row) of each event.
        consent_states: (member number, purpose) -> states of the newest statements.
    """

    channels: dict[str, Row] = field(default_factory=dict)
    links: dict[str, Row] = field(default_factory=dict)
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepted: dict[str, list[tuple[str, Row]]] = field(default_factory=lambda: defaultdict(list))
    consent_states: dict[tuple[str, str], set[str]] = field(default_factory=dict)


def _iso(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _lisbon(local: dt.datetime) -> dt.datetime:
    instant = local.replace(tzinfo=LISBON, fold=0).astimezone(UTC)
    if instant.astimezone(LISBON).replace(tzinfo=None) != local:
        raise SkippedTimeError
    return instant


# Channel -> columns of the key, the id and the time, and the function that parses the time.
CHANNELS: dict[str, tuple[str, str, str, Callable[[Any], dt.datetime]]] = {
    "app": (
        "id",
        "device",
        "ts",
        lambda ms: dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(milliseconds=ms),
    ),
    "web": ("hit", "cookie", "at", _iso),
    "shop": ("visit", "member", "at", lambda text: _lisbon(dt.datetime.strptime(text, "%d/%m/%Y %H:%M:%S"))),
    "call_centre": ("call", "phone", "started_at", lambda text: _lisbon(dt.datetime.fromisoformat(text))),
    "telemarketing": ("contact", "member", "selected_at", lambda instant: instant),
    "mail": ("delivery", "address", "at", lambda instant: instant),
    "point_of_sale": ("receipt", "card", "sold_at", _lisbon),
    "crm": ("contract", "member", "signed_on", lambda day: _lisbon(dt.datetime.combine(day, dt.time()))),
}
# Link feed -> kind of id (None: in the column `kind`), columns of the id and the time.
LINKS = {
    "logins": (None, "token", "at"),
    "phone_numbers": ("phone", "phone", "owned_from"),
    "cards": ("card", "card", "issued_at"),
    "addresses": ("address", "address", "confirmed_at"),
}
VALUES = {
    "arm": {"treated", "control"},
    "region": {"lisboa", "porto", "centro", "alentejo", "algarve"},
}


def ingest_reference(config: Config) -> ReferenceResult:
    """Ingest all feeds of the data set that `config` points to."""
    result = ReferenceResult()
    links: dict[tuple[str, str], list[tuple[dt.datetime, str]]] = defaultdict(list)
    for name in LINKS:
        result.links[name] = _read_links(name, config.inputs[name], links)
    for links_of_id in links.values():
        links_of_id.sort()
    for name in CHANNELS:
        _read_channel(config, name, links, result)
    result.consent_states = _newest_states(config.inputs["consent_statements"])
    return result


def _newest_states(source: InputConfig) -> dict[tuple[str, str], set[str]]:
    """(member number, purpose) -> states of all statements with the latest time."""
    newest: dict[tuple[str, str], tuple[dt.datetime, set[str]]] = {}
    for row in _rows(source):
        assert row is not None
        key, at = (row["member"], row["purpose"]), _iso(row["effective_at"])
        if key not in newest or at > newest[key][0]:
            newest[key] = (at, set())
        if at == newest[key][0]:
            newest[key][1].add(row["state"])
    return {key: states for key, (_, states) in newest.items()}


def _read_channel(config: Config, name: str, links: Any, result: ReferenceResult) -> None:
    key, identifier, time, parse = CHANNELS[name]
    id_kind = config.channels[name].id
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seen: set[tuple[Any, ...]] = set()
    for row in _rows(config.inputs[name]):
        counts["rows_in"] += 1
        reason = MALFORMED if row is None else _quarantine_reason(row, key, identifier, time, parse)
        if reason:
            reasons[reason] += 1
            continue
        assert row is not None
        at = parse(row[time])
        if (row[identifier], at, row[key]) in seen:
            counts["duplicates"] += 1
            continue
        seen.add((row[identifier], at, row[key]))
        customer = row[identifier] if id_kind == "customer" else _resolve(links[id_kind, row[identifier]], at)
        counts["events" if customer else "unresolved"] += 1
        if customer:
            result.events[name, customer] += 1
            result.accepted[name].append((customer, row))
    statuses = {status: counts[status] for status in ("rows_in", "events", "duplicates", "unresolved")}
    result.channels[name] = statuses | {"quarantined": reasons.total(), "quarantine_reasons": dict(reasons)}


def _quarantine_reason(
    row: Row, key: str, identifier: str, time: str, parse: Callable[[Any], dt.datetime]
) -> str | None:
    """Return the first rule that a row violates."""
    if not (row[identifier] or "").strip():
        return "customer_id is missing"
    if any(isinstance(value, str) and "\ufffd" in value for value in row.values()):
        return "text is not UTF-8"
    try:
        at = parse(row[time]) if row[time] else None
    except SkippedTimeError:
        return "event_time does not exist in Europe/Lisbon"
    except ValueError:
        at = None
    if at is None:
        return "event_time is missing or not a time"
    if at.year < 2000:
        return "event_time is before 2000-01-01"
    if at.year > 2900:
        return "event_time is in the future"
    if not row[key]:
        return "event_key is missing"
    try:
        seconds = float(row.get("seconds") or 0)
    except ValueError:
        return "seconds is not a number"
    amount = row.get("amount", 0.0)
    if not math.isfinite(amount):
        return "amount is not finite"
    if seconds < 0:
        return "seconds is below 0"
    for column, values in VALUES.items():
        if row.get(column) is not None and row[column] not in values:
            return f"{column} is not one of the declared values"
    return "rule amount_not_negative" if amount < 0 else None


def _resolve(links: list[tuple[dt.datetime, str]], at: dt.datetime) -> str | None:
    """Return the owner of an id at an instant; `links` are ordered by time."""
    if not links or len({customer for _, customer in links}) > 5:
        return None
    after = bisect.bisect_right(links, at, key=lambda link: link[0])
    deciding = links[max(after - 1, 0)][0]
    if deciding - at > dt.timedelta(days=30):
        return None
    owners = {customer for linked_at, customer in links if linked_at == deciding}
    return owners.pop() if len(owners) == 1 else None


def _read_links(name: str, source: InputConfig, links: Any) -> Row:
    id_kind, identifier, time = LINKS[name]
    counts: Counter[str] = Counter()
    for row in _rows(source):
        counts["rows_in"] += 1
        try:
            assert row is not None
            assert row["member"]
            assert row[time]
            at = _iso(row[time]) if isinstance(row[time], str) else row[time]
        except (AssertionError, ValueError):
            counts["quarantined"] += 1
            continue
        links_of_id = links[id_kind or row["kind"], row[identifier]]
        if (at, row["member"]) in links_of_id:
            counts["duplicates"] += 1
        else:
            links_of_id.append((at, row["member"]))
            counts["links"] += 1
    return {status: counts[status] for status in ("rows_in", "links", "duplicates", "quarantined")}


def _rows(source: InputConfig) -> Iterator[Row | None]:
    """Yield the rows of an input's files; None for a malformed line."""
    columns = [pair.split() for pair in source.columns.replace("\n", " ").split(",")]
    for path in sorted(Path(source.path).iterdir()):
        if source.format == "parquet":
            yield from _parquet_rows(path)
        elif source.format == "json":
            for line in path.read_bytes().splitlines():
                yield _json_row(line, columns)
        else:
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()
            assert text[0].split(source.options.get("sep", ",")) == [name for name, _ in columns]
            for fields in csv.reader(text[1:], delimiter=source.options.get("sep", ",")):
                named = zip((name for name, _ in columns), fields, strict=False)
                yield {n: v or None for n, v in named} if len(fields) == len(columns) else None


def _json_row(line: bytes, columns: list[list[str]]) -> Row | None:
    try:
        row: Row = json.loads(line.decode())
    except ValueError:
        return None
    types = {"STRING": str, "BIGINT": int}
    fits = all(row[name] is None or isinstance(row[name], types[kind]) for name, kind in columns)
    return row if fits else None


def _parquet_rows(path: Path) -> Iterator[Row]:
    table = pq.read_table(path)
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type):
            encoded = column.view(pa.binary()).to_pylist()
            columns[name] = [None if v is None else v.decode("utf-8", "replace") for v in encoded]
        else:
            columns[name] = column.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
