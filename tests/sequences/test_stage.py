"""Sequences: no future events, an order that does not depend on the input's, and ids that never change."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, ConsentError, DataQualityError
from lam_spark.runtime.context import RunContext
from lam_spark.sequences.build import BUILD_SETTINGS, Assembler
from lam_spark.sequences.entries import SequenceSpec
from lam_spark.sequences.stage import SequencesResult, build_sequences
from lam_spark.sequences.time_range import require_as_of_within, time_range
from lam_spark.sequences.tokens import FIRST_VALUE, MISSING, UNKNOWN
from lam_spark.sequences.vocabulary import count_values, extend_vocabulary
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.time import micros
from tests.support.shop import LATE_PRODUCT, ONE_TARGET, REFUSED_PRODUCT, context_builder
from tests.support.tables import Prepared, event, events_frame, publish, utc

BOTH, NEITHER = ("opt_in", "opt_in"), (None, None)
MAX_EVENTS = 16
SECTIONS = {
    "sequences": {"max_events": MAX_EVENTS},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 8, "window_days": [28]},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 2},
        "amount": {"role": "how", "kind": "numeric"},
    },
}
# as_of is 20 December in Berlin: 19 December 23:00 UTC.
AS_OF = "2023-12-19T23:00:00"
EVENTS = [
    *[
        event("long", f"2023-03-{day:02d}T12:00:00", f"l{day}", action="buy", amount=day)
        for day in range(1, 21)
    ],
    # Four events at one instant: the id decides the order.
    *[event("tie", "2023-04-01T10:00:00", key, action=key, amount=None) for key in ("d", "a", "c", "b")],
    event("tie", "2023-03-31T10:00:00", "z", action="buy"),
    event("edge", "2023-12-19T22:59:59", "e1", action="buy"),
    event("edge", AS_OF, "e2", action="buy"),
    event("edge", "2023-12-20T00:00:00", "e3", action="buy"),
    event("future", AS_OF, "f1", action="buy"),
    event("training", "2023-03-01T00:00:00", "t1", action=None),
    event("contact", "2023-03-01T00:00:00", "c1", action="contact only"),
    event("contact", "2023-03-02T00:00:00", "c2", action="contact only"),
    event("refused", "2023-03-01T00:00:00", "n1", action="buy"),
    event("long", "2023-11-01T00:00:00", "late1", action="test period"),
    event("tie", "2023-11-01T00:00:00", "late2", action="test period"),
]
STATUSES = {
    "long": BOTH,
    "tie": BOTH,
    "edge": BOTH,
    "future": BOTH,
    "training": ("opt_in", None),
    "contact": ("opt_out", "opt_in"),
    "refused": NEITHER,
}


@dataclass(frozen=True)
class Built:
    """The shop after the stage: its rows by customer and the token ids of the field `action`."""

    ctx: RunContext
    result: SequencesResult
    rows: dict[str, dict[str, Any]]
    vocabulary: dict[str, int]


def tokens(ctx: RunContext) -> dict[str, int]:
    rows = ctx.tables.read("vocabulary").where("field = 'action'").collect()
    return {row["value"]: row["token_id"] for row in rows}


@pytest.fixture(scope="module")
def built(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Built:
    ctx = context_builder(spark, tmp_path_factory.mktemp("sequences") / "shop")(**SECTIONS)
    publish(ctx, EVENTS, STATUSES)
    result = build_sequences(ctx)
    rows = {row["customer_key"]: row.asDict() for row in ctx.tables.read("sequences").collect()}
    return Built(ctx, result, rows, tokens(ctx))


def at(text: str) -> int:
    return micros(utc(text))


def test_customers_eligible_for_either_purpose_have_a_row(built: Built) -> None:
    assert set(built.rows) == {"long", "tie", "edge", "training", "contact"}


def test_rows_hold_nothing_at_or_after_as_of(built: Built) -> None:
    assert built.rows["edge"]["event_time"] == [at("2023-12-19T22:59:59")]
    assert all(time < at(AS_OF) for row in built.rows.values() for time in row["event_time"])


def assembled(ctx: RunContext, events: list[dict[str, Any]], partitions: int = 1) -> list[Row]:
    """Rows of the table from these events."""
    frame = events_frame(ctx, events).repartition(partitions)
    with ctx.cache.scope(), session_settings(ctx.spark, BUILD_SETTINGS):
        assembler = Assembler(ctx.cache, SequenceSpec.of(ctx.config), ctx.tables.read("vocabulary"))
        customers = frame.select("customer_key").distinct()
        return assembler.rows(frame, customers, len(events), len(events)).collect()


def hashes(ctx: RunContext, events: list[dict[str, Any]], partitions: int = 1) -> dict[str, int]:
    return {row["customer_key"]: row["seq_hash"] for row in assembled(ctx, events, partitions)}


def test_events_are_ordered_by_time_and_then_by_id(built: Built) -> None:
    ids = {value: built.vocabulary.get(value, UNKNOWN) for value in ("buy", *"abcd")}
    assert built.rows["tie"]["event_time"] == [
        at("2023-03-31T10:00:00"),
        *[at("2023-04-01T10:00:00")] * 4,
        at("2023-11-01T00:00:00"),
    ]
    # Actions a to d are too rare for token ids of their own, so that amounts show the order below.
    assert ids == {"buy": FIRST_VALUE, "a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN, "d": UNKNOWN}
    events = [event("one", "2023-04-01T10:00:00", key, amount=n) for n, key in enumerate("dacb")]
    (row,) = assembled(built.ctx, events)
    assert row["amount"] == [1.0, 3.0, 2.0, 0.0]


def test_the_latest_events_are_kept_and_the_others_counted(built: Built) -> None:
    row = built.rows["long"]
    assert (row["seq_len"], row["events_seen"]) == (MAX_EVENTS, 21)
    assert row["event_time"][0] == at("2023-03-06T12:00:00")
    assert row["event_time"][-1] == at("2023-11-01T00:00:00")
    assert row["amount"][0] == 6.0
    assert built.result.events_truncated == 21 - MAX_EVENTS
    assert built.result.events_in_sequences == sum(r["seq_len"] for r in built.rows.values())
    assert all(len(r["event_time"]) == len(r["action"]) == r["seq_len"] for r in built.rows.values())


def test_the_message_and_the_counts_of_a_rebuild(built: Built) -> None:
    assert built.result.message == (
        "5 sequences of 26 events, the longest 16; rebuild of 5 customers, 5 rows written; 1 new vocabulary entries"
    )
    assert built.result.counts["customers_changed"] == built.result.customers_rebuilt == 5
    assert (built.result.first_event, built.result.last_event) == (
        "2023-03-01T00:00:00+00:00",
        "2023-12-20T00:00:00+00:00",
    )


def test_unknown_and_missing_values_have_different_ids(built: Built) -> None:
    assert built.rows["training"]["action"] == [MISSING]
    assert built.rows["contact"]["action"] == [UNKNOWN, UNKNOWN]
    assert built.rows["tie"]["amount"] == [None] * 6


def test_the_vocabulary_excludes_the_test_period_and_customers_who_refused(built: Built) -> None:
    assert set(built.vocabulary) == {"buy"}  # 'test period' and 'contact only' are frequent enough
    assert built.rows["tie"]["action"][-1] == UNKNOWN


def test_the_vocabulary_of_the_small_shop_excludes_them_too(prepared: Prepared) -> None:
    tables = prepared.ctx.tables
    values = {row["value"] for row in tables.read("vocabulary").where("field = 'product'").collect()}
    assert "books 1" in values
    for product in (LATE_PRODUCT, REFUSED_PRODUCT):
        count = tables.read("events").where(F.col("product") == product).count()
        assert count >= 5  # frequent enough for the vocabulary
        assert product not in values


def test_rows_do_not_depend_on_the_order_of_events(built: Built) -> None:
    expected = hashes(built.ctx, EVENTS)
    assert len(expected) == 7
    assert hashes(built.ctx, EVENTS[::-1], partitions=3) == expected
    changed = [*EVENTS[:-1], EVENTS[-1] | {"amount": 1.0}]
    after = hashes(built.ctx, changed, partitions=2)
    assert {key for key, value in after.items() if value != expected[key]} == {"tie"}


def test_the_hash_depends_on_which_event_lacks_its_number(built: Built) -> None:
    """An update rewrites only rows with another hash; Spark's own hash of an array skips nulls."""
    times = ("2023-03-01T00:00:00", "2023-03-02T00:00:00")

    def hash_of(*amounts: float | None) -> int:
        rows = [
            event("one", time, f"{n}" * 32, amount=amount)
            for n, (time, amount) in enumerate(zip(times, amounts, strict=True))
        ]
        (value,) = hashes(built.ctx, rows).values()
        return value

    assert len({hash_of(None, 1.0), hash_of(1.0, None), hash_of(1.0, 1.0), hash_of(None, None)}) == 4


def test_ids_stay_when_values_are_added(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context(**SECTIONS)

    def extend(**counts: int) -> int:
        rows = [
            event("one", "2023-03-01T00:00:00", f"{action} {n}", action=action)
            for action, count in counts.items()
            for n in range(count)
        ]
        value_counts = count_values(events_frame(ctx, rows), ctx.config.categorical)
        return extend_vocabulary(ctx.tables, ctx.config.fields, value_counts)

    assert extend(m=3, k=2, once=1) == 2
    assert tokens(ctx) == {"m": FIRST_VALUE, "k": FIRST_VALUE + 1}
    # Added values come last although they are more frequent; values that vanished stay.
    assert extend(b=9, a=9, k=2) == 2
    assert tokens(ctx) == {"m": FIRST_VALUE, "k": FIRST_VALUE + 1, "a": FIRST_VALUE + 2, "b": FIRST_VALUE + 3}
    version = ctx.tables.version("vocabulary")
    assert extend(b=9, a=9, k=20) == 0
    assert ctx.tables.version("vocabulary") == version


@pytest.mark.parametrize(
    ("as_of", "fits"),
    [("2023-03-01", False), ("2023-03-02", True), ("2024-01-03", False), ("2023-12-27", True)],
)
def test_as_of_must_be_within_the_data(built: Built, as_of: str, fits: bool) -> None:
    config = built.ctx.config.model_copy(update={"as_of": dt.date.fromisoformat(as_of)})
    ctx = context_builder(built.ctx.spark, config.workspace)(config)
    if fits:
        first, last = time_range(ctx.tables.read("events"))
        require_as_of_within(ctx.as_of, first, last, config.quality, config.time_zone)
        return
    version = ctx.tables.version("sequences")
    message = (
        f"as_of {as_of} is outside the data: events run from 2023-03-01 to 2023-12-20 (UTC), and as_of may be at most "
        "quality.max_staleness_days = 7 days after the last"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_sequences(ctx)
    assert ctx.tables.version("sequences") == version


def test_there_must_be_events_and_eligible_customers(make_context: Callable[..., RunContext]) -> None:
    ctx = make_context(**SECTIONS)
    message = "the table events is empty: run the stage 'ingest' over inputs that have rows"
    with pytest.raises(DataQualityError, match=f"^{message}$"):
        time_range(events_frame(ctx, []))
    publish(ctx, [event("edge", "2023-12-15T00:00:00", "e")], {"edge": ("opt_in", "opt_out")})
    with pytest.raises(ConsentError, match="no customer is eligible for the purpose 'direct_marketing'"):
        build_sequences(ctx)
    assert not ctx.tables.exists("sequences")
