"""Fields may have any name that is not reserved: no stage takes one of them for a column of its own."""

from __future__ import annotations

import ast
import datetime as dt
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

import lam_spark
from lam_spark.consent.stage import update_consent
from lam_spark.delivery.stage import deliver
from lam_spark.evaluation.stage import evaluate
from lam_spark.events.stage import ingest
from lam_spark.labels.stage import build_examples
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.embeddings import embed
from lam_spark.scoring.stage import score
from lam_spark.sequences import incremental as increment
from lam_spark.sequences.stage import build_sequences
from lam_spark.sequences.vocabulary import MISSING
from lam_spark.storage.tables.registry import RESERVED_COLUMNS
from lam_spark.training_data.columns import layout_of
from lam_spark.training_data.stage import build_snapshot
from tests.support.shop import PURPOSES, STARTED_AT, context_builder, raw_id, settings
from tests.support.tables import register
from tests.support.tiny import random_model

Row = dict[str, Any]
FOLDERS = ("consent", "dataset", "delivery", "evaluation", "events", "scoring", "sequences", "sources")
KEPT = 64
START = dt.datetime(2023, 1, 15, 12, tzinfo=dt.UTC)


def named_in(tree: ast.AST) -> Iterator[str]:
    """What a module calls columns: the texts that `alias`, `withColumn(s)` and `withColumnRenamed` are given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = node.args[:1] if node.func.attr in ("alias", "withColumn", "withColumns") else []
            given = node.args[1:2] if node.func.attr == "withColumnRenamed" else given
            for one in given:
                texts = one.keys if isinstance(one, ast.Dict) else [one]
                yield from (text.value for text in texts if isinstance(text, ast.Constant))


def own_names() -> list[str]:
    """The columns that the stages make on their way and that a field may be called, nevertheless."""
    package = Path(lam_spark.__file__).parent
    modules = [path for folder in FOLDERS for path in (package / folder).glob("*.py")]
    found = {name for path in modules for name in named_in(ast.parse(path.read_text(encoding="utf-8")))}
    plain = {name for name in found if re.fullmatch("(?!query_|label_)[a-z][a-z0-9_]*", name)}
    return sorted(plain - RESERVED_COLUMNS - {"action", "campaign"})


NAMES = own_names()
# A text costs a join: only some are.
TEXTS = NAMES[::16]
NUMERIC = [name for name in NAMES if name not in TEXTS]


def sections(root: Path) -> Row:
    """The small shop with two channels, one of customers and one of cookies, whose fields have all these names."""
    values = ", ".join([*(f"7.5 AS {name}" for name in NUMERIC), *(f"'own' AS {name}" for name in TEXTS)])

    def channel(grain: str) -> Row:
        select = (
            "SELECT who AS customer_id, at AS event_time, concat(action, at) AS event_key, action, campaign"
        )
        return {"grain": grain, "select": f"{select}, {values} FROM {grain}"}

    raw = {"format": "parquet", "columns": "who STRING, at TIMESTAMP, action STRING, campaign STRING"}
    logins = {"path": str(root / "raw/logins"), "columns": "id STRING, customer STRING, at TIMESTAMP"}
    return {
        "inputs": settings(root)["inputs"]
        | {name: {**raw, "path": str(root / "raw" / name)} for name in ("deeds", "clicks")}
        | {"logins": {"format": "parquet", **logins}},
        "channels": {"shop": channel("deeds"), "web": {**channel("clicks"), "id": "cookie"}},
        "identity": {
            "links": {
                "login": {
                    "grain": "logins",
                    "select": "SELECT 'cookie' AS id_kind, id, customer AS customer_id, at AS linked_at FROM logins",
                }
            }
        },
        "fields": {
            "action": {"role": "how", "kind": "categorical"},
            "campaign": {"role": "what", "kind": "reference"},
            **{name: {"role": "how", "kind": "numeric"} for name in NUMERIC},
            **{name: {"role": "what", "kind": "categorical"} for name in TEXTS},
        },
        "targets": {
            "response": settings(root)["targets"]["response"] | {"horizon_days": "14"},
            "lapse": settings(root)["targets"]["lapse"],
        },
        "sequences": {"max_events": KEPT},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 16, "window_days": [28]},
        "quality": {"max_staleness_days": 400},
        "scoring": {
            "target": "response",
            "proposals": "SELECT 'a' AS proposal_id, 'mail' AS description, 'propose' AS action",
        },
    }


def deliver_rows(root: Path, night: int, rows: list[tuple[str, dt.datetime, str, str | None]]) -> None:
    """Rows (who, when, action, campaign) of both channels: a customer's, and of a cookie of theirs an hour later."""
    for name, prefix, hours in (("deeds", "", 0), ("clicks", "cookie of ", 1)):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
        made = [
            {
                "who": f"{prefix}{who}",
                "at": at + dt.timedelta(hours=hours),
                "action": action,
                "campaign": campaign,
            }
            for who, at, action, campaign in rows
        ]
        pq.write_table(
            pa.Table.from_pylist(made), root / "raw" / name / f"{night}.parquet", coerce_timestamps="us"
        )


def history(number: int) -> list[tuple[str, dt.datetime, str, str | None]]:
    """A mailing every four weeks, every other one answered; the first customer buys every day as well."""
    rows: list[tuple[str, dt.datetime, str, str | None]] = []
    for turn in range(12):
        at = START + dt.timedelta(days=28 * turn, hours=number)
        rows.append((raw_id(number), at, "propose", f"m{turn}"))
        if (turn + number) % 2:
            rows.append((raw_id(number), at + dt.timedelta(days=3), "respond", f"m{turn}"))
    # The others stay away for weeks, twice.
    days = range(330) if number == 1 else [27 * turn for turn in (0, 1, 2, 5, 6, 9, 10, 11)]
    return rows + [
        (raw_id(number), START + dt.timedelta(days=day, hours=5), "purchase", None) for day in days
    ]


def check_events(ctx: RunContext, count: int) -> None:
    events = ctx.tables.read("events")
    assert events.count() == count
    kept = events.selectExpr(
        *(f"count_if({name} = 7.5) AS {name}" for name in NUMERIC),
        *(f"count_if({name} = 'own') AS {name}" for name in TEXTS),
    ).first()
    assert kept is not None
    assert {name: found for name, found in kept.asDict().items() if found != count} == {}


def check_sequences(ctx: RunContext) -> None:
    for row in ctx.tables.read("sequences").collect():
        assert {name for name in NUMERIC if set(row[name]) != {7.5}} == set()
        assert {name for name in TEXTS if len(set(row[name])) != 1 or MISSING in row[name]} == set()


@pytest.mark.long
def test_a_field_may_have_the_name_of_a_column_that_a_stage_makes_on_its_way(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(NAMES) > 40
    root = tmp_path / "shop"
    everyone = range(1, 7)
    rows = [row for number in everyone for row in history(number)]
    first, later = rows[::2], rows[1::2]
    deliver_rows(root, 1, first)
    (root / "raw" / "logins").mkdir()
    logins = [{"id": f"cookie of {raw_id(n)}", "customer": raw_id(n), "at": START} for n in everyone]
    pq.write_table(pa.Table.from_pylist(logins), root / "raw/logins/1.parquet", coerce_timestamps="us")
    stated = [
        f"{raw_id(number)},{purpose},opt_in,2023-01-01T00:00:00,2023-01-01T00:00:00,form\n"
        for number in everyone
        for purpose in PURPOSES
    ]
    (root / "raw/consent_statements.csv").write_text(
        "customer,purpose,state,effective_at,recorded_at,source\n" + "".join(stated)
    )
    monkeypatch.setattr(increment, "_MOST_REMADE", 10)
    build = context_builder(spark, root)

    def night(number: int) -> RunContext:
        return build(started_at=STARTED_AT + dt.timedelta(days=number), **sections(root))

    ctx = night(0)
    for stage in (ingest, update_consent, build_sequences):
        stage(ctx)
    check_events(ctx, 2 * len(first))
    check_sequences(ctx)
    deliver_rows(root, 2, later + first[::5])  # some come again
    ctx = night(1)
    counts = ingest(ctx).counts
    assert (counts["duplicates"], counts["conflicting"]) == (2 * len(first[::5]), 0)
    check_events(ctx, 2 * len(rows))
    assert build_sequences(ctx).facts["mode"] == "update"
    check_sequences(ctx)
    for stage in (build_examples, build_snapshot):
        stage(ctx)
    register(ctx, random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))), tmp_path / "model")
    stages: list[Callable[[RunContext], Any]] = [score, evaluate, embed, deliver]
    for each in stages:
        each(ctx)
    assert ctx.tables.read("contact_list").count() == len(everyone)
