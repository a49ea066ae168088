"""Reading value embeddings: what is used, standardised and refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from lam_spark.config import FieldConfig
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import local_frame
from lam_spark.training_data.layout import Layout, Target
from lam_spark.training_data.value_embeddings import read_value_embeddings

Table = np.ndarray[Any, Any]
Read = Callable[[str], Table]

SHAPE = Layout(
    categorical=("action", "item"),
    sizes=(5, 7),
    numeric=(),
    count_by="action",
    counted_ids=(3,),
    window_days=(7,),
    block_events=8,
    queries_per_block=2,
    targets=(Target("t"),),
    value_embedding_dims=(0, 2),
)
VECTORS = "('a', array(1.0, 10)), ('b', array(3.0, 10)), ('d', array(5.0, 10)), ('nowhere', array(9.0, 9))"
KEY = "fields.item.value_embeddings"


@pytest.fixture
def read(spark: SparkSession) -> Read:
    """Reads the embeddings of a select; the vocabulary has the items a to d as 3 to 6, and an action a."""
    vocabulary = local_frame(
        spark,
        [("item", value, 3 + place) for place, value in enumerate("abcd")] + [("action", "a", 4)],
        "field STRING, value STRING, token_id INT",
    )

    def table(select: str) -> Table:
        embeddings: Any = {"dim": 2, "select": select}
        fields = {
            "action": FieldConfig(role="how", kind="categorical"),
            "item": FieldConfig(role="what", kind="categorical", value_embeddings=embeddings),
        }
        return read_value_embeddings(Inputs(spark, {}, {}), fields, SHAPE, vocabulary)["item"]

    return table


def rows(values: str) -> str:
    return f"SELECT value, vector FROM VALUES {values} AS vectors(value, vector)"


def test_values_of_the_vocabulary_are_standardised_and_others_ignored(read: Read) -> None:
    table = read(rows(VECTORS))
    assert table.dtype == np.float32
    deviation = np.std([1.0, 3.0, 5.0])
    expected = np.zeros((7, 2))
    # c has no vector; the second number is constant.
    expected[[3, 4, 6], 0] = (np.array([1.0, 3.0, 5.0]) - 3) / deviation
    np.testing.assert_allclose(table, expected, rtol=1e-6)


INVALID = f"{KEY}: expected vectors of 2 finite numbers, found another one; correct the select"
SEVERAL = f"{KEY}: expected one vector per value, found a value with several; correct the select"
NONE = (
    f"{KEY}: expected vectors of values that occur in the events, found none; compare the select's column value with "
    "the field"
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("('a', array(1.0, 2)), ('b', array(1.0))", INVALID),
        ("('a', array(1.0, 2)), ('b', array(1.0, NULL))", INVALID),
        ("('a', array(1.0, 2)), ('b', array(1.0, double('NaN')))", INVALID),
        ("('a', array(1.0, 2)), ('b', NULL)", INVALID),
        ("('a', array(1.0, 2)), ('a', array(1.0, 2))", SEVERAL),
        ("('x', array(1.0, 2))", NONE),
    ],
)
def test_invalid_vectors_are_refused(read: Read, values: str, message: str) -> None:
    with pytest.raises(DataQualityError, match=f"^{re.escape(message)}$"):
        read(rows(values))


def test_an_invalid_vector_of_an_unknown_value_is_ignored(read: Read) -> None:
    assert read(rows(f"{VECTORS}, ('never sold', array(1.0))")).any()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT 'a' AS value", f"{KEY}.select must yield value, vector; it lacks vector"),
        ("SELECT 'a' AS value, 'text' AS vector", f"{KEY}.select: vector must be an array of numbers"),
        ("SELECT 'a' AS value, vector FROM nowhere", f"{KEY}.select: .*nowhere"),
    ],
)
def test_a_wrong_select_is_a_configuration_error(read: Read, select: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read(select)
