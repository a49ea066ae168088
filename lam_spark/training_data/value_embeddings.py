"""Fixed vectors of categorical values: features of an image, a sound or a text that somebody else computed.

Memory: the values that the vocabulary knows (at most `fields.NAME.max_values`) times the width, on the driver; those
that it does not know stay in Spark.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run
from lam_spark.sources.inputs import Inputs
from lam_spark.training_data.layout import Layout

Float = npt.NDArray[np.float32]
_MOST_DEVIATIONS = 4.0


def read_vectors(run: Run, layout: Layout, vocabulary: DataFrame) -> dict[str, Float]:
    """The vectors of all fields that have them: field -> (ids, width).

    Each number is standardised over the values that the vocabulary knows, and cut at four deviations; a value
    without a vector has zeros, the mean of all.

    Raises:
        ConfigError: a select does not run or lacks a column.
        DataQualityError: a vector of another width or with a number that is none, a value with two vectors, or
            no vector for any value.
    """
    inputs = Inputs(run.spark, run.config)
    tables = {}
    for name, shape in layout.value_embedding_shapes.items():
        vectors = run.config.fields[name].value_embeddings
        assert vectors is not None  # the layout says that it has some
        given = inputs.select(vectors.select, f"fields.{name}.value_embeddings.select")
        lacking = [column for column in ("value", "vector") if column not in given.columns]
        if lacking:
            raise ConfigError(
                f"fields.{name}.value_embeddings.select must yield value and vector; it lacks {', '.join(lacking)}"
            )
        known = vocabulary.where(F.col("field") == name).select("value", "token_id")
        tables[name] = _table(name, shape, given, known)
    return tables


def _table(name: str, shape: tuple[int, int], given: DataFrame, known: DataFrame) -> Float:
    """(ids, width) of one field."""
    where = f"fields.{name}.value_embeddings"
    numbers = F.col("vector").try_cast("array<float>")
    try:
        rows = given.select(F.col("value").cast("string").alias("value"), numbers.alias("vector"))
    except AnalysisException as error:
        raise ConfigError(f"{where}.select: vector must be an array of numbers") from error
    # A comparison with null is null: a vector that is none at all is damaged too.
    is_number = F.forall("vector", lambda number: F.abs(number) < float("inf"))
    whole = F.coalesce((F.size("vector") == shape[1]) & is_number, F.lit(False))
    table, filled = np.zeros(shape, np.float64), np.zeros(shape[0], bool)
    for row in rows.join(known, "value").select("token_id", "vector", whole.alias("whole")).toLocalIterator():
        if not row["whole"]:
            raise DataQualityError(f"{where}: expected {shape[1]} numbers a vector, found one with others")
        if filled[row["token_id"]]:
            raise DataQualityError(f"{where}: expected one vector a value, found a value with several")
        table[row["token_id"]], filled[row["token_id"]] = row["vector"], True
    if not filled.any():
        raise DataQualityError(
            f"{where}: expected vectors of values that occur in the events, found not one; compare the select's "
            "column value with the field"
        )
    found = table[filled]
    deviation = found.std(axis=0)
    scaled = (found - found.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1.0)
    table[filled] = scaled.clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    return table.astype(np.float32)
