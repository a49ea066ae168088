"""CSV, JSON and Parquet files: opening them under a declared schema, and finding new ones.

Spark fills a column that a file lacks with nulls, and turns a malformed line into nulls. Both are refused here: the
columns of the files are compared with the declared ones before any row is read, and malformed lines of CSV and
JSON are kept apart in the column `_malformed`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, first_line
from lam_spark.sources.increment import Part
from lam_spark.sources.schema_checks import undeclared_columns
from lam_spark.storage.dataframes import union_all

MALFORMED = "_malformed"
_SAMPLED_LINES = 1000
# Columns are compared file by file up to this many files; of more files, an even sample of this size.
_COMPARED_FILES = 100


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
    step = max(1, -(-len(paths) // _COMPARED_FILES))
    # JSON lines have no header: a key that is missing in one file may occur in the next.
    groups = [paths] if spec.format == "json" else [[path] for path in paths[::step]]
    for group in groups:
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
