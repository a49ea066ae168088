"""New raw rows of the readers, mapped and judged once, into folders that nothing but this run reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.events.mapping import RAW, REASON, judged_links, map_channel
from lam_spark.runtime.context import Run
from lam_spark.sources.inputs import Delivery, Input, Inputs, count_lines

MICROS = "yyyy-MM-dd HH:mm:ss.SSSSSS"
MALFORMED_REASON = "line does not parse under the declared columns"


@dataclass(frozen=True)
class Staged:
    """What is new of one reader.

    Attributes:
        frame: a raw row each; the columns of `map_channel` (of `judged_links` for a link statement).
        well_formed: rows that the reader could parse.
        malformed: lines that it could not.
    """

    frame: DataFrame
    well_formed: int
    malformed: int

    @property
    def rows(self) -> int:
        """Raw rows, malformed lines included."""
        return self.well_formed + self.malformed


@dataclass(frozen=True)
class Span:
    """First and last time of the accepted rows (UTC, to the microsecond); None without any."""

    first: str | None = None
    last: str | None = None

    def condition(self) -> str:
        """SQL: an event lies in it. Written out, so that Delta can leave out files by it."""
        if self.first is None:
            return "false"
        return f"event_time BETWEEN TIMESTAMP '{self.first}' AND TIMESTAMP '{self.last}'"


@dataclass(frozen=True)
class Verdict:
    """What was found of staged rows: how many were refused, by reader and reason, and the span of the others."""

    refused: dict[str, dict[str, int]]
    span: Span


def written_down(frame: DataFrame, folder: Path) -> DataFrame:
    """The frame, computed once into a folder. Its columns are known, so nobody has to look into the files."""
    frame.write.mode("overwrite").parquet(str(folder))
    return frame.sparkSession.read.schema(frame.schema).parquet(str(folder))


def stage_deliveries(run: Run, inputs: Inputs, news: list[Delivery], staging: Path) -> dict[str, Staged]:
    """Map what is new, by reader, each into a folder of its own.

    Raises:
        ConfigError: an input, a select or a rule is wrong.
        DataQualityError: a reader's first delivery without rows.
    """
    grains = {new.reader: inputs.new_rows(new, staging / f"{new.reader}.landed") for new in news if new.parts}
    counted = count_lines(grains)
    staged = {}
    for new in news:
        well_formed, malformed = counted.get(new.reader, (0, 0))
        if new.is_first and not well_formed + malformed:
            path = run.config.inputs[new.input].path or "a table"
            raise DataQualityError(
                f"{_section(run, new.reader)}: its input {new.input!r} ({path}) has no rows. An empty first "
                "delivery is refused: it is more often a wrong path than a silent channel"
            )
        grain = grains[new.reader]
        frame = _mapped(run, inputs, new, grain, malformed, staging / new.reader)
        staged[new.reader] = Staged(frame, well_formed, malformed)
        run.journal.event(
            "staged",
            reader=new.reader,
            parts=len(new.parts),
            rows=well_formed,
            malformed=malformed,
            undeclared_columns=list(grain.undeclared),
        )
    return staged


def _section(run: Run, reader: str) -> str:
    return f"{'channels' if reader in run.config.channels else 'identity.links'}.{reader}"


def _mapped(run: Run, inputs: Inputs, new: Delivery, grain: Input, malformed: int, folder: Path) -> DataFrame:
    inputs.narrow(new.input, grain)
    if new.reader in run.config.channels:
        mapped = map_channel(run, inputs, new.reader)
    else:
        mapped = judged_links(inputs, new.reader, run.config, run.started_at)
    if grain.malformed is not None and malformed:
        mapped = mapped.union(_malformed_like(mapped, grain.malformed, new.reader))
    return written_down(mapped, folder)


def _malformed_like(mapped: DataFrame, malformed: DataFrame, reader: str) -> DataFrame:
    """Lines that did not parse, as refused rows with the columns of the mapped ones."""
    given = {
        "source": F.lit(reader),
        REASON: F.lit(MALFORMED_REASON),
        RAW: F.make_valid_utf8(RAW),
    }
    return malformed.select(
        *(given.get(name, F.lit(None).cast(kind)).alias(name) for name, kind in mapped.dtypes)
    )


def judge(run: Run, staged: dict[str, Staged]) -> Verdict:
    """Count what is staged, in one pass.

    Raises:
        DataQualityError: a select multiplies or drops rows.
    """
    parts = []
    for reader, one in staged.items():
        time = F.col("event_time") if reader in run.config.channels else F.lit(None).cast("timestamp")
        parts.append(one.frame.select(F.lit(reader).alias("reader"), REASON, time.alias("event_time")))
    first, last = (F.date_format(bound("event_time"), MICROS) for bound in (F.min, F.max))
    groups = reduce(DataFrame.union, parts).groupBy("reader", REASON)
    counted = groups.agg(F.count("*").alias("rows"), first.alias("first"), last.alias("last"))
    refused: dict[str, dict[str, int]] = {reader: {} for reader in staged}
    made = {reader: -one.malformed for reader, one in staged.items()}
    spans = []
    for row in counted.orderBy("reader", REASON).toLocalIterator():
        made[row["reader"]] += row["rows"]
        if row[REASON] is not None:
            refused[row["reader"]][row[REASON]] = row["rows"]
        elif row["first"] is not None:
            spans.append((row["first"], row["last"]))
    for reader, one in staged.items():
        if made[reader] != one.well_formed:
            grain = run.config.reader(reader).grain
            raise DataQualityError(
                f"{_section(run, reader)}.select gave {made[reader]:,} rows for {one.well_formed:,} rows of its "
                f"grain {grain!r}: a join multiplies or drops rows. Aggregate the other side to one row a key, "
                "and use LEFT JOIN"
            )
    span = Span(min(first for first, _ in spans), max(last for _, last in spans)) if spans else Span()
    return Verdict(refused, span)
