"""Raw inputs under explicit schemas, as temporary views that the configuration's SQL reads.

Spark fills a column that a file lacks with nulls and turns a bad line into nulls. Both are refused here:
the columns of every input are compared with the declared ones before anything is read, and malformed lines
of CSV and JSON are kept apart in `_malformed`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from lam_spark.config import Config, InputConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.sources.jdbc import jdbc_rows, place_of

MALFORMED = "_malformed"
_WIDTH: dict[type[DataType], int] = {ByteType: 1, ShortType: 2, IntegerType: 3, LongType: 4}
# Decimal numbers of so many digits survive the way to a double and back.
_DIGITS_OF_A_DOUBLE = 15
_SAMPLED_LINES = 1000
# Of so many files of one delivery the columns are compared one by one; of more, an even spread of this many.
_COMPARED_FILES = 100


@dataclass(frozen=True)
class Part:
    """What is taken whole: a file (size in bytes, modified in microseconds since 1970), a Delta table's version,
    a database up to a watermark (its size is the number of rows that stand at it)."""

    name: str
    size: int | None = None
    modified: int | None = None


@dataclass(frozen=True)
class Delivery:
    """What is new of an input for one reader, a channel or a link statement.

    Attributes:
        parts: new files; or one part, the Delta version or the watermark to read up to. Empty: nothing new.
        after: the Delta version or the watermark that was read up to before.
        mapping: digest of how the reader maps its rows.
        is_first: whether the reader never took anything.
        has_feed: whether a Delta table tells what came after `after`.
        includes_after: whether more rows stand at the watermark `after` than were taken from there.
    """

    reader: str
    input: str
    parts: tuple[Part, ...]
    after: str | None
    mapping: str
    is_first: bool
    has_feed: bool = False
    includes_after: bool = False


@dataclass(frozen=True)
class Input:
    """An opened input.

    Attributes:
        rows: the well-formed rows, with the declared columns.
        malformed: lines that the reader could not parse, one column `raw`; None for binary formats.
        undeclared: columns that are there and that nobody declared; they are not read.
        lines: rows and malformed lines together, None for binary formats.
    """

    rows: DataFrame
    malformed: DataFrame | None
    undeclared: tuple[str, ...] = ()
    lines: DataFrame | None = None


def count_lines(inputs: Mapping[str, Input]) -> dict[str, tuple[int, int]]:
    """Well-formed rows and malformed lines of each input, all in one pass."""
    counted = None
    for name, source in inputs.items():
        every = source.rows if source.lines is None else source.lines
        bad = F.lit(None).cast("string") if source.lines is None else F.col(MALFORMED)
        lines = every.select(F.lit(name).alias("name"), bad.isNotNull().alias("malformed"))
        counted = lines if counted is None else counted.union(lines)
    if counted is None:
        return {}
    sums = counted.groupBy("name").agg(
        F.count_if(~F.col("malformed")).alias("rows"), F.count_if("malformed").alias("malformed")
    )
    return {row["name"]: (row["rows"], row["malformed"]) for row in sums.toLocalIterator()}


def open_input(spark: SparkSession, name: str, spec: InputConfig, new: Delivery | None = None) -> Input:
    """Open one input lazily, after checking that its columns are the declared ones.

    Args:
        spark: the session.
        name: the input's, for errors.
        spec: the input's section.
        new: read only this; the whole input where not given.

    Raises:
        ConfigError: no such path, bad DDL, or the declared columns are not in it or have another type.
    """
    schema = _declared(name, spec)
    paths = [spec.path] if new is None else [_literal(part.name) for part in new.parts]
    try:
        if spec.format == "delta":
            frame = _delta_rows(spark, spec, new)
        elif spec.format == "jdbc":
            frame = jdbc_rows(spark, name, spec, _rows_between(spec, new))
        else:
            return _open_files(spark, name, spec, schema, paths)
    except AnalysisException as error:
        raise not_found(name, spec, error) from error
    undeclared = _compare(name, spec, schema, frame.schema)
    return Input(frame.select(*(F.col(f.name).cast(f.dataType) for f in schema)), None, undeclared)


def not_found(name: str, spec: InputConfig, error: Exception) -> ConfigError:
    """What to say of an input that cannot be opened."""
    text = str(error)
    if "PATH_NOT_FOUND" in text or "doesn't exist" in text or "DELTA_MISSING_DELTA_TABLE" in text:
        return ConfigError(f"inputs.{name}: expected {spec.format} at {spec.path}, found nothing")
    return ConfigError(f"inputs.{name}: {spec.path} is not {spec.format}: {_first_line(error)}")


class Inputs:
    """The configured inputs and views of one stage: each is opened once, and only if a statement names it.

    A statement may name inputs and views; both become temporary views of the session.
    """

    def __init__(self, spark: SparkSession, config: Config) -> None:
        self._spark = spark
        self._config = config
        self._opened: dict[str, Input] = {}
        self._viewed: set[str] = set()
        self._new: dict[str, Input] = {}

    def __getitem__(self, name: str) -> Input:
        """Open an input, all of it, register its rows, and keep it open."""
        if name not in self._opened:
            self._opened[name] = open_input(self._spark, name, self._config.inputs[name])
            self._opened[name].rows.createOrReplaceTempView(name)
        return self._opened[name]

    def new_rows(self, new: Delivery, landing: Path) -> Input:
        """Open what is new for a reader.

        Rows of a database are copied into the folder `landing`: it would not hold still between two reads.
        """
        spec = self._config.inputs[new.input]
        found = open_input(self._spark, new.input, spec, new)
        if spec.format == "jdbc":
            found.rows.write.mode("overwrite").parquet(str(landing))
            kept = self._spark.read.schema(found.rows.schema).parquet(str(landing))
            found = dataclasses.replace(found, rows=kept)
        return found

    def narrow(self, name: str, new: Input) -> None:
        """Let the next select of this grain see only what is new; all others see the whole input."""
        self._new[name] = new

    def select(self, statement: str, where: str, grain: str | None = None) -> DataFrame:
        """Run a configured SQL select over the inputs and views that it names.

        Args:
            statement: Spark SQL.
            where: its place in the configuration, for errors.
            grain: the input whose malformed lines the caller takes care of, and of which the statement sees
                only what is new; all others, and the views, are whole, and malformed lines in them are refused.

        Raises:
            ConfigError: the statement does not parse or names something unknown.
            DataQualityError: a look-up holds lines that do not parse.
        """
        new = self._new.pop(grain, None) if grain else None
        for name in _named_in(statement, self._config.views):
            if name not in self._viewed:
                self._viewed.add(name)
                self.select(self._config.views[name], f"views.{name}").createOrReplaceTempView(name)
        for name in _named_in(statement, self._config.inputs):
            if name != grain or new is None:
                source = self[name]
                if name != grain:
                    refuse_malformed(name, source)
        if grain and new is not None:
            new.rows.createOrReplaceTempView(grain)
        try:
            return self._spark.sql(statement)
        except (ParseException, AnalysisException) as error:
            raise ConfigError(f"{where}: {_first_line(error)}") from error
        finally:
            if grain in self._opened:  # whoever names it as a look-up sees all of it
                self._opened[grain].rows.createOrReplaceTempView(grain)


def refuse_malformed(name: str, source: Input) -> None:
    """Stop where an input that has no quarantine of its own (a look-up, the ledger) holds a bad line.

    Raises:
        DataQualityError: at least one malformed line; they are counted, never shown.
    """
    if source.malformed is not None and not source.malformed.isEmpty():
        raise DataQualityError(
            f"inputs.{name}: {source.malformed.count():,} lines do not parse under the declared columns; "
            "mend the file, nothing was read from it"
        )


def _declared(name: str, spec: InputConfig) -> StructType:
    try:
        schema = StructType.fromDDL(spec.columns)
    except (ParseException, AnalysisException) as error:
        raise ConfigError(f"inputs.{name}.columns is not Spark DDL: {_first_line(error)}") from error
    assert isinstance(schema, StructType)  # a list of columns is never a simple type
    return schema


def _open_files(
    spark: SparkSession, name: str, spec: InputConfig, schema: StructType, paths: list[str]
) -> Input:
    undeclared: set[str] = set()
    step = max(1, -(-len(paths) // _COMPARED_FILES))
    # JSON lines have no header: a key that one file lacks may occur in the next.
    compared = [paths] if spec.format == "json" else [[path] for path in paths[::step]]
    for some in compared:
        undeclared |= set(_compare(name, spec, schema, _columns_present(spark, spec, some)))
    # A file of `day=2024-05-01/` has its day only with the folder above it as the base.
    is_folder = not any(path.endswith(_literal(spec.path)) for path in paths) and "*" not in spec.path
    base = {"basePath": spec.path} if is_folder else {}
    reader = spark.read.format(spec.format).options(**spec.options, **base)
    extra = tuple(sorted(undeclared))
    if spec.format == "parquet":
        frame = reader.schema(schema).load(paths)
        return Input(frame.select(*schema.names), None, extra)
    with_malformed = StructType([*schema.fields]).add(MALFORMED, StringType())
    lines = (
        reader.schema(with_malformed)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", MALFORMED)
        .option("header", "true")
        .load(paths)
    )
    # Spark parses only the columns that a query needs, and a line is malformed only if a needed one is. A
    # condition on all of them makes the verdict the same for every query.
    parsed = lines.where(F.xxhash64(*schema.names) >= F.lit(-(2**63)))
    return Input(
        rows=parsed.where(F.col(MALFORMED).isNull()).drop(MALFORMED),
        malformed=parsed.where(F.col(MALFORMED).isNotNull()).select(F.col(MALFORMED).alias("raw")),
        undeclared=extra,
        lines=parsed,
    )


def _delta_rows(spark: SparkSession, spec: InputConfig, new: Delivery | None) -> DataFrame:
    """The table as it stands, or the rows that came after the version that was taken last.

    Without a change feed the new version is read whole: rows that were taken before are duplicates.
    """
    reader = spark.read.format("delta").options(**spec.options)
    if new is None:
        return reader.load(spec.path)
    version = new.parts[0].name
    if new.after is None or not new.has_feed:
        return reader.option("versionAsOf", version).load(spec.path)
    feed = reader.option("readChangeFeed", "true").option("startingVersion", int(new.after) + 1)
    rows = feed.option("endingVersion", version).load(spec.path)
    return rows.where(F.col("_change_type").isin("insert", "update_postimage")).drop(
        "_change_type", "_commit_version", "_commit_timestamp"
    )


def _rows_between(spec: InputConfig, new: Delivery | None) -> str:
    """The condition on the watermark that picks what is new."""
    if new is None or spec.watermark is None:
        return ""
    upto = f"{spec.watermark} <= '{new.parts[0].name}'"
    if new.after is None:
        return upto
    return f"{spec.watermark} {'>=' if new.includes_after else '>'} '{new.after}' AND {upto}"


def _literal(path: str) -> str:
    """A file's path as Spark takes it: a reader would expand `[1]` in a name as a pattern."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


def _named_in(statement: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{name}\b", statement)]


def _columns_present(spark: SparkSession, spec: InputConfig, paths: list[str]) -> StructType:
    """The columns that the files hold: from the footer, the header line, or a sample of JSON lines."""
    try:
        if spec.format == "json":
            line = F.col("value")
            first_of_array = F.get_json_object(line, "$[0]")
            keys = F.coalesce(F.json_object_keys(line), F.json_object_keys(first_of_array))
            lines = spark.read.text(paths).limit(_SAMPLED_LINES).select(F.explode(keys).alias("key"))
            names = [row["key"] for row in lines.distinct().toLocalIterator()]
            return StructType([StructField(name, StringType()) for name in sorted(names)])
        reader = spark.read.options(**spec.options)
        if spec.format == "csv":
            return reader.option("header", "true").option("inferSchema", "false").csv(paths).schema
        return reader.format(spec.format).load(paths).schema
    except AnalysisException as error:
        if "UNABLE_TO_INFER_SCHEMA" in str(error):  # a folder without a file, or a file without a line
            return StructType([])
        raise


def _compare(name: str, spec: InputConfig, declared: StructType, present: StructType) -> tuple[str, ...]:
    """Refuse columns that are lacking or of another type; returns those that nobody declared."""
    if spec.format == "json" and not present.names:
        return ()  # no line at all: whoever needs its rows says so
    missing = [f.name for f in declared if f.name not in present.names]
    place = spec.path or place_of(spec)
    if missing:
        raise ConfigError(
            f"inputs.{name}: {place} lacks the declared columns {', '.join(missing)}; "
            f"it has {', '.join(present.names) or 'none'}"
        )
    undeclared = tuple(column for column in present.names if column not in declared.names)
    if spec.format == "csv" and declared.names != present.names:
        raise ConfigError(
            f"inputs.{name}: a CSV's columns are read by position, expected the header "
            f"{','.join(declared.names)}, got {','.join(present.names)}"
        )
    if spec.format in ("csv", "json"):
        return tuple(column for column in undeclared if column != "_corrupt_record")
    is_cast = spec.format in ("delta", "jdbc")
    unfit = [f for f in declared if not _fits(present[f.name].dataType, f.dataType, is_cast)]
    if unfit:
        pairs = [(f, present[f.name].dataType) for f in unfit]
        wrong = [
            f"{f.name} is {held.simpleString()}, declared {f.dataType.simpleString()}" for f, held in pairs
        ]
        raise ConfigError(f"inputs.{name}: {place} has other types: {'; '.join(wrong)}{_hint(pairs)}")
    return undeclared


def _fits(present: DataType, declared: DataType, is_cast: bool) -> bool:
    """Whether a column can be read as declared without losing anything.

    Args:
        present: the column's type.
        declared: the configuration's.
        is_cast: whether rows are cast to the declared types; a Parquet file is read as declared.
    """
    if present == declared:
        return True
    if type(present) in _WIDTH and type(declared) in _WIDTH:
        return _WIDTH[type(present)] <= _WIDTH[type(declared)]
    if isinstance(present, FloatType):
        return isinstance(declared, DoubleType)
    if not is_cast:
        return False
    if isinstance(present, DecimalType) and isinstance(declared, DecimalType):
        whole = declared.precision - declared.scale
        return present.scale <= declared.scale and present.precision - present.scale <= whole
    if isinstance(present, DecimalType):
        return isinstance(declared, DoubleType) and present.precision <= _DIGITS_OF_A_DOUBLE
    # The wall clock as it stands, in the session's zone, which is UTC.
    return isinstance(present, TimestampNTZType) and isinstance(declared, TimestampType)


def _hint(unfit: list[tuple[StructField, DataType]]) -> str:
    """What to do about decimal numbers that are wider than a double."""
    wide = [
        f"{f.name} {held.simpleString().upper()}"
        for f, held in unfit
        if isinstance(held, DecimalType) and isinstance(f.dataType, DoubleType)
    ]
    if not wide:
        return ""
    return (
        f". A double is sure of {_DIGITS_OF_A_DOUBLE} digits only: declare {', '.join(wide)} (a numeric field makes "
        "a double of it), or make the column narrower where it comes from"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
