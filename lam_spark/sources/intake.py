"""What an input holds that a reader has not taken yet, and the table `intake` that remembers what was taken.

Files are known by path, size and time of change; a Delta table by its version; a database by the highest value
of its watermark. A reader is a channel or a link statement: two readers of one input each take all of it, and a
reader that comes later starts from the beginning.

Cost: a listing of the files and one anti-join with `intake`; only what is new comes to the driver (a night's
files; all of them the first time).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, InputConfig
from lam_spark.errors import ConfigError
from lam_spark.run import Run
from lam_spark.sources.readers import jdbc_frame, not_found

_SCHEMA = (
    "reader STRING, input STRING, part STRING, size BIGINT, modified TIMESTAMP, mapping STRING, run_id STRING, "
    "taken_at TIMESTAMP"
)


@dataclass(frozen=True)
class Part:
    """One thing that is taken whole: a file, a Delta version, everything up to a watermark."""

    name: str
    size: int | None = None
    modified: dt.datetime | None = None


@dataclass(frozen=True)
class Delivery:
    """What is new for one reader.

    Attributes:
        parts: new files; or one part, the Delta version or the watermark to read up to. Empty: nothing new.
        after: the Delta version or watermark that was read up to before.
        mapping: digest of how the reader maps its rows.
    """

    reader: str
    input: str
    parts: tuple[Part, ...]
    after: str | None
    mapping: str


def mapping_digest(config: Config, reader: str) -> str:
    """sha256 of everything in the configuration that decides what a reader makes of a raw row."""
    spec = config.channels.get(reader) or config.identity.links[reader]
    source = config.inputs[spec.grain]
    named = {name: text for name, text in config.views.items() if re.search(rf"\b{name}\b", spec.select)}
    fields = {
        name: field.model_dump(include={"kind", "min", "max", "values"})
        for name, field in config.fields.items()
    }
    described = [
        spec.model_dump(mode="json"),
        named,
        source.format,
        source.columns,
        fields if reader in config.channels else {},
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def find_new(run: Run, reader: str) -> Delivery:
    """What `reader` has not taken yet.

    Raises:
        ConfigError: the input is not there, or the reader's mapping changed since its rows were taken.
    """
    config = run.config
    spec = config.channels.get(reader) or config.identity.links[reader]
    source, mapping = config.inputs[spec.grain], mapping_digest(config, reader)
    taken = None
    if run.tables.exists("intake") and not config.ingest.rebuild:
        taken = run.tables.read("intake").where(F.col("reader") == reader)
        others = taken.where(F.col("mapping") != mapping).limit(1)
        if not others.isEmpty():
            raise ConfigError(
                f"the select, columns, rules or fields of {reader!r} changed since its rows were taken: new rows "
                "would not mean the same as the old ones. Run once with --set ingest.rebuild=true, which reads "
                "all inputs again, or restore the mapping"
            )
    if source.format == "delta":
        return _new_version(run, reader, spec.grain, source, taken, mapping)
    if source.format == "jdbc":
        return _new_rows(run, reader, spec.grain, source, taken, mapping)
    return _new_files(run, reader, spec.grain, source, taken, mapping)


def note_taken(run: Run, deliveries: list[Delivery], replace: bool) -> None:
    """Remember what was taken; `replace` forgets all that was taken before."""
    rows = [
        (d.reader, d.input, part.name, part.size, part.modified, d.mapping, run.run_id, run.started_at)
        for d in deliveries
        for part in d.parts
    ]
    frame = run.spark.createDataFrame(rows, _SCHEMA)
    if replace:
        run.tables.overwrite(frame, "intake")
    else:
        run.tables.append(frame, "intake")


def _new_files(
    run: Run, reader: str, name: str, source: InputConfig, taken: DataFrame | None, mapping: str
) -> Delivery:
    try:
        # The listing alone: a binary file's content is read only by who selects it.
        listing = (
            run.spark.read.format("binaryFile")
            .option("recursiveFileLookup", "true")
            .load(source.path)
            .select(
                F.col("path").alias("part"),
                F.col("length").alias("size"),
                F.col("modificationTime").alias("modified"),
            )
        )
    except AnalysisException as error:
        raise not_found(name, source, error) from error
    if taken is not None:
        listing = listing.join(taken.select("part", "size", "modified"), ["part", "size", "modified"], "anti")
    parts = tuple(
        Part(row["part"], row["size"], row["modified"]) for row in listing.orderBy("part").toLocalIterator()
    )
    return Delivery(reader, name, parts, None, mapping)


def _new_version(
    run: Run, reader: str, name: str, source: InputConfig, taken: DataFrame | None, mapping: str
) -> Delivery:
    try:
        newest = DeltaTable.forPath(run.spark, source.path).history(1).select("version").first()
    except AnalysisException as error:
        raise not_found(name, source, error) from error
    assert newest is not None  # a Delta table has a first version
    version = str(newest["version"])
    after = _last(taken)
    if after is not None and int(after) > int(version):
        raise ConfigError(
            f"inputs.{name}: {source.path} is at version {version}, {reader!r} has taken version {after}: the "
            "table was made anew. Run once with --set ingest.rebuild=true"
        )
    return Delivery(reader, name, () if after == version else (Part(version),), after, mapping)


def _new_rows(
    run: Run, reader: str, name: str, source: InputConfig, taken: DataFrame | None, mapping: str
) -> Delivery:
    if source.watermark is None:
        return Delivery(reader, name, (Part(f"whole, {run.run_id}"),), None, mapping)
    options = source.options
    table = options.get("dbtable") or f"({options['query']}) source"
    query = f"SELECT max({source.watermark}) AS top FROM {table}"
    top = jdbc_frame(run.spark, name, source, query).select(F.col("top").cast("string")).first()
    after = _last(taken)
    highest = top["top"] if top else None
    if highest is None and after is None:
        return Delivery(reader, name, (Part("no rows"),), None, mapping)
    return Delivery(reader, name, () if highest in (None, after) else (Part(str(highest)),), after, mapping)


def _last(taken: DataFrame | None) -> str | None:
    """The version or watermark taken last."""
    if taken is None:
        return None
    row = taken.agg(F.max_by("part", "taken_at").alias("part")).first()
    return row["part"] if row else None
