"""Raw inputs under explicit schemas, as temporary views that the selects of the configuration read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.config import InputConfig
from lam_spark.errors import ConfigError, DataQualityError, first_line
from lam_spark.sources.delta import delta_rows
from lam_spark.sources.files import MALFORMED, Input, header_errors, literal_path, not_found, open_files
from lam_spark.sources.increment import SourceIncrement
from lam_spark.sources.jdbc import jdbc_rows, place_of
from lam_spark.sources.schema_checks import declared_schema, undeclared_columns
from lam_spark.storage.dataframes import materialize, union_all
from lam_spark.storage.session_settings import configured_sql


def open_input(
    spark: SparkSession, name: str, spec: InputConfig, increment: SourceIncrement | None = None
) -> Input:
    """Open one input lazily, after checking that it has the declared columns.

    Args:
        spark: Active session.
        name: Name of the input, for errors.
        spec: Configuration of the input.
        increment: Rows to read; None: the whole input.

    Raises:
        ConfigError: The path does not exist, the DDL is wrong, or declared columns are missing or have another
            type.
    """
    schema = declared_schema(name, spec)
    try:
        if spec.format == "delta":
            frame = delta_rows(spark, spec, increment)
        elif spec.format == "jdbc":
            frame = jdbc_rows(spark, name, spec, increment)
        else:
            paths = [literal_path(part.name) for part in increment.parts] if increment else [spec.path]
            return open_files(spark, name, spec, schema, paths)
    except AnalysisException as error:
        raise not_found(name, spec, error) from error
    place = spec.path or place_of(spec)
    undeclared = undeclared_columns(name, spec, place, schema, frame.schema)
    with configured_sql(spark):
        rows = frame.select(*(F.col(field.name).cast(field.dataType) for field in schema))
    return Input(rows, None, undeclared)


def count_lines(inputs: Mapping[str, Input]) -> dict[str, tuple[int, int]]:
    """Count well-formed rows and malformed lines of each input, in one pass over all of them.

    Raises:
        ConfigError: The header of a CSV file is not as declared.
    """
    if not inputs:
        return {}
    frames = []
    for name, source in inputs.items():
        lines = source.rows if source.lines is None else source.lines
        is_malformed = F.lit(False) if source.lines is None else F.col(MALFORMED).isNotNull()
        frames.append(lines.select(F.lit(name).alias("_name"), is_malformed.alias("_is_malformed")))
    counts = (
        union_all(frames)
        .groupBy("_name")
        .agg(
            F.count_if(~F.col("_is_malformed")).alias("_rows"),
            F.count_if("_is_malformed").alias("_malformed"),
        )
    )
    with header_errors():
        return {row["_name"]: (row["_rows"], row["_malformed"]) for row in counts.toLocalIterator()}


class Inputs:
    """Inputs and views of one stage: each is opened at most once, and only if a statement names it.

    A statement may name inputs and views; both become temporary views of the session.

    Args:
        spark: Active session.
        inputs: Configuration of the inputs.
        views: Named selects of the configuration.
        contents: Rows that stand for whole inputs: versions of look-ups.

    Attributes:
        spark: The session.
    """

    def __init__(
        self,
        spark: SparkSession,
        inputs: Mapping[str, InputConfig],
        views: Mapping[str, str],
        contents: Mapping[str, DataFrame] | None = None,
    ) -> None:
        self.spark = spark
        self._inputs = inputs
        self._views = views
        self._contents = contents or {}
        self._opened: dict[str, Input] = {}
        self._registered_views: set[str] = set()

    def __getitem__(self, name: str) -> Input:
        """Open a whole input, register its rows as a view, and keep it open."""
        if name not in self._opened:
            content = self._contents.get(name)
            self._opened[name] = (
                open_input(self.spark, name, self._inputs[name]) if content is None else Input(content, None)
            )
            self._opened[name].rows.createOrReplaceTempView(name)
        return self._opened[name]

    def open_increment(self, increment: SourceIncrement, landing: Path) -> Input:
        """Open the new rows of a reader.

        Rows of a database are copied to the folder `landing`, because they may change between two reads.
        """
        spec = self._inputs[increment.input]
        source = open_input(self.spark, increment.input, spec, increment)
        if spec.format == "jdbc":
            source = dataclasses.replace(source, rows=materialize(source.rows, landing))
        return source

    def select(
        self, statement: str, key: str, grain: str | None = None, new: Input | None = None
    ) -> DataFrame:
        """Run a configured select over the inputs and views that it names.

        Args:
            statement: Spark SQL.
            key: Key of the statement in the configuration, for errors.
            grain: Input whose malformed lines the caller handles. Malformed lines in any other input are refused.
            new: Rows of the grain that the statement reads; None: all. Other inputs and the views are always complete.

        Raises:
            ConfigError: The statement does not parse, or names something unknown.
            DataQualityError: A look-up holds lines that do not parse.
        """
        for name in _named_in(statement, self._views):
            if name not in self._registered_views:
                self._registered_views.add(name)
                self.select(self._views[name], f"views.{name}").createOrReplaceTempView(name)
        for name in _named_in(statement, self._inputs):
            if name != grain:
                refuse_malformed(name, self[name])
            elif new is None:
                self[name]
        if grain and new is not None:
            new.rows.createOrReplaceTempView(grain)
        try:
            with configured_sql(self.spark):
                return self.spark.sql(statement)
        except (ParseException, AnalysisException) as error:
            raise ConfigError(f"{key}: {first_line(error)}") from error
        finally:
            if grain in self._opened:  # a statement that names it as a look-up sees all of it
                self._opened[grain].rows.createOrReplaceTempView(grain)


def refuse_malformed(name: str, source: Input) -> None:
    """Check that an input without a quarantine (a look-up, the ledger) has no malformed line.

    Raises:
        ConfigError: The header of a CSV file is not as declared.
        DataQualityError: At least one malformed line; the lines are counted, never shown.
    """
    if source.malformed is None:
        return
    with header_errors():
        is_malformed = not source.malformed.isEmpty()
    if is_malformed:
        raise DataQualityError(
            f"inputs.{name}: {source.malformed.count():,} lines do not parse under the declared columns; nothing was "
            "read from it. Correct the file"
        )


def _named_in(statement: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{name}\b", statement)]
