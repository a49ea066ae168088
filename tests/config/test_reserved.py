"""Fields may have any name that is not reserved: no stage confuses a field with a column of its own."""

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
from pydantic import TypeAdapter, ValidationError
from pyspark.sql import SparkSession

import lam_spark
from lam_spark.config.base import Name
from lam_spark.consent.stage import update_consent
from lam_spark.delivery.stage import deliver
from lam_spark.evaluation.stage import evaluate
from lam_spark.events.stage import ingest
from lam_spark.labels.stage import build_examples
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.embeddings import embed
from lam_spark.scoring.stage import score
from lam_spark.sequences import incremental
from lam_spark.sequences.stage import build_sequences
from lam_spark.sequences.vocabulary import MISSING
from lam_spark.storage.tables.reserved import RESERVED_COLUMNS
from lam_spark.training_data.columns import layout_of
from lam_spark.training_data.stage import build_snapshot
from tests.support.shop import PURPOSES, STARTED_AT, context_builder, raw_id, settings
from tests.support.tables import register
from tests.support.tiny import random_model

Row = dict[str, Any]
# Folders of lam_spark whose modules add columns to frames that may contain fields.
FOLDERS = (
    "consent",
    "delivery",
    "evaluation",
    "events",
    "identity",
    "labels",
    "scoring",
    "sequences",
    "sources",
    "storage",
    "training_data",
)
MAX_EVENTS = 64
START = dt.datetime(2023, 1, 15, 12, tzinfo=dt.UTC)


def column_names(tree: ast.AST) -> Iterator[str]:
    """Names of columns that a module makes: literal arguments of `alias`, `withColumn(s)` and `withColumnRenamed`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments = node.args[:1] if node.func.attr in ("alias", "withColumn", "withColumns") else []
            arguments = node.args[1:2] if node.func.attr == "withColumnRenamed" else arguments
            for argument in arguments:
                nodes = argument.keys if isinstance(argument, ast.Dict) else [argument]
                yield from (name.value for name in nodes if isinstance(name, ast.Constant))


def names_of_stages() -> set[str]:
    """Names of all columns that the stages make."""
    package = Path(lam_spark.__file__).parent
    modules = [path for folder in FOLDERS for path in (package / folder).rglob("*.py")]
    return {name for path in modules for name in column_names(ast.parse(path.read_text(encoding="utf-8")))}


def allowed_field_names() -> list[str]:
    """Names of columns that the stages make and that a field may have, too.

    Working columns start with an underscore, which no field name does.
    """
    allowed = {name for name in names_of_stages() if re.fullmatch("(?!query_|label_)[a-z][a-z0-9_]*", name)}
    return sorted(allowed - RESERVED_COLUMNS - {"action", "campaign"})


NAMES = allowed_field_names()
# Only some fields are categorical, because each costs a join.
TEXTS = NAMES[::16]
NUMERIC = [name for name in NAMES if name not in TEXTS]


def sections(root: Path) -> Row:
    """Configuration with two channels, one by customer and one by cookie, and fields with all names of `NAMES`."""
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
        "sequences": {"max_events": MAX_EVENTS},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 16, "window_days": [28]},
        "quality": {"max_staleness_days": 400, "min_positives": 1},
        "scoring": {
            "target": "response",
            "proposals": "SELECT 'a' AS proposal_id, 'mail' AS description, 'propose' AS action",
        },
    }


def write_rows(root: Path, night: int, rows: list[tuple[str, dt.datetime, str, str | None]]) -> None:
    """Write rows (customer, time, action, campaign) of both channels; the cookie's rows are an hour later."""
    for name, prefix, hours in (("deeds", "", 0), ("clicks", "cookie of ", 1)):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
        records = [
            {
                "who": f"{prefix}{who}",
                "at": at + dt.timedelta(hours=hours),
                "action": action,
                "campaign": campaign,
            }
            for who, at, action, campaign in rows
        ]
        pq.write_table(
            pa.Table.from_pylist(records), root / "raw" / name / f"{night}.parquet", coerce_timestamps="us"
        )


def history(number: int) -> list[tuple[str, dt.datetime, str, str | None]]:
    """A mailing every four weeks with a response to every other one, and purchases.

    The first customer buys every day, the others pause twice for weeks.
    """
    rows: list[tuple[str, dt.datetime, str, str | None]] = []
    for turn in range(12):
        at = START + dt.timedelta(days=28 * turn, hours=number)
        rows.append((raw_id(number), at, "propose", f"m{turn}"))
        if (turn + number) % 2:
            rows.append((raw_id(number), at + dt.timedelta(days=3), "respond", f"m{turn}"))
    days = range(330) if number == 1 else [27 * turn for turn in (0, 1, 2, 5, 6, 9, 10, 11)]
    return rows + [
        (raw_id(number), START + dt.timedelta(days=day, hours=5), "purchase", None) for day in days
    ]


def check_events(ctx: RunContext, count: int) -> None:
    events = ctx.tables.read("events")
    assert events.count() == count
    counts = events.selectExpr(
        *(f"count_if({name} = 7.5) AS {name}" for name in NUMERIC),
        *(f"count_if({name} = 'own') AS {name}" for name in TEXTS),
    ).first()
    assert counts is not None
    assert {name: field_count for name, field_count in counts.asDict().items() if field_count != count} == {}


def check_sequences(ctx: RunContext) -> None:
    for row in ctx.tables.read("sequences").collect():
        assert {name for name in NUMERIC if set(row[name]) != {7.5}} == set()
        assert {name for name in TEXTS if len(set(row[name])) != 1 or MISSING in row[name]} == set()


def test_the_names_come_from_all_stages() -> None:
    assert {"embedding", "is_eligible", "predicted", "value", "outcome", "id_kind", "modified"} <= set(NAMES)
    assert len(NAMES) > 30


def test_working_columns_cannot_have_the_name_of_a_field() -> None:
    working_columns = {name for name in names_of_stages() if name.startswith("_")}
    assert len(working_columns) > 40
    field_name = TypeAdapter(Name)
    for name in working_columns:
        with pytest.raises(ValidationError):
            field_name.validate_python(name)


@pytest.mark.long
def test_a_field_may_have_the_name_of_a_column_that_a_stage_makes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shop"
    numbers = range(1, 7)
    rows = [row for number in numbers for row in history(number)]
    first, later = rows[::2], rows[1::2]
    write_rows(root, 1, first)
    (root / "raw" / "logins").mkdir()
    logins = [{"id": f"cookie of {raw_id(n)}", "customer": raw_id(n), "at": START} for n in numbers]
    pq.write_table(pa.Table.from_pylist(logins), root / "raw/logins/1.parquet", coerce_timestamps="us")
    statements = [
        f"{raw_id(number)},{purpose},opt_in,2023-01-01T00:00:00,2023-01-01T00:00:00,form\n"
        for number in numbers
        for purpose in PURPOSES
    ]
    (root / "raw/consent_statements.csv").write_text(
        "customer,purpose,state,effective_at,recorded_at,source\n" + "".join(statements)
    )
    monkeypatch.setattr(incremental, "_MAX_REBUILT_SHARE", 10)  # never rebuild all customers
    build = context_builder(spark, root)

    def context(number: int) -> RunContext:
        return build(started_at=STARTED_AT + dt.timedelta(days=number), **sections(root))

    ctx = context(0)
    for stage in (ingest, update_consent, build_sequences):
        stage(ctx)
    check_events(ctx, 2 * len(first))
    check_sequences(ctx)
    write_rows(root, 2, later + first[::5])  # some rows are duplicates
    ctx = context(1)
    counts = ingest(ctx).counts
    assert (counts["duplicates"], counts["conflicting"]) == (2 * len(first[::5]), 0)
    check_events(ctx, 2 * len(rows))
    assert build_sequences(ctx).mode == "update"
    check_sequences(ctx)
    for stage in (build_examples, build_snapshot):
        stage(ctx)
    register(ctx, random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))), tmp_path / "model")
    stages: list[Callable[[RunContext], Any]] = [score, evaluate, embed, deliver]
    for later_stage in stages:
        later_stage(ctx)
    assert ctx.tables.read("contact_list").count() == len(numbers)
