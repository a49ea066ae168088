"""The stage `embed` on the workspace of the full run: embeddings of customers eligible for training."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from lam_spark.model.artifact import open_artifact
from lam_spark.scoring.embeddings import EmbedResult
from lam_spark.scoring.predictor import embed_customers
from lam_spark.training.registry import registered_model
from lam_spark.training_data.columns import customers, query_columns
from tests.support.runs import Finished, rows
from tests.support.shop import keys_of

# 2023-12-20 00:00 in Berlin, a Wednesday, in UTC.
AS_OF, HOUR_OF_WEEK = pd.Timestamp("2023-12-19 23:00"), 72
D_MODEL = 16


def training_keys(finished: Finished) -> set[str]:
    """Keys of customers eligible for training."""
    return keys_of(finished.data.training)


def test_exactly_the_eligible_customers_have_an_embedding(embedded: Finished) -> None:
    embeddings = rows(embedded.root, "embeddings")
    assert len(embeddings) == len(embedded.data.training)
    assert {row["customer_key"] for row in embeddings} == training_keys(embedded)
    assert {row["as_of"] for row in embeddings} == {AS_OF}
    assert embedded.summary["stages"] == {
        "embed": {
            "customers_eligible": len(embeddings),
            "without_sequence": 0,
            "truncated": 0,
            "embeddings": len(embeddings),
        }
    }


def test_an_embedding_has_d_model_values_and_records_its_model(embedded: Finished) -> None:
    embeddings = rows(embedded.root, "embeddings")
    vectors = np.array([row["embedding"] for row in embeddings])
    assert vectors.shape == (len(embeddings), D_MODEL)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) > 0.9 * len(embeddings)  # customers differ
    origin = ("model_digest", "model_version", "consent_version", "run_id")
    (scored,) = {tuple(row[name] for name in origin[:3]) for row in rows(embedded.root, "scores")}
    # `deliver` has refreshed the ledger since the scores were made.
    made = (*scored[:2], embedded.versions["consent"], embedded.summary["run_id"])
    assert {tuple(row[name] for name in origin) for row in embeddings} == {made}


def test_the_embeddings_are_those_of_the_registered_model(embedded: Finished) -> None:
    weights, card, digest, _ = registered_model(embedded.data.config())
    artifact = open_artifact(weights, card, digest)
    layout = artifact.model.layout
    sequences = pd.DataFrame(rows(embedded.root, "sequences")).assign(**dict.fromkeys(query_columns(layout)))
    at = AS_OF.value // 1000  # microseconds
    expected = embed_customers(artifact, customers(layout, sequences), at, HOUR_OF_WEEK)
    stored = {row["customer_key"]: row["embedding"] for row in rows(embedded.root, "embeddings")}
    is_eligible = sequences["customer_key"].isin(stored).to_numpy()
    assert is_eligible.sum() == len(stored) < len(sequences)
    actual = np.array([stored[key] for key in sequences["customer_key"][is_eligible]])
    np.testing.assert_allclose(actual, expected[is_eligible], atol=1e-5)


def test_embed_has_an_audit_entry(embedded: Finished) -> None:
    (record,) = (row for row in rows(embedded.root, "audit") if row["stage"] == "embed")
    assert (record["status"], record["run_id"]) == ("done", embedded.summary["run_id"])
    entry: dict[str, Any] = json.loads(record["entry"])
    result = EmbedResult.from_json(entry["result"])
    assert result.counts == embedded.summary["stages"]["embed"]
    assert entry["tables_written"] == {"embeddings": 0}
    assert {name: entry["tables_read"][name] for name in ("sequences", "consent")} == {
        name: embedded.versions[name] for name in ("sequences", "consent")
    }
    assert (result.purpose, result.d_model) == ("model_training", D_MODEL)
