"""A small shop over several nights, kept as tables and as plain Python values that the tables are compared with."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections import Counter
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.runtime.context import RunContext
from lam_spark.sequences.stage import SequencesResult, build_sequences
from lam_spark.sequences.tokens import MISSING, UNKNOWN
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import micros, sql_literal
from tests.support.shop import ONE_TARGET, PURPOSES, STARTED_AT, context_builder
from tests.support.tables import event, events_frame, ledger_frame

MAX_EVENTS = 16
SECTIONS = {
    "sequences": {"max_events": MAX_EVENTS},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    "quality": {"max_staleness_days": 400},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 3},
        "amount": {"role": "how", "kind": "numeric"},
    },
}
FIRST_DAY = dt.datetime(2023, 9, 1, tzinfo=dt.UTC)
CUTOFF = dt.datetime(2023, 9, 30, 22, tzinfo=dt.UTC)  # of the vocabulary: 1 October in Berlin
AS_OF = dt.date(2023, 10, 20)

Values = dict[str, Any]


@dataclass
class NightlyShop:
    """The tables of a workspace, and the same content as Python values.

    Attributes:
        spark: Session of the tests.
        root: Workspace.
        night: Number of completed nights; each run starts a day after the one before.
        events: Content of `events` by event id.
        statements: Consent statements: customer, purpose, state, effective_at, number.
        added: Events added so far, including deleted ones.
        recorded: Statements in the table `consent`. A commit takes almost a second, so that the statements of a
            night are written together.
    """

    spark: SparkSession
    root: Path
    night: int = 0
    events: dict[str, Values] = field(default_factory=dict)
    statements: list[tuple[str, str, str, dt.datetime, int]] = field(default_factory=list)
    added: int = 0
    recorded: int = 0

    def __post_init__(self) -> None:
        self._build = context_builder(self.spark, self.root)
        self._config = self._build(**SECTIONS).config

    def copied(self, root: Path) -> NightlyShop:
        """A copy of the shop under another root."""
        shutil.copytree(self.root, root)
        return dataclasses.replace(
            self, root=root, events=dict(self.events), statements=list(self.statements)
        )

    @property
    def started_at(self) -> dt.datetime:
        """Start of this night's run."""
        return STARTED_AT + dt.timedelta(days=self.night)

    @property
    def tables(self) -> Tables:
        """Tables of the workspace."""
        return self._build(self._config).tables

    def context(self, as_of: dt.date, rebuild: bool = False) -> RunContext:
        """Context of a run that sees everything added and stated so far."""
        self._record_statements()
        sequences = self._config.sequences.model_copy(update={"rebuild": rebuild})
        config = self._config.model_copy(update={"as_of": as_of, "sequences": sequences})
        return self._build(config, started_at=self.started_at)

    def _sql(self, statement: str) -> None:
        self.spark.sql(statement.format(events=f"delta.`{self.tables.path('events')}`"))

    def add(
        self, *rows: tuple[str, dt.datetime, str | None, float | None], delay: dt.timedelta = dt.timedelta(0)
    ) -> None:
        """Append events (customer, time, action, amount) that are known after the delay."""
        fresh = {}
        for customer, at, action, amount in rows:
            # Ids in no order, as hashes are.
            key = f"{self.added * 0x9E3779B97F4A7C15 % 2**64:016x}" + "0" * 16
            self.added += 1
            known_at = (at + delay).isoformat()[:19]
            fresh[key] = event(customer, at.isoformat()[:19], key, known_at, action=action, amount=amount)
        ctx = self._build(self._config)
        ctx.tables.append(events_frame(ctx, list(fresh.values())), "events")
        self.events |= fresh

    def move(self, number: int, customer: str, delay: dt.timedelta = dt.timedelta(0)) -> None:
        """Assign an event to a customer, by a link that is known `delay` after the event, as a late one is."""
        key = self._pick(number)
        if key is not None:
            known_at = self.events[key]["event_time"] + delay
            self._sql(
                f"UPDATE {{events}} SET customer_key = '{customer}', known_at = {sql_literal(known_at)} "
                f"WHERE event_id = '{key}'"
            )
            self.events[key] = self.events[key] | {"customer_key": customer, "known_at": known_at}

    def delete(self, number: int) -> None:
        """Delete an event."""
        key = self._pick(number)
        if key is not None:
            self._sql(f"DELETE FROM {{events}} WHERE event_id = '{key}'")
            del self.events[key]

    def movable(self) -> list[str]:
        """Ids of the events that may be moved or deleted; the anchor's keep the tables from being empty."""
        return sorted(key for key, row in self.events.items() if row["customer_key"] != "anchor")

    def _pick(self, number: int) -> str | None:
        keys = self.movable()
        return keys[number % len(keys)] if keys else None

    def state(self, customer: str, purpose: str, state: str, hours: int = -1) -> None:
        """Add a consent statement that is effective `hours` after the start of this night's run."""
        at = self.started_at + dt.timedelta(hours=hours)
        self.statements.append((customer, purpose, state, at, len(self.statements)))

    def state_both(self, customer: str, state: str, hours: int = -1) -> None:
        """Add a statement for each purpose."""
        for purpose in PURPOSES:
            self.state(customer, purpose, state, hours)

    def _record_statements(self) -> None:
        rows = []
        for customer, purpose, state, at, number in self.statements[self.recorded :]:
            recorded_at = dt.datetime(2023, 1, 1) + dt.timedelta(seconds=number)
            rows.append((customer, purpose, state, at.isoformat()[:19], recorded_at.isoformat()))
        if rows:
            self.tables.append(ledger_frame(self.spark, rows), "consent")
            self.recorded = len(self.statements)

    def eligible(self, purpose: str) -> set[str]:
        """Customers with an opt-in in effect that is recorded and effective after all withdrawals."""
        about = [(c, s, at, number) for c, p, s, at, number in self.statements if p == purpose]
        withdrawals = [(c, at, number) for c, s, at, number in about if s != "opt_in"]
        return {
            customer
            for customer, state, at, number in about
            if state == "opt_in"
            and at <= self.started_at
            and all(at > since and number > last for c, since, last in withdrawals if c == customer)
        }

    def expected(self, ctx: RunContext) -> dict[str, Values]:
        """Expected rows, from the present events and vocabulary."""
        vocabulary = ctx.tables.read("vocabulary").collect()
        ids = {row["value"]: row["token_id"] for row in vocabulary}
        rows = {}
        for customer in self.eligible(PURPOSES[0]) | self.eligible(PURPOSES[1]):
            history = [
                (micros(row["known_at"]), micros(row["event_time"]), key, row["action"], row["amount"])
                for key, row in self.events.items()
                if row["customer_key"] == customer and row["known_at"] < ctx.as_of
            ]
            if history:
                rows[customer] = _expected_row(sorted(history), ids)
        return rows

    def expected_counts(self, ctx: RunContext) -> dict[str, int]:
        """Expected content of `value_counts`."""
        trained = self.eligible(PURPOSES[0])
        return Counter(
            row["action"]
            for row in self.events.values()
            if row["customer_key"] in trained
            and row["known_at"] < min(ctx.as_of, CUTOFF)
            and row["action"] is not None
        )


def _expected_row(
    history: list[tuple[int, int, str, str | None, float | None]], ids: dict[str, int]
) -> Values:
    def token(action: str | None) -> int:
        return MISSING if action is None else ids.get(action, UNKNOWN)

    def decimal(amount: float | None) -> Decimal:
        # Spark's cast starts from the text of the float32's double value.
        return Decimal(0) if amount is None else Decimal(repr(float(np.float32(amount))))

    truncated, kept = history[:-MAX_EVENTS], history[-MAX_EVENTS:]
    counts = Counter(token(action) for *_, action, _ in truncated)
    digits = Decimal("1e-9")
    total = sum((decimal(a).quantize(digits, ROUND_HALF_UP) for *_, a in truncated), Decimal(0))
    return {
        "seq_len": len(kept),
        "events_seen": len(history),
        "known_at": [known_at for known_at, *_ in kept],
        "event_time": [at for _, at, *_ in kept],
        "event_order": [int(key[:15], 16) for _, _, key, *_ in kept],
        "action": [token(action) for *_, action, _ in kept],
        "amount": [None if a is None else float(np.float32(a)) for *_, a in kept],
        "first": history[0][0],
        "last": history[-1][0],
        "truncated_events": len(truncated),
        "truncated_counts": dict(counts) or None,
        "truncated_sums": {"amount": total} if truncated else None,
    }


def stored(ctx: RunContext) -> tuple[dict[str, Values], dict[str, str]]:
    """Rows and their files by customer; first and last instant also in microseconds (UTC)."""
    instants = {"first": F.unix_micros("first_known_at"), "last": F.unix_micros("last_known_at")}
    frame = ctx.tables.read("sequences").select("*", "_metadata.file_path").withColumns(instants)
    rows = {row["customer_key"]: row.asDict(True) for row in frame.collect()}
    files = {key: row.pop("file_path") for key, row in rows.items()}
    return rows, files


def comparable(rows: dict[str, Values]) -> dict[str, Values]:
    """Rows with the columns of `NightlyShop.expected` only."""
    dropped = ("customer_key", "first_known_at", "last_known_at", "hour_of_week", "seq_hash")
    return {key: {k: v for k, v in row.items() if k not in dropped} for key, row in rows.items()}


@dataclass(frozen=True)
class Night:
    """Result of a night's run, the rows after it, and the file of each row."""

    result: SequencesResult
    rows: dict[str, Any]
    files: dict[str, str]


def run_night(shop: NightlyShop, as_of: dt.date = AS_OF) -> Night:
    """Run the stage and compare its tables with the expected ones."""
    ctx = shop.context(as_of)
    result = build_sequences(ctx)
    rows, files = stored(ctx)
    assert comparable(rows) == shop.expected(ctx)
    value_counts = ctx.tables.read("value_counts").collect()
    assert {row["value"]: row["count"] for row in value_counts} == shop.expected_counts(ctx)
    shop.night += 1
    return Night(result, rows, files)


def open_shop(spark: SparkSession, root: Path) -> NightlyShop:
    """A shop with one customer, the anchor, who never changes."""
    shop = NightlyShop(spark, root)
    shop.add(("anchor", FIRST_DAY, "buy", 1.0))
    shop.state_both("anchor", "opt_in", hours=-48)
    return shop


def days(number: float) -> dt.datetime:
    """The instant `number` days after the first day."""
    return FIRST_DAY + dt.timedelta(days=number)


def many(customer: str, count: int, action: str | None = "buy", first_day: float = 1) -> list[Any]:
    """Events of a customer, four a day, with different amounts."""
    return [(customer, days(first_day + n / 4), action, n + 0.1) for n in range(count)]
