"""Tables made by hand, and one small shop taken through the stages up to the snapshot."""

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
    from lam_spark.runtime.context import Run, StageResult
    from tests.support.shop import DataSet

Row = dict[str, Any]

_LEDGER = (
    "customer_key STRING, purpose STRING, state STRING, effective_at TIMESTAMP, recorded_at TIMESTAMP, "
    "source STRING"
)


def utc(text: str) -> dt.datetime:
    """An instant written in UTC."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def event(customer: str, at: str, event_id: str, **fields: Any) -> Row:
    """A row of `events`; fields that are left out are missing."""
    return {"customer_key": customer, "event_time": utc(at), "event_id": event_id, **fields}


def events_frame(run: Run, rows: list[Row]) -> DataFrame:
    """Rows as the table `events` has them, in one partition."""
    from lam_spark.events.resolution import event_order

    from lam_spark.events.schema import field_types
    from lam_spark.storage.dataframes import local_frame

    kinds = {name: kind.simpleString() for name, kind in field_types(run.config).items()}
    columns = {
        "customer_key": "string",
        "event_id": "string",
        "event_time": "timestamp",
        "source": "string",
        **kinds,
        "ingested_at": "timestamp",
    }
    given = {"source": "by hand", "ingested_at": STARTED_AT}

    def value(row: Row, name: str) -> Any:
        held = (given | row).get(name)
        return float(held) if columns[name] == "double" and held is not None else held

    values = [tuple(value(row, name) for name in columns) for row in rows]
    frame = local_frame(run.spark, values, ", ".join(f"{name} {kind}" for name, kind in columns.items()))
    return frame.withColumn("event_order", event_order())


def ledger_frame(spark: SparkSession, rows: list[tuple[str, str, str | None, str, str]]) -> DataFrame:
    """Rows (customer, purpose, state, effective_at, recorded_at) as the table `consent` has them, in one partition."""
    from lam_spark.storage.dataframes import local_frame

    values = [(c, p, s, utc(e), utc(r), "by hand") for c, p, s, e, r in rows]
    return local_frame(spark, values, _LEDGER)


def publish(run: Run, events: list[Row], standings: Mapping[str, tuple[str | None, str | None]]) -> None:
    """Write `events` and `consent`; a standing is (training, contact), None is no statement.

    In several files each, as nights leave them.
    """
    run.tables.overwrite(events_frame(run, events).repartition(3), "events")
    rows = [
        (customer, purpose, state, "2023-01-01T00:00:00", "2023-01-01T00:00:00")
        for customer, states in standings.items()
        for purpose, state in zip(PURPOSES, states, strict=True)
        if state is not None
    ]
    run.tables.overwrite(ledger_frame(run.spark, rows).repartition(3), "consent")


@contextlib.contextmanager
def taken_back(run: Run, name: str) -> Iterator[None]:
    """What is written to the table inside is undone, as where the disk is full."""
    with contextlib.suppress(OSError), run.tables.together(name):
        yield
        raise OSError("the disk is full")


def register(run: Run, model: LargeActionModel, folder: Path, **facts: str | None) -> None:
    """Make it the model that is asked, as if trained on what the workspace holds, where no `facts` say otherwise."""
    from lam_spark.model.artifact import Calibration, save_artifact
    from lam_spark.model.card import TEST_START, VOCABULARY
    from lam_spark.sequences.vocabulary import vocabulary_digest
    from lam_spark.training.registry import register_model, set_alias
    from lam_spark.training.tracking import Tracking

    known = {
        VOCABULARY: vocabulary_digest(run.tables.read("vocabulary"), model.layout.ids_in_use),
        TEST_START: run.config.instant(run.config.split.test_start).isoformat(),
    }
    told = {name: value for name, value in (known | facts).items() if value is not None}
    calibration = {target.name: Calibration(1.0, 0.0) for target in model.layout.targets}
    digest = save_artifact(folder, model, calibration, told)
    with Tracking(run.config, run.run_id, folder, run.journal) as tracking:
        set_alias(tracking, register_model(tracking, folder, digest))


def table_versions(run: Run) -> dict[str, int]:
    """Every table that exists, with its newest version."""
    from lam_spark.storage.tables.registry import TABLES

    return {name: run.tables.version(name) for name in TABLES if run.tables.exists(name)}


@dataclass(frozen=True)
class Prepared:
    """A workspace that holds everything but a model.

    Attributes:
        results: of each stage that ran.
    """

    data: DataSet
    run: Run
    results: dict[str, StageResult]
