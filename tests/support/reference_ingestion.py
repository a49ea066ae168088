"""What must become of the telecom world's raw rows, read with plain Python: the rules once more, said another way.

Slow, and in memory as a whole: for some hundred customers.
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
UNPARSED = "line does not parse under the declared columns"


class GapError(ValueError):
    """A local time that no clock showed."""


@dataclass
class Ingested:
    """What came of the raw files.

    Attributes:
        channels, links: name -> outcome -> rows.
        events: (channel, member number) -> events.
        accepted: channel -> (member number, raw row) of each event.
        standing: (member number, purpose) -> states of the newest statements.
    """

    channels: dict[str, Row] = field(default_factory=dict)
    links: dict[str, Row] = field(default_factory=dict)
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepted: dict[str, list[tuple[str, Row]]] = field(default_factory=lambda: defaultdict(list))
    standing: dict[tuple[str, str], set[str]] = field(default_factory=dict)


def _iso(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _lisbon(local: dt.datetime) -> dt.datetime:
    instant = local.replace(tzinfo=LISBON, fold=0).astimezone(UTC)
    if instant.astimezone(LISBON).replace(tzinfo=None) != local:
        raise GapError
    return instant


# Channel -> columns of the key, the id and the time, and how the time is read.
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
# Link feed -> kind of id (None: a column says it), columns of the id and the time.
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


def ingest_plainly(config: Config) -> Ingested:
    """Read all feeds of the world that `config` points to."""
    done = Ingested()
    known: dict[tuple[str, str], list[tuple[dt.datetime, str]]] = defaultdict(list)
    for name in LINKS:
        done.links[name] = _read_links(name, config.inputs[name], known)
    for held in known.values():
        held.sort()
    for name in CHANNELS:
        _read_channel(config, name, known, done)
    for row in _rows(config.inputs["consent_statements"]):
        assert row is not None
        _note_statement(done, row)
    done.standing = {key: states for key, (_, states) in done.standing.items()}  # type: ignore[misc]
    return done


def _note_statement(done: Ingested, row: Row) -> None:
    key, at = (row["member"], row["purpose"]), _iso(row["effective_at"])
    newest: Any = done.standing.get(key, (at, set()))
    if at > newest[0]:
        newest = (at, set())
    if at == newest[0]:
        newest[1].add(row["state"])
    done.standing[key] = newest


def _read_channel(config: Config, name: str, known: Any, done: Ingested) -> None:
    key, identifier, time, read = CHANNELS[name]
    kind = config.channels[name].id
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    seen: set[tuple[Any, ...]] = set()
    for row in _rows(config.inputs[name]):
        counts["rows_in"] += 1
        reason = UNPARSED if row is None else _reason(row, key, identifier, time, read)
        if reason:
            refused[reason] += 1
            continue
        assert row is not None
        at = read(row[time])
        if (row[identifier], at, row[key]) in seen:
            counts["duplicates"] += 1
            continue
        seen.add((row[identifier], at, row[key]))
        customer = row[identifier] if kind == "customer" else _owner(known[kind, row[identifier]], at)
        counts["events" if customer else "unresolved"] += 1
        if customer:
            done.events[name, customer] += 1
            done.accepted[name].append((customer, row))
    told = {what: counts[what] for what in ("rows_in", "events", "duplicates", "unresolved")}
    done.channels[name] = told | {"quarantined": refused.total(), "refused": dict(refused)}


def _reason(row: Row, key: str, identifier: str, time: str, read: Callable[[Any], dt.datetime]) -> str | None:
    """The first rule that a row breaks."""
    if not (row[identifier] or "").strip():
        return "customer_id is missing"
    if any(isinstance(value, str) and "\ufffd" in value for value in row.values()):
        return "text is not UTF-8"
    try:
        at = read(row[time]) if row[time] else None
    except GapError:
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


def _owner(links: list[tuple[dt.datetime, str]], at: dt.datetime) -> str | None:
    """Whose an id is at an instant; `links` are in order of time."""
    if not links or len({customer for _, customer in links}) > 5:
        return None
    after = bisect.bisect_right(links, at, key=lambda link: link[0])
    deciding = links[max(after - 1, 0)][0]
    if deciding - at > dt.timedelta(days=30):
        return None
    owners = {customer for linked_at, customer in links if linked_at == deciding}
    return owners.pop() if len(owners) == 1 else None


def _read_links(name: str, source: InputConfig, known: Any) -> Row:
    kind, identifier, time = LINKS[name]
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
        held = known[kind or row["kind"], row[identifier]]
        if (at, row["member"]) in held:
            counts["duplicates"] += 1
        else:
            held.append((at, row["member"]))
            counts["links"] += 1
    return {what: counts[what] for what in ("rows_in", "links", "duplicates", "quarantined")}


def _rows(source: InputConfig) -> Iterator[Row | None]:
    """The rows of an input's files; None where a line does not parse."""
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
            held = column.view(pa.binary()).to_pylist()
            columns[name] = [None if v is None else v.decode("utf-8", "replace") for v in held]
        else:
            columns[name] = column.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
