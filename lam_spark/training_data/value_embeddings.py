"""Pre-computed embeddings of categorical values: features of an image, a sound or a text.

Memory on the driver: the values that the vocabulary knows (at most `fields.NAME.max_values`) times the dimension;
other values stay in Spark.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import FieldConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import require_columns
from lam_spark.storage.session_settings import configured_sql
from lam_spark.training_data.layout import Layout

Float = npt.NDArray[np.float32]
_MAX_DEVIATIONS = 4.0
_MIN_DEVIATION = 1e-6


def read_value_embeddings(
    inputs: Inputs, fields: Mapping[str, FieldConfig], layout: Layout, vocabulary: DataFrame
) -> dict[str, Float]:
    """Read the value embeddings of all fields that have them: field -> float32 (ids, dim).

    Each dimension is standardised over the values in the vocabulary and clipped at four standard deviations. A value
    without an embedding gets zeros, the mean.

    Args:
        inputs: Inputs that the selects read.
        fields: Declared fields.
        layout: Shapes of the embeddings.
        vocabulary: Table `vocabulary`.

    Raises:
        ConfigError: A select does not run, or lacks a column.
        DataQualityError: A vector has another dimension or holds something else than finite numbers, a value has
            two vectors, or no value has one.
    """
    tables = {}
    for name, shape in layout.value_embedding_shapes.items():
        embeddings = fields[name].value_embeddings
        assert embeddings is not None  # the layout has a dimension only for such fields
        key = f"fields.{name}.value_embeddings"
        selected = inputs.select(embeddings.select, f"{key}.select")
        require_columns(selected, ("value", "vector"), f"{key}.select")
        token_ids = vocabulary.where(F.col("field") == name).select("value", "token_id")
        with configured_sql(inputs.spark):
            tables[name] = _table(key, shape, selected, token_ids)
    return tables


def _table(key: str, shape: tuple[int, int], selected: DataFrame, token_ids: DataFrame) -> Float:
    """Standardised embeddings of one field (ids, dim); `key` is the configuration key for messages."""
    numbers = F.col("vector").try_cast("array<float>")
    try:
        vectors = selected.select(F.col("value").cast("string").alias("value"), numbers.alias("vector"))
    except AnalysisException as error:
        raise ConfigError(f"{key}.select: vector must be an array of numbers") from error
    # A comparison with null is null: a missing vector is invalid, too.
    is_finite = F.forall("vector", lambda number: F.abs(number) < float("inf"))
    is_valid = F.coalesce((F.size("vector") == shape[1]) & is_finite, F.lit(False)).alias("is_valid")
    table, has_vector = np.zeros(shape, np.float64), np.zeros(shape[0], bool)
    for row in vectors.join(token_ids, "value").select("token_id", "vector", is_valid).toLocalIterator():
        if not row["is_valid"]:
            raise DataQualityError(
                f"{key}: expected vectors of {shape[1]} finite numbers, found another one; correct the select"
            )
        if has_vector[row["token_id"]]:
            raise DataQualityError(
                f"{key}: expected one vector per value, found a value with several; correct the select"
            )
        table[row["token_id"]], has_vector[row["token_id"]] = row["vector"], True
    if not has_vector.any():
        raise DataQualityError(
            f"{key}: expected vectors of values that occur in the events, found none; compare the select's column "
            "value with the field"
        )
    rows = table[has_vector]
    deviation = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(deviation > _MIN_DEVIATION, deviation, 1.0)
    table[has_vector] = scaled.clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
    return table.astype(np.float32)
