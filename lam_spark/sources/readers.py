"""Raw inputs under explicit schemas, as temporary views that the configuration's SQL reads.

Spark fills a column that a file lacks with nulls and turns a bad line into nulls. Both are refused here:
the columns of every input are compared with the declared ones before anything is read, and malformed lines
of CSV and JSON are kept apart in `_malformed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructType,
)

from lam_spark.config import Config, InputConfig
from lam_spark.errors import ConfigError, DataQualityError

MALFORMED = "_malformed"
_WIDTH: dict[type[DataType], int] = {ByteType: 1, ShortType: 2, IntegerType: 3, LongType: 4}
_SAMPLED_LINES = 1000


@dataclass(frozen=True)
class Input:
    """An opened input.

    Attributes:
        rows: the well-formed rows, with the declared columns.
        malformed: lines that the reader could not parse, one column `raw`; None for binary formats.
    """

    rows: DataFrame
    malformed: DataFrame | None


def open_input(spark: SparkSession, name: str, spec: InputConfig) -> Input:
    """Open one input lazily, after checking that its columns are the declared ones.

    Raises:
        ConfigError: no such path, bad DDL, or the declared columns are not in it or have another type.
    """
    try:
        schema = StructType.fromDDL(spec.columns)
    except (ParseException, AnalysisException) as error:
        raise ConfigError(f"inputs.{name}.columns is not Spark DDL: {_first_line(error)}") from error
    assert isinstance(schema, StructType)  # a list of columns is never a simple type
    try:
        present = _columns_present(spark, spec)
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND" or "doesn't exist" in str(error):
            raise ConfigError(
                f"inputs.{name}: expected {spec.format} at {spec.path}, found nothing"
            ) from error
        raise ConfigError(f"inputs.{name}: {spec.path} is not {spec.format}: {_first_line(error)}") from error
    _compare(name, spec, schema, present)
    reader = spark.read.format(spec.format).options(**spec.options)
    if spec.format in ("parquet", "delta"):
        frame = reader.load(spec.path) if spec.format == "delta" else reader.schema(schema).load(spec.path)
        return Input(frame.select(*(F.col(f.name).cast(f.dataType) for f in schema)), None)
    with_malformed = StructType([*schema.fields]).add(MALFORMED, StringType())
    lines = (
        reader.schema(with_malformed)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", MALFORMED)
        .option("header", "true")
        .load(spec.path)
    )
    # Spark parses only the columns that a query needs, and a line is malformed only if a needed one is. A
    # condition on all of them makes the verdict the same for every query.
    parsed = lines.where(F.xxhash64(*schema.names) >= F.lit(-(2**63)))
    return Input(
        rows=parsed.where(F.col(MALFORMED).isNull()).drop(MALFORMED),
        malformed=parsed.where(F.col(MALFORMED).isNotNull()).select(F.col(MALFORMED).alias("raw")),
    )


class Inputs:
    """The configured inputs and views of one stage: each is opened once, and only if a statement names it.

    A statement may name inputs and views; both become temporary views of the session.
    """

    def __init__(self, spark: SparkSession, config: Config) -> None:
        self._spark = spark
        self._config = config
        self._opened: dict[str, Input] = {}
        self._viewed: set[str] = set()

    def __getitem__(self, name: str) -> Input:
        """Open an input, register its rows, and keep it open."""
        if name not in self._opened:
            self._opened[name] = open_input(self._spark, name, self._config.inputs[name])
            self._opened[name].rows.createOrReplaceTempView(name)
        return self._opened[name]

    def select(self, statement: str, where: str, grain: str | None = None) -> DataFrame:
        """Run a configured SQL select over the inputs and views that it names.

        Args:
            statement: Spark SQL.
            where: its place in the configuration, for errors.
            grain: the input whose malformed lines the caller takes care of; in any other they are refused.

        Raises:
            ConfigError: the statement does not parse or names something unknown.
            DataQualityError: a look-up holds lines that do not parse.
        """
        for name in _named_in(statement, self._config.views):
            if name not in self._viewed:
                self._viewed.add(name)
                view = self.select(self._config.views[name], f"views.{name}", grain)
                view.createOrReplaceTempView(name)
        for name in _named_in(statement, self._config.inputs):
            if name != grain:
                refuse_malformed(name, self[name])
        try:
            return self._spark.sql(statement)
        except (ParseException, AnalysisException) as error:
            raise ConfigError(f"{where}: {_first_line(error)}") from error


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


def _named_in(statement: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{name}\b", statement)]


def _columns_present(spark: SparkSession, spec: InputConfig) -> StructType:
    """The columns that the files hold: from the footer, the header line, or a sample of JSON lines."""
    reader = spark.read.options(**spec.options)
    if spec.format == "json":
        lines = spark.read.text(spec.path).limit(_SAMPLED_LINES)
        return spark.read.json(lines.rdd.map(lambda row: row[0])).schema
    if spec.format == "csv":
        header = reader.option("header", "true").option("inferSchema", "false")
        return header.csv(spec.path).schema
    return reader.format(spec.format).load(spec.path).schema


def _compare(name: str, spec: InputConfig, declared: StructType, present: StructType) -> None:
    if spec.format == "json" and not present.names:
        return  # no line at all: whoever needs its rows says so
    missing = [f.name for f in declared if f.name not in present.names]
    if missing:
        raise ConfigError(
            f"inputs.{name}: {spec.path} lacks the declared columns {', '.join(missing)}; "
            f"it has {', '.join(present.names) or 'none'}"
        )
    if spec.format == "csv" and declared.names != present.names:
        raise ConfigError(
            f"inputs.{name}: a CSV's columns are read by position, expected the header "
            f"{','.join(declared.names)}, got {','.join(present.names)}"
        )
    if spec.format in ("csv", "json"):
        return  # text: a value that does not fit its type makes the line malformed
    wrong = [
        f"{f.name} is {present[f.name].dataType.simpleString()}, declared {f.dataType.simpleString()}"
        for f in declared
        if not _fits(present[f.name].dataType, f.dataType)
    ]
    if wrong:
        raise ConfigError(f"inputs.{name}: {spec.path} has other types: {'; '.join(wrong)}")


def _fits(present: DataType, declared: DataType) -> bool:
    """Whether a binary column can be read as declared without losing anything."""
    if present == declared:
        return True
    if type(present) in _WIDTH and type(declared) in _WIDTH:
        return _WIDTH[type(present)] <= _WIDTH[type(declared)]
    return isinstance(present, FloatType) and isinstance(declared, DoubleType)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
