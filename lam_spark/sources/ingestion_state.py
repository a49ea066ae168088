"""What an input holds that a reader has not taken yet, and the table `ingestion_state` that remembers what was taken.

Files are known by path, size and time of change; a Delta table by its version; a database by the highest value
of its watermark. A reader is a channel or a link statement: two readers of one input each take all of it, and a
reader that comes later starts from the beginning.

Cost: a listing of the files and one anti-join with `ingestion_state`; only what is new comes to the driver (a night's
files; all of them the first time).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, InputConfig
from lam_spark.errors import ConfigError
from lam_spark.identity.pseudonyms import CUSTOMER
from lam_spark.runtime.context import Run
from lam_spark.sources.inputs import Delivery, Part, not_found
from lam_spark.sources.jdbc import highest_watermark, rows_at
from lam_spark.storage.dataframes import local_frame

_SCHEMA = (
    "reader STRING, input STRING, part STRING, size BIGINT, modified BIGINT, mapping STRING, run_id STRING, "
    "taken_at TIMESTAMP"
)


def mapping_digest(config: Config, reader: str) -> str:
    """sha256 of everything in the configuration that decides what a reader makes of a raw row."""
    spec = config.reader(reader)
    views = _views_behind(config, spec.select)
    named = _named([spec.select, *views.values()], config.inputs)
    fields = {
        name: field.model_dump(include={"kind", "min", "max", "values"})
        for name, field in config.fields.items()
    }
    described = [
        spec.model_dump(mode="json"),
        views,
        # Those that the rows come from, and those that are looked up.
        {name: _described(config.inputs[name]) for name in sorted({spec.grain, *named})},
        fields if reader in config.channels else {},
        config.quality.earliest.isoformat() if reader in config.channels else "",
    ]
    if reader in config.channels and config.channels[reader].id != CUSTOMER:
        described.append(config.identity.model_dump(include={"max_customers", "lookback_days"}))
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(source: InputConfig) -> list[Any]:
    """What of an input decides what a row of it says."""
    # Where a database is, and how it is read, says nothing of its rows.
    options = {
        k: v for k, v in source.options.items() if source.format != "jdbc" or k in ("dbtable", "query")
    }
    return [source.format, source.columns, options, source.watermark]


def _views_behind(config: Config, statement: str) -> dict[str, str]:
    """The views that a statement names, and those that they name."""
    behind: dict[str, str] = {}
    texts = [statement]
    while texts:
        found = [name for name in _named([texts.pop()], config.views) if name not in behind]
        behind |= {name: config.views[name] for name in found}
        texts += [config.views[name] for name in found]
    return behind


def _named(statements: Iterable[str], names: Iterable[str]) -> set[str]:
    """Which of the names stand in one of the statements."""
    text = "\n".join(statements)
    return {name for name in names if re.search(rf"\b{name}\b", text)}


@dataclass(frozen=True)
class Taken:
    """What a reader has taken so far: the digests of how it mapped its rows, and the part taken last."""

    mappings: frozenset[str]
    last: Part


def taken_so_far(run: Run) -> dict[str, Taken]:
    """What each reader has taken; nobody anything where all inputs are to be read again."""
    if not run.tables.exists("ingestion_state") or run.config.ingest.rebuild:
        return {}
    grouped = (
        run.tables.read("ingestion_state")
        .groupBy("reader")
        .agg(
            F.collect_set("mapping").alias("mappings"),
            F.max_by(F.struct("part", "size"), "taken_at").alias("last"),
        )
    )
    return {
        row["reader"]: Taken(frozenset(row["mappings"]), Part(row["last"]["part"], row["last"]["size"]))
        for row in grouped.toLocalIterator()
    }


def find_new(run: Run, readers: Iterable[str]) -> list[Delivery]:
    """What each of `readers` has not taken yet, in their order.

    Raises:
        ConfigError: an input is not there, or a reader's mapping changed since its rows were taken.
    """
    taken = taken_so_far(run)
    found = {reader: _nothing_new(run, reader, taken.get(reader)) for reader in readers}
    listings = []
    for reader, nothing in found.items():
        source, last = run.config.inputs[nothing.input], taken.get(reader)
        if source.format == "delta":
            found[reader] = _new_version(run, nothing, source, last)
        elif source.format == "jdbc":
            found[reader] = _new_rows(run, nothing, source, last)
        else:
            listings.append(_listing(run, nothing, source))
    for reader, parts in _new_files(run, listings).items():
        found[reader] = dataclasses.replace(found[reader], parts=tuple(sorted(parts, key=lambda p: p.name)))
    return list(found.values())


def _nothing_new(run: Run, reader: str, taken: Taken | None) -> Delivery:
    config = run.config
    spec = config.reader(reader)
    mapping = mapping_digest(config, reader)
    if taken is not None and taken.mappings != {mapping}:
        raise ConfigError(
            f"the select, columns, rules or fields of {reader!r} changed since its rows were taken (or, where it looks "
            "up whose an id is, identity.max_customers or lookback_days): new rows "
            "would not mean the same as the old ones. Run once with --set ingest.rebuild=true, which reads "
            "all inputs again, or restore the mapping"
        )
    return Delivery(reader, spec.grain, (), None, mapping, is_first=taken is None)


def note_taken(run: Run, deliveries: Iterable[Delivery]) -> None:
    """Remember what was taken; a rebuild forgets all that was taken before."""
    rows = [
        (d.reader, d.input, part.name, part.size, part.modified, d.mapping, run.run_id, run.started_at)
        for d in deliveries
        for part in d.parts
    ]
    frame = local_frame(run.spark, rows, _SCHEMA)
    if run.config.ingest.rebuild:
        run.tables.overwrite(frame, "ingestion_state")
    elif rows:
        run.tables.append(frame, "ingestion_state")


def _listing(run: Run, nothing: Delivery, source: InputConfig) -> DataFrame:
    """The files of a reader's input: `reader, part, size, modified`."""
    try:
        # The listing alone: a binary file's content is read only by who selects it.
        files = run.spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(source.path)
    except AnalysisException as error:
        raise not_found(nothing.input, source, error) from error
    return files.select(
        F.lit(nothing.reader).alias("reader"),
        F.col("path").alias("part"),
        F.col("length").alias("size"),
        F.unix_micros("modificationTime").alias("modified"),
    )


def _new_files(run: Run, listings: list[DataFrame]) -> dict[str, list[Part]]:
    """Those files that no reader has taken as they are now, by reader."""
    if not listings:
        return {}
    listed = listings[0]
    for listing in listings[1:]:
        listed = listed.union(listing)
    if run.tables.exists("ingestion_state") and not run.config.ingest.rebuild:
        listed = listed.join(run.tables.read("ingestion_state"), listed.columns, "left_anti")
    found: dict[str, list[Part]] = {}
    for row in listed.toLocalIterator():
        found.setdefault(row["reader"], []).append(Part(row["part"], row["size"], row["modified"]))
    return found


def _new_version(run: Run, nothing: Delivery, source: InputConfig, taken: Taken | None) -> Delivery:
    try:
        table = DeltaTable.forPath(run.spark, source.path)
        newest, detail = table.history(1).select("version").first(), table.detail().first()
    except AnalysisException as error:
        raise not_found(nothing.input, source, error) from error
    assert newest is not None and detail is not None  # a Delta table has a first version  # noqa: PT018
    version, after = str(newest["version"]), taken.last.name if taken else None
    if after is not None and int(after) > int(version):
        raise ConfigError(
            f"inputs.{nothing.input}: {source.path} is at version {version}, {nothing.reader!r} has taken version "
            f"{after}: the table was made anew. Run once with --set ingest.rebuild=true"
        )
    return dataclasses.replace(
        nothing,
        parts=() if after == version else (Part(version),),
        after=after,
        has_feed=detail["properties"].get("delta.enableChangeDataFeed") == "true"
        and (after is None or _tells_since(run, source, int(after) + 1, version)),
    )


def _tells_since(run: Run, source: InputConfig, first: int, last: str) -> bool:
    """Whether the table's change feed was on in all these versions; where there is none, there is nothing to tell."""
    if first > int(last):
        return True
    feed = run.spark.read.format("delta").options(**source.options).option("readChangeFeed", "true")
    try:
        feed.option("startingVersion", first).option("endingVersion", last).load(source.path).isEmpty()
    except Exception as error:  # whichever: Delta says it when the feed is planned or when it is read
        if "DELTA_MISSING_CHANGE_DATA" in str(error):
            return False
        raise
    return True


def _new_rows(run: Run, nothing: Delivery, source: InputConfig, taken: Taken | None) -> Delivery:
    """Rows above the watermark that was taken last; those at it again if there are more of them now."""
    if source.watermark is None:
        return dataclasses.replace(nothing, parts=(Part(f"whole, {run.run_id}"),))
    top = highest_watermark(run.spark, nothing.input, source)
    if top is None:
        return nothing
    part = Part(top.value, size=top.rows)
    if taken is None:
        return dataclasses.replace(nothing, parts=(part,))
    last = taken.last
    now_there = rows_at(run.spark, nothing.input, source, last.name)
    grown = now_there > (last.size or 0)
    parts = (part,) if grown or part.name != last.name else ()
    return dataclasses.replace(nothing, parts=parts, after=last.name, includes_after=grown)
