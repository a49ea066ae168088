"""Reading the fixed vectors of a field's values: what is taken, standardised and refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run
from lam_spark.storage.dataframes import local_frame
from lam_spark.training_data.layout import Layout, Target
from lam_spark.training_data.value_embeddings import read_vectors
from tests.support.tables import Prepared

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
GIVEN = "('a', array(1.0, 10)), ('b', array(3.0, 10)), ('d', array(5.0, 10)), ('nowhere', array(9.0, 9))"


@pytest.fixture
def read(prepared: Prepared, spark: SparkSession) -> Callable[[str], np.ndarray]:
    """Reads the vectors that a select gives; the vocabulary knows a, b, c, d as 3 to 6, and an action a."""
    known = local_frame(
        spark,
        [("item", value, 3 + place) for place, value in enumerate("abcd")] + [("action", "a", 4)],
        "field STRING, value STRING, token_id INT",
    )

    def table(select: str) -> np.ndarray:
        config = prepared.data.config(f'fields.item.vectors={{width: 2, select: "{select}"}}')
        run: Run = dataclasses.replace(prepared.run, config=config)
        return read_vectors(run, SHAPE, known)["item"]

    return table


def rows(values: str) -> str:
    return f"SELECT value, vector FROM VALUES {values} AS given(value, vector)"


def test_known_values_are_standardised_and_the_others_left_out(
    read: Callable[[str], np.ndarray],
) -> None:
    table = read(rows(GIVEN))
    assert table.dtype == np.float32
    deviation = np.std([1.0, 3.0, 5.0])
    expected = np.zeros((7, 2))
    expected[[3, 4, 6], 0] = (
        np.array([1.0, 3.0, 5.0]) - 3
    ) / deviation  # c has none; the second number never varies
    np.testing.assert_allclose(table, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("('a', array(1.0, 2)), ('b', array(1.0))", "expected 2 numbers a vector"),
        ("('a', array(1.0, 2)), ('b', array(1.0, NULL))", "expected 2 numbers a vector"),
        ("('a', array(1.0, 2)), ('b', array(1.0, double('NaN')))", "expected 2 numbers a vector"),
        ("('a', array(1.0, 2)), ('b', NULL)", "expected 2 numbers a vector"),
        ("('a', array(1.0, 2)), ('a', array(1.0, 2))", "one vector a value"),
        ("('x', array(1.0, 2))", "found not one"),
    ],
)
def test_damaged_vectors_are_refused(read: Callable[[str], np.ndarray], values: str, message: str) -> None:
    with pytest.raises(DataQualityError, match=f"fields.item.vectors: .*{message}"):
        read(rows(values))


def test_a_damaged_vector_of_an_unknown_value_hurts_nobody(read: Callable[[str], np.ndarray]) -> None:
    assert read(rows(f"{GIVEN}, ('never sold', array(1.0))")).any()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT 'a' AS value", "lacks vector"),
        ("SELECT 'a' AS value, 'text' AS vector", "an array of numbers"),
        ("SELECT 'a' AS value, vector FROM nowhere", "nowhere"),
    ],
)
def test_a_wrong_select_is_told(read: Callable[[str], np.ndarray], select: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(select)
