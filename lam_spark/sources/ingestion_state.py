"""The table `ingestion_state`: which parts of the inputs each reader has ingested.

Files are identified by path, size and modification time; a Delta table by its version; a database by the highest
value of its watermark. A reader is a channel or a link statement. Two readers of one input each ingest all of it,
and a reader that is added later starts from the beginning.

Cost: a listing of the files and one anti-join with `ingestion_state`; only new parts come to the driver (the files of
a night; all files the first time).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.errors import ConfigError
from lam_spark.sources.delta import delta_increment
from lam_spark.sources.files import new_files
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.sources.jdbc import jdbc_increment
from lam_spark.sources.mapping_digest import mapping_digest
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.tables.registry import TABLES
from lam_spark.storage.tables.store import Tables


@dataclass(frozen=True)
class IngestionState:
    """What a reader has ingested so far: the digests of its mappings, and the part ingested last."""

    mappings: frozenset[str]
    last: Part


def find_increments(
    tables: Tables, config: Config, readers: Iterable[str], run_id: str
) -> list[SourceIncrement]:
    """The increment of each reader, in the order of `readers`; one without parts where nothing is new.

    Raises:
        ConfigError: An input does not exist, or a reader's mapping changed since its rows were ingested.
    """
    ingested = None if config.ingest.rebuild else tables.read_if_exists("ingestion_state")
    states = {} if ingested is None else _states(ingested)
    increments = {reader: _empty_increment(config, reader, states.get(reader)) for reader in readers}
    of_files: dict[str, str] = {}
    for reader, increment in increments.items():
        spec = config.inputs[increment.input]
        last = states[reader].last if reader in states else None
        if spec.format == "delta":
            increments[reader] = delta_increment(tables.spark, increment, spec, last)
        elif spec.format == "jdbc":
            increments[reader] = jdbc_increment(tables.spark, increment, spec, last, run_id)
        else:
            of_files[reader] = increment.input
    for reader, parts in new_files(tables.spark, config.inputs, of_files, ingested).items():
        in_order = tuple(sorted(parts, key=lambda part: part.name))
        increments[reader] = dataclasses.replace(increments[reader], parts=in_order)
    return list(increments.values())


def update_ingestion_state(
    tables: Tables,
    increments: Iterable[SourceIncrement],
    run_id: str,
    started_at: dt.datetime,
    rebuild: bool,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Record increments as ingested; a rebuild drops all earlier records. `metadata` is stored with the commit."""
    rows = [
        (
            increment.reader,
            increment.input,
            part.name,
            part.size,
            part.modified,
            increment.mapping,
            list(increment.lookups.items()),
            run_id,
            part.ingested_at or started_at,
        )
        for increment in increments
        for part in increment.parts
    ]
    columns = TABLES["ingestion_state"].columns
    schema = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    frame = local_frame(tables.spark, rows, schema)
    if rebuild:
        tables.overwrite(frame, "ingestion_state", metadata=metadata)
    elif rows:
        tables.append(frame, "ingestion_state", metadata)


def recorded_metadata(tables: Tables, key: str) -> dict[str, Any]:
    """What the commit of the present rows says under a key (`update_ingestion_state`); empty if nothing."""
    metadata = tables.commit_metadata("ingestion_state") if tables.exists("ingestion_state") else None
    return dict((metadata or {}).get(key, {}))


def _states(ingested: DataFrame) -> dict[str, IngestionState]:
    """State of each reader in the table."""
    states = ingested.groupBy("reader").agg(
        F.collect_set("mapping").alias("_mappings"),
        F.max_by(F.struct("part", "size"), "ingested_at").alias("_last"),
    )
    return {
        row["reader"]: IngestionState(
            frozenset(row["_mappings"]), Part(row["_last"]["part"], row["_last"]["size"])
        )
        for row in states.toLocalIterator()
    }


def _empty_increment(config: Config, reader: str, state: IngestionState | None) -> SourceIncrement:
    """Increment of a reader without parts.

    Raises:
        ConfigError: The mapping differs from that of the rows ingested so far.
    """
    spec = config.reader(reader)
    mapping = mapping_digest(config, reader)
    if state is not None and state.mappings != {mapping}:
        raise ConfigError(
            f"the select, columns, rules, fields or arrival_delay of {reader!r} changed since its rows were ingested "
            "(or, if links assign its ids, identity.max_customers or lookback_days): new rows would not mean the same "
            "as the old ones. Run once with --set ingest.rebuild=true, which reads all inputs again, or restore the "
            "mapping"
        )
    return SourceIncrement(reader, spec.grain, (), None, mapping, is_first=state is None)
