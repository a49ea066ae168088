"""Tables from rows written by hand, and the small shop after the stages up to the snapshot."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.shop import PURPOSES, STARTED_AT

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from lam_spark.model.transformer import LargeActionModel
    from lam_spark.runtime.context import RunContext
    from lam_spark.runtime.results import StageResult
    from tests.support.shop import DataSet

Row = dict[str, Any]

# Action -> channel of the small shop.
_CHANNELS = {"propose": "mailing", "respond": "response"}
_LEDGER = (
    "customer_key STRING, purpose STRING, state STRING, effective_at TIMESTAMP, recorded_at TIMESTAMP, "
    "source STRING, ingested_at TIMESTAMP"
)


def utc(text: str) -> dt.datetime:
    """UTC instant of an ISO 8601 text without offset."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def event(customer: str, at: str, event_id: str, known_at: str | None = None, **fields: Any) -> Row:
    """A row of `events`, by default known when it happens; fields that are left out are null."""
    times = {"event_time": utc(at), "known_at": utc(known_at or at)}
    source = _CHANNELS.get(str(fields.get("action")), "shop")
    return {"customer_key": customer, **times, "event_id": event_id, "source": source, **fields}


def events_frame(ctx: RunContext, rows: list[Row]) -> DataFrame:
    """Rows with the columns of the table `events`, in one partition."""
    from lam_spark.events.deduplication import event_order
    from lam_spark.events.schema import field_types
    from lam_spark.storage.dataframes import local_frame

    kinds = {name: kind.simpleString() for name, kind in field_types(ctx.config.fields).items()}
    columns = {
        "customer_key": "string",
        "event_id": "string",
        "event_time": "timestamp",
        "known_at": "timestamp",
        "source": "string",
        **kinds,
        "ingested_at": "timestamp",
    }
    defaults = {"ingested_at": STARTED_AT}

    def cell(row: Row, name: str) -> Any:
        value = (defaults | row).get(name)
        return float(value) if columns[name] == "double" and value is not None else value

    values = [tuple(cell(row, name) for name in columns) for row in rows]
    frame = local_frame(ctx.spark, values, ", ".join(f"{name} {kind}" for name, kind in columns.items()))
    return frame.withColumn("event_order", event_order())


def ledger_frame(spark: SparkSession, rows: list[tuple[str, str, str | None, str, str]]) -> DataFrame:
    """Rows (customer, purpose, state, effective_at, recorded_at) as a table `consent`, in one partition.

    They were read when they were recorded.
    """
    from lam_spark.storage.dataframes import local_frame

    values = [(c, p, s, utc(e), utc(r), "by hand", utc(r)) for c, p, s, e, r in rows]
    return local_frame(spark, values, _LEDGER)


def publish(
    ctx: RunContext, events: list[Row], statuses: Mapping[str, tuple[str | None, str | None]]
) -> None:
    """Write `events` and `consent`, in several files each; a status is (training, contact), None means no statement."""
    ctx.tables.overwrite(events_frame(ctx, events).repartition(3), "events")
    rows = [
        (customer, purpose, state, "2023-01-01T00:00:00", "2023-01-01T00:00:00")
        for customer, states in statuses.items()
        for purpose, state in zip(PURPOSES, states, strict=True)
        if state is not None
    ]
    ctx.tables.overwrite(ledger_frame(ctx.spark, rows).repartition(3), "consent")


@contextlib.contextmanager
def rolled_back(ctx: RunContext, name: str) -> Iterator[None]:
    """Roll back what is written to the table inside, as after a full disk."""
    from lam_spark.storage.tables.publish import transaction

    with contextlib.suppress(OSError), transaction(ctx.tables, name):
        yield
        raise OSError("the disk is full")


def register(ctx: RunContext, model: LargeActionModel, folder: Path, **facts: Any) -> None:
    """Register a model as champion, as if trained on the workspace's tables; `facts` replace facts of its card."""
    from lam_spark.config.definition import model_definition
    from lam_spark.model.artifact import Calibration, save_artifact
    from lam_spark.model.card import DEFINITION, TEST_START, VOCABULARY
    from lam_spark.sequences.vocabulary import vocabulary_digest
    from lam_spark.training.registry import register_model, set_alias
    from lam_spark.training.tracking import Tracking

    known = {
        VOCABULARY: vocabulary_digest(ctx.tables.read("vocabulary"), model.layout.ids_in_use),
        TEST_START: ctx.config.instant(ctx.config.periods.test_start).isoformat(),
        DEFINITION: model_definition(ctx.config),
    }
    card = {name: value for name, value in (known | facts).items() if value is not None}
    calibration = {target.name: Calibration(1.0, 0.0) for target in model.layout.targets}
    digest = save_artifact(folder, model, calibration, card)
    with Tracking(ctx.config, ctx.run_id, folder, ctx.log) as tracking:
        set_alias(tracking, register_model(tracking, folder, digest))


def table_versions(ctx: RunContext) -> dict[str, int]:
    """Newest version of each table that exists."""
    from lam_spark.storage.tables.registry import TABLES

    return {name: ctx.tables.version(name) for name in TABLES if ctx.tables.exists(name)}


@dataclass(frozen=True)
class Prepared:
    """A workspace after all stages up to the snapshot.

    Attributes:
        results: Result of each stage that ran.
    """

    data: DataSet
    ctx: RunContext
    results: dict[str, StageResult]
