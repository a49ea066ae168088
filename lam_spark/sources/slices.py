"""New rows of a reader, divided by the versions of the look-ups that map them.

On a night all new rows are mapped with the newest versions. A rebuild maps a part that was ingested before with the
versions recorded for it in `ingestion_state`: files by themselves, a database with a watermark in ranges of it. A
Delta table and a database without a watermark (or with another one than then) are read as they are now, which does not
say which row came when; neither does a file that was changed. Such rows are mapped with the newest versions, and the
result of the stage says so.

Cost: in a rebuild, all rows of `ingestion_state` come to the driver (the files of all nights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.sources.ingestion_state import recorded_metadata
from lam_spark.sources.lookups import Lookups, incomplete
from lam_spark.sources.mapping_digest import lookups_behind
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import instant

_FILES = ("parquet", "csv", "json")
_PLACES = {"delta": "the Delta table", "jdbc": "the database of"}
_WATERMARKS = "watermarks"  # key in the metadata of `ingestion_state`


@dataclass(frozen=True)
class RecordedPart:
    """A part in the table `ingestion_state`.

    Attributes:
        part: The part, with the time of its first ingestion.
        lookups: Look-up -> version that mapped it.
    """

    part: Part
    lookups: Mapping[str, int]


@dataclass
class Slices:
    """Increments whose rows are all mapped with the same versions.

    Attributes:
        by_reader: The slices of each reader; together they are its increment.
        remapped: Reader -> why some of its earlier rows are mapped with the newest versions.
    """

    by_reader: dict[str, list[SourceIncrement]] = field(default_factory=dict)
    remapped: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[SourceIncrement]:
        """The slices of all readers."""
        return [each for slices in self.by_reader.values() for each in slices]


def kept_lookups(config: Config, reader: str) -> list[str]:
    """Look-ups of a reader whose versions are kept."""
    return [name for name in lookups_behind(config, reader) if config.inputs[name].keep_versions]


def all_kept_lookups(config: Config) -> list[str]:
    """Look-ups of all readers whose versions are kept, sorted."""
    readers = [*config.identity.links, *config.channels]
    return sorted({name for reader in readers for name in kept_lookups(config, reader)})


def slice_increments(
    tables: Tables, config: Config, increments: Iterable[SourceIncrement], lookups: Lookups
) -> Slices:
    """Divide the increments of a run.

    Raises:
        DataQualityError: A version that mapped rows is not recorded any more.
    """
    recorded = _recorded_parts(tables) if config.ingest.rebuild else {}
    watermarks = recorded_metadata(tables, _WATERMARKS)
    slices = Slices()
    for increment in increments:
        reader = increment.reader
        newest = {name: lookups.newest[name] for name in kept_lookups(config, reader) if increment.parts}
        earlier, lost = _with_usable_versions(recorded.get(reader, ()), newest, lookups)
        spec = config.inputs[increment.input]
        if spec.format in _FILES:
            slices.by_reader[reader], reason = slice_files(increment, earlier, newest)
        elif spec.watermark is not None and watermarks.get(reader) == [increment.input, spec.watermark]:
            slices.by_reader[reader], reason = slice_ranges(increment, earlier, newest), ""
        else:
            slices.by_reader[reader] = [dataclasses.replace(increment, lookups=newest)]
            differs = any(each.lookups != newest for each in earlier)
            place = f"{_PLACES[spec.format]} {increment.input}"
            reason = f"{place} does not say which row came when" if differs else ""
        if lost or reason:
            slices.remapped[reader] = "; ".join(filter(None, (lost, reason)))
    return slices


def watermark_metadata(
    tables: Tables, config: Config, increments: Iterable[SourceIncrement]
) -> dict[str, Any]:
    """Which column the watermarks of a reader belong to, for the commit of `ingestion_state`."""
    present = {
        each.reader: [each.input, config.inputs[each.input].watermark]
        for each in increments
        if config.inputs[each.input].watermark is not None
    }
    return {_WATERMARKS: recorded_metadata(tables, _WATERMARKS) | present}


def _recorded_parts(tables: Tables) -> dict[str, list[RecordedPart]]:
    """Parts of each reader, oldest first."""
    table = tables.read_if_exists("ingestion_state")
    parts: dict[str, list[RecordedPart]] = {}
    if table is not None:
        columns = ("reader", "part", "size", "modified", "lookups", F.unix_micros("ingested_at").alias("_at"))
        for row in table.select(*columns).orderBy("_at").toLocalIterator():
            part = Part(row["part"], row["size"], row["modified"], instant(row["_at"]))
            parts.setdefault(row["reader"], []).append(RecordedPart(part, row["lookups"] or {}))
    return parts


def _with_usable_versions(
    parts: Sequence[RecordedPart], newest: Mapping[str, int], lookups: Lookups
) -> tuple[list[RecordedPart], str]:
    """Parts with a version of each present look-up, and why some versions cannot be used (empty if none).

    A look-up that did not map a part has no version recorded for it: the newest one maps it.
    """
    lost: dict[str, None] = {}
    completed = []
    for each in parts:
        versions = dict(newest)
        for name, version in each.lookups.items():
            if name not in newest:
                continue
            recorded = lookups.recorded.get(name, {}).get(version)
            if recorded is None:
                raise incomplete(name, version, "is not in the table lookup_versions")
            if recorded.gives(lookups.schema(name)):
                versions[name] = version
            else:
                lost[f"version {version} of {name} lacks a column that is declared now"] = None
        completed.append(RecordedPart(each.part, versions))
    return completed, "; ".join(lost)


def slice_files(
    increment: SourceIncrement, earlier: Sequence[RecordedPart], newest: Mapping[str, int]
) -> tuple[list[SourceIncrement], str]:
    """One slice of files for each set of versions.

    Args:
        increment: All files of the reader's input.
        earlier: Files as they were ingested.
        newest: Versions that map new files.

    Returns:
        The slices, and why files are mapped with other versions than some of their rows were (empty if none is).
    """
    known = {(each.part.name, each.part.size, each.part.modified): each for each in earlier}
    of_path: dict[str, list[Mapping[str, int]]] = {}
    for each in earlier:
        of_path.setdefault(each.part.name, []).append(each.lookups)
    groups: dict[tuple[tuple[str, int], ...], list[Part]] = {}
    changed = 0
    for part in increment.parts:
        same = known.get((part.name, part.size, part.modified))
        versions = newest if same is None else same.lookups
        ingested_at = None if same is None else same.part.ingested_at
        group = groups.setdefault(tuple(sorted(versions.items())), [])
        group.append(dataclasses.replace(part, ingested_at=ingested_at))
        changed += any(other != versions for other in of_path.get(part.name, ()))
    slices = [
        dataclasses.replace(increment, parts=tuple(parts), lookups=dict(versions))
        for versions, parts in groups.items()
    ]
    if not slices:
        slices = [increment]
    reason = f"{changed:,} files were changed after they were first ingested" if changed else ""
    return slices, reason


def slice_ranges(
    increment: SourceIncrement, earlier: Sequence[RecordedPart], newest: Mapping[str, int]
) -> list[SourceIncrement]:
    """One slice for each range of the watermark that a run has read, and one for the rows above the last of them.

    Args:
        increment: All rows of the reader's input, up to its watermark.
        earlier: Watermarks up to which runs have read, oldest first.
        newest: Versions that map the rows above the last of them.
    """
    slices = []
    after = increment.after
    for each in earlier:
        if each.part.name != after:
            slices.append(
                dataclasses.replace(increment, parts=(each.part,), after=after, lookups=each.lookups)
            )
        after = each.part.name
    if not slices:
        return [dataclasses.replace(increment, lookups=newest)]
    if increment.parts and increment.parts[0].name != after:
        slices.append(dataclasses.replace(increment, after=after, lookups=newest))
    elif increment.parts:  # rows at the last watermark may have been added since
        last = dataclasses.replace(increment.parts[0], ingested_at=slices[-1].parts[0].ingested_at)
        slices[-1] = dataclasses.replace(slices[-1], parts=(last,))
    return slices
