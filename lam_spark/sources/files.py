"""CSV, JSON and Parquet files: opening them under a declared schema, and finding new ones.

Spark fills a column that a file lacks with nulls, and turns a malformed line into nulls. Both are refused here: the
columns of the files are compared with the declared ones before any row is read, and malformed lines of CSV and
JSON are kept apart in the column `_malformed`. CSV columns are read by position: the header of every file is compared
while it is read, at no extra cost, and another order is refused (`header_errors`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, first_line
from lam_spark.sources.increment import Part
from lam_spark.sources.schema_checks import undeclared_columns
from lam_spark.storage.dataframes import one_row, union_all

MALFORMED = "_malformed"
_SAMPLED_LINES = 1000
# Columns of Parquet files are compared one by one up to this many; of more files, an even sample of this size.
_COMPARED_FILES = 100
_HEADER_ERROR = re.compile(
    r"CSV header does not conform to the schema|Number of column in CSV header is not equal"
)
_CSV_FILE = re.compile(r"CSV file: (\S+)")


@dataclass(frozen=True)
class Input:
    """An opened input.

    Attributes:
        rows: Well-formed rows with the declared columns.
        malformed: Lines that do not parse, one column `raw`; None for formats without lines.
        undeclared: Columns of the input that are not declared; they are not read.
        lines: Rows and malformed lines together; None for formats without lines.
    """

    rows: DataFrame
    malformed: DataFrame | None
    undeclared: tuple[str, ...] = ()
    lines: DataFrame | None = None


def open_files(
    spark: SparkSession, name: str, spec: InputConfig, schema: StructType, paths: Sequence[str]
) -> Input:
    """Open CSV, JSON or Parquet files lazily.

    Args:
        spark: Active session.
        name: Name of the input, for errors.
        spec: Configuration of the input.
        schema: Declared columns.
        paths: Paths or patterns.

    Raises:
        ConfigError: A column is missing, or has another type or position.
    """
    undeclared: set[str] = set()
    for group in _compared_paths(spec, paths):
        present = _columns_present(spark, spec, group)
        undeclared |= set(undeclared_columns(name, spec, spec.path, schema, present))
    # The partition column of `day=2024-05-01/` needs the folder above as base path.
    is_folder = not any(path.endswith(literal_path(spec.path)) for path in paths) and "*" not in spec.path
    base = {"basePath": spec.path} if is_folder else {}
    # The zone of times without one, also in the names of partition folders; by default that of the session.
    reader = spark.read.format(spec.format).options(**{"timeZone": "UTC", **spec.options, **base})
    extra = tuple(sorted(undeclared))
    if spec.format == "parquet":
        frame = reader.schema(schema).load(list(paths))
        return Input(frame.select(*schema.names), None, extra)
    with_malformed = StructType([*schema.fields]).add(MALFORMED, StringType())
    lines = (
        reader.schema(with_malformed)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", MALFORMED)
        .option("header", "true")
        .option("enforceSchema", "false")  # compares the header of each file with the schema
        .load(list(paths))
    )
    # Spark checks only the columns that a query reads. A condition on all columns makes all queries agree on
    # which lines are malformed.
    parsed = lines.where(F.xxhash64(*schema.names) >= F.lit(-(2**63)))
    return Input(
        rows=parsed.where(F.col(MALFORMED).isNull()).drop(MALFORMED),
        malformed=parsed.where(F.col(MALFORMED).isNotNull()).select(F.col(MALFORMED).alias("raw")),
        undeclared=extra,
        lines=parsed,
    )


def new_files(
    spark: SparkSession,
    inputs: Mapping[str, InputConfig],
    readers: Mapping[str, str],
    ingested: DataFrame | None,
) -> dict[str, list[Part]]:
    """Files that a reader has not ingested in their present state, by reader; readers without new files are left out.

    Cost: a listing of the files and one anti-join; only new files come to the driver (all of them the first time).

    Args:
        spark: Active session.
        inputs: Configuration of the inputs.
        readers: Reader -> name of its input; only inputs of files.
        ingested: Table `ingestion_state`; None if nothing counts as ingested.

    Raises:
        ConfigError: An input does not exist.
    """
    if not readers:
        return {}
    files = union_all(_listing(spark, reader, name, inputs[name]) for reader, name in readers.items())
    if ingested is not None:
        files = files.join(ingested, files.columns, "left_anti")
    parts: dict[str, list[Part]] = {}
    for row in files.toLocalIterator():
        parts.setdefault(row["reader"], []).append(Part(row["part"], row["size"], row["modified"]))
    return parts


def _listing(spark: SparkSession, reader: str, name: str, spec: InputConfig) -> DataFrame:
    """Files of a reader's input: `reader, part, size, modified`, columns of the table `ingestion_state`."""
    try:
        # Only the listing is evaluated: the content of a binary file is read only if selected.
        files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(spec.path)
    except AnalysisException as error:
        raise not_found(name, spec, error) from error
    return files.select(
        F.lit(reader).alias("reader"),
        F.col("path").alias("part"),
        F.col("length").alias("size"),
        F.unix_micros("modificationTime").alias("modified"),
    )


def not_found(name: str, spec: InputConfig, error: Exception) -> ConfigError:
    """The error for an input that cannot be opened."""
    text = str(error)
    if "PATH_NOT_FOUND" in text or "doesn't exist" in text or "DELTA_MISSING_DELTA_TABLE" in text:
        return ConfigError(f"inputs.{name}: expected {spec.format} at {spec.path}, found nothing")
    return ConfigError(f"inputs.{name}: {spec.path} is not {spec.format}: {first_line(error)}")


def literal_path(path: str) -> str:
    """Escape a file's path: Spark would expand `[1]` in a name as a pattern."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


@contextlib.contextmanager
def header_errors() -> Iterator[None]:
    """Turn Spark's error about the header of a CSV file, found while rows are read, into ours.

    Raises:
        ConfigError: A file has other columns than declared, or in another order. The message names the file, not its
            first line: of a file without a header, that would be a row.
    """
    try:
        yield
    except Exception as error:  # Spark raises different classes, by how the query ran
        text = error_text(error)
        if not _HEADER_ERROR.search(text):
            raise
        match = _CSV_FILE.search(text)
        raise ConfigError(
            f"the header of the CSV file {match[1] if match else '(unknown)'} does not give the declared columns of "
            "its input in their order. The columns of all files of an input are read by position: write this file "
            "again with the declared columns, or make it an input of its own"
        ) from None  # the cause shows the header


def error_text(error: BaseException) -> str:
    """Text of an error of Spark with that of its causes."""
    return f"{error}\n{getattr(error, '_stackTrace', '')}"


def files_fingerprint(spark: SparkSession, name: str, spec: InputConfig) -> str:
    """Number, total size and newest modification time of an input's files, and a hash of names, sizes and times.

    Cost: a listing of the files, by Spark.

    Raises:
        ConfigError: The input does not exist.
    """
    files = _listing(spark, "", name, spec)
    # The sum of the hashes does not depend on the order of the files; BIGINT could overflow.
    file_hash = F.xxhash64("part", "size", "modified").cast("decimal(38,0)")
    row = one_row(files.agg(F.count("*"), F.sum("size"), F.max("modified"), F.sum(file_hash)))
    return ":".join(str(value) for value in row)


def _compared_paths(spec: InputConfig, paths: Sequence[str]) -> list[Sequence[str]]:
    """Groups of paths whose columns are compared before rows are read."""
    if spec.format == "json":  # lines have no header: a key that is missing in one file may occur in the next
        return [paths]
    if spec.format == "csv":  # the headers of the others are compared while they are read
        return [paths[:1]]
    step = max(1, -(-len(paths) // _COMPARED_FILES))
    return [[path] for path in paths[::step]]


def _columns_present(spark: SparkSession, spec: InputConfig, paths: Sequence[str]) -> StructType:
    """Columns of the files: from the footer, the header line, or a sample of JSON lines."""
    try:
        if spec.format == "json":
            line = F.col("value")
            first_of_array = F.get_json_object(line, "$[0]")
            keys = F.coalesce(F.json_object_keys(line), F.json_object_keys(first_of_array))
            lines = spark.read.text(list(paths)).limit(_SAMPLED_LINES).select(F.explode(keys).alias("_key"))
            names = [row["_key"] for row in lines.distinct().toLocalIterator()]
            return StructType([StructField(name, StringType()) for name in sorted(names)])
        reader = spark.read.options(**spec.options)
        if spec.format == "csv":
            return reader.option("header", "true").option("inferSchema", "false").csv(list(paths)).schema
        return reader.format(spec.format).load(list(paths)).schema
    except AnalysisException as error:
        if "UNABLE_TO_INFER_SCHEMA" in str(error):  # a folder without files, or a file without lines
            return StructType([])
        raise
