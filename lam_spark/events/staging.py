"""New raw rows of each reader, mapped and checked once, in folders that only this run reads."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.errors import DataQualityError
from lam_spark.events.mapping import map_channel, map_links
from lam_spark.events.quarantine import REASON, malformed_rows
from lam_spark.events.rules import TimeLimits
from lam_spark.runtime.log import RunLog
from lam_spark.sources.files import Input
from lam_spark.sources.increment import SourceIncrement
from lam_spark.sources.inputs import Inputs, count_lines
from lam_spark.sources.lookups import Lookups
from lam_spark.storage.dataframes import materialize, union_all
from lam_spark.storage.session_settings import configured_sql
from lam_spark.storage.time import instant, sql_literal


@dataclass(frozen=True)
class StagedRows:
    """New rows of one reader.

    Attributes:
        frame: One row per raw row; the columns of `map_channel`, or of `map_links` for a link statement.
        well_formed: Number of rows that parse.
        malformed: Number of lines that do not parse.
    """

    frame: DataFrame
    well_formed: int
    malformed: int

    @property
    def count(self) -> int:
        """Number of raw rows, malformed lines included."""
        return self.well_formed + self.malformed


@dataclass(frozen=True)
class TimeSpan:
    """First and last time of the accepted events, microseconds since 1970 (UTC); None if there are none."""

    first: int | None = None
    last: int | None = None

    def condition(self) -> str:
        """SQL condition for events of the span; with literals, so that Delta can skip files."""
        if self.first is None or self.last is None:
            return "false"
        return f"event_time BETWEEN {sql_literal(instant(self.first))} AND {sql_literal(instant(self.last))}"


@dataclass(frozen=True)
class StagedCounts:
    """Counts of staged rows.

    Attributes:
        refused: Refused rows by reader and reason.
        span: Time span of the accepted events.
    """

    refused: dict[str, dict[str, int]]
    span: TimeSpan


@dataclass(frozen=True)
class _Opened:
    """An opened slice and the name of its folder."""

    name: str
    slice: SourceIncrement
    input: Input


def stage_increments(
    lookups: Lookups,
    config: Config,
    slices: Mapping[str, Sequence[SourceIncrement]],
    started_at: dt.datetime,
    staging: Path,
    log: RunLog,
) -> dict[str, StagedRows]:
    """Map the new rows of each reader, each slice with its versions of the look-ups into a folder of its own.

    Args:
        lookups: Look-ups of the run.
        config: Configuration of the data set.
        slices: New rows of the readers (`slice_increments`).
        started_at: Start of the run (UTC).
        staging: Folder of this run.
        log: Gets one event per reader.

    Raises:
        ConfigError: An input, a select or a rule is wrong.
        DataQualityError: The first load of a reader has no rows, or rows of a look-up's version were deleted.
    """
    opened = {reader: _open(lookups, reader, of_reader, staging) for reader, of_reader in slices.items()}
    line_counts = count_lines({each.name: each.input for parts in opened.values() for each in parts})
    limits = TimeLimits.of(config, started_at)
    staged = {}
    for reader, parts in opened.items():
        counts = [line_counts.get(each.name, (0, 0)) for each in parts]
        well_formed, malformed = sum(rows for rows, _ in counts), sum(lines for _, lines in counts)
        if slices[reader][0].is_first and not well_formed + malformed:
            name = slices[reader][0].input
            path = config.inputs[name].path or "a table"
            raise DataQualityError(
                f"{_section(config, reader)}: its input {name!r} ({path}) has no rows. An empty first "
                "load is refused, because a wrong path is more likely than a channel without rows. Check the path"
            )
        frames = []
        for each, (_, lines) in zip(parts, counts, strict=True):
            mapped = _map_rows(lookups.inputs(each.slice.lookups), config, reader, limits, each.input)
            if each.input.malformed is not None and lines:
                mapped = mapped.union(malformed_rows(mapped, each.input.malformed, reader))
            frames.append(materialize(mapped, staging / each.name))
        staged[reader] = StagedRows(union_all(frames), well_formed, malformed)
        log.event(
            "staged",
            reader=reader,
            parts=sum(len(each.slice.parts) for each in parts),
            rows=well_formed,
            malformed=malformed,
            undeclared_columns=sorted({column for each in parts for column in each.input.undeclared}),
        )
    return staged


def _open(lookups: Lookups, reader: str, slices: Sequence[SourceIncrement], staging: Path) -> list[_Opened]:
    """The slices of a reader that have rows to read."""
    inputs = lookups.inputs({})
    opened = []
    for number, each in enumerate(slices):
        if each.parts:
            name = f"{reader}.{number}" if number else reader
            opened.append(_Opened(name, each, inputs.open_increment(each, staging / f"{name}.landed")))
    return opened


def _map_rows(inputs: Inputs, config: Config, reader: str, limits: TimeLimits, new: Input) -> DataFrame:
    fold_case, zone = config.identity.fold_case, config.time_zone
    # The types that a select yields are cast, and rules are analysed, as the select itself is.
    with configured_sql(inputs.spark):
        if reader in config.channels:
            return map_channel(
                inputs, reader, config.channels[reader], config.fields, limits, new, zone, fold_case
            )
        return map_links(inputs, reader, config.identity.links[reader], limits, new, zone, fold_case)


def count_staged(config: Config, staged: Mapping[str, StagedRows]) -> StagedCounts:
    """Count staged rows by reader and reason, in one pass.

    Raises:
        DataQualityError: A select multiplies or drops rows.
    """
    frames = []
    for reader, rows in staged.items():
        time = F.col("event_time") if reader in config.channels else F.lit(None).cast("timestamp")
        frames.append(rows.frame.select(F.lit(reader).alias("_reader"), REASON, time.alias("_time")))
    groups = (
        union_all(frames)
        .groupBy("_reader", REASON)
        .agg(
            F.count("*").alias("_rows"),
            F.unix_micros(F.min("_time")).alias("_first"),
            F.unix_micros(F.max("_time")).alias("_last"),
        )
    )
    refused: dict[str, dict[str, int]] = {reader: {} for reader in staged}
    mapped = {reader: -rows.malformed for reader, rows in staged.items()}
    spans = []
    for row in groups.orderBy("_reader", REASON).toLocalIterator():
        mapped[row["_reader"]] += row["_rows"]
        if row[REASON] is not None:
            refused[row["_reader"]][row[REASON]] = row["_rows"]
        elif row["_first"] is not None:
            spans.append((row["_first"], row["_last"]))
    for reader, rows in staged.items():
        if mapped[reader] != rows.well_formed:
            raise DataQualityError(
                f"{_section(config, reader)}.select gave {mapped[reader]:,} rows for {rows.well_formed:,} rows of its "
                f"grain {config.reader(reader).grain!r}: a join multiplies or drops rows. Aggregate the other side to "
                "one row per key, and use LEFT JOIN"
            )
    span = TimeSpan(min(first for first, _ in spans), max(last for _, last in spans)) if spans else TimeSpan()
    return StagedCounts(refused, span)


def _section(config: Config, reader: str) -> str:
    return f"{'channels' if reader in config.channels else 'identity.links'}.{reader}"
