"""The registry says what the tables of a full run really look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lam_spark.storage.tables.registry import TABLES
from tests.support.runs import Finished, commits

# The small shop has no links between ids and customers, and `run` makes no embeddings.
NOT_WRITTEN = {"links", "embeddings"}


def spark_type(kind: Any) -> str:
    """A type of Delta's log as the registry writes it."""
    if isinstance(kind, str):
        return {"long": "BIGINT", "integer": "INT"}.get(kind, kind.upper())
    if kind["type"] == "array":
        return f"ARRAY<{spark_type(kind['elementType'])}>"
    return f"MAP<{spark_type(kind['keyType'])},{spark_type(kind['valueType'])}>"


def metadata(finished: Finished, name: str) -> dict[str, Any]:
    """The newest metadata in a table's log."""
    actions = (
        json.loads(line) for path in commits(finished.root, name) for line in path.open(encoding="utf-8")
    )
    *_, newest = (action["metaData"] for action in actions if "metaData" in action)
    return dict(newest)


@pytest.mark.parametrize("name", sorted(set(TABLES) - NOT_WRITTEN))
def test_a_table_has_the_declared_columns_and_properties(finished: Finished, name: str) -> None:
    spec, table = TABLES[name], metadata(finished, name)
    columns = {c["name"]: spark_type(c["type"]) for c in json.loads(table["schemaString"])["fields"]}
    declared = {column: kind for column, (kind, _) in spec.columns.items()}
    assert {column: columns.get(column) for column in declared} == declared
    assert bool(columns.keys() - declared.keys()) == bool(spec.configured_columns)
    assert set(spec.key) <= columns.keys()
    assert spec.customer_column is None or spec.customer_column in columns
    properties = table["configuration"]
    assert properties["delta.enableDeletionVectors"] == str(spec.deletion_vectors).lower()
    assert properties.get("delta.enableChangeDataFeed", "false") == str(spec.change_data_feed).lower()
    assert properties.get("delta.dataSkippingStatsColumns", "") == ",".join(spec.stats_columns)
