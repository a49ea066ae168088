"""The stage that `run` leaves out, on the workspace of the full run: vectors of those who agreed to be learned from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.model.artifact import open_artifact
from lam_spark.scoring.predictor import embed_customers
from lam_spark.training.registry import registered_model
from lam_spark.training_data.columns import customers, query_columns
from tests.support.runs import Finished, rows
from tests.support.shop import SECRET

# 2023-12-20 00:00 in Berlin, a Wednesday; UTC, as Parquet gives it.
AS_OF, HOUR_OF_WEEK = pd.Timestamp("2023-12-19 23:00"), 72
WIDTH = 16


def of_training(finished: Finished) -> set[str]:
    """Keys of those who agreed to be learned from."""
    return {keyed_pseudonym(SECRET.encode(), raw) for raw in finished.data.training}


def test_there_is_one_vector_a_customer_who_agreed_and_none_of_anybody_else(embedded: Finished) -> None:
    made = rows(embedded.root, "embeddings")
    assert len(made) == len(embedded.data.training)
    assert {row["customer_key"] for row in made} == of_training(embedded)
    assert {row["as_of"] for row in made} == {AS_OF}
    assert embedded.summary["stages"] == {
        "embed": {
            "customers_eligible": len(made),
            "without_sequence": 0,
            "before_kept_events": 0,
            "embeddings": len(made),
        }
    }


def test_a_vector_is_as_wide_as_the_model_and_says_where_it_is_from(embedded: Finished) -> None:
    made = rows(embedded.root, "embeddings")
    vectors = np.array([row["vector"] for row in made])
    assert vectors.shape == (len(made), WIDTH)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) > 0.9 * len(made)  # it tells people apart
    origin = ("model_digest", "model_version", "consent_version", "run_id")
    (scored,) = {tuple(row[name] for name in origin[:3]) for row in rows(embedded.root, "scores")}
    assert {tuple(row[name] for name in origin) for row in made} == {(*scored, embedded.summary["run_id"])}


def test_the_vectors_are_those_of_the_registered_model(embedded: Finished) -> None:
    weights, card, digest, _ = registered_model(embedded.data.config())
    artifact = open_artifact(weights, card, digest)
    layout = artifact.model.layout
    held = pd.DataFrame(rows(embedded.root, "sequences")).assign(**dict.fromkeys(query_columns(layout)))
    at = AS_OF.value // 1000  # microseconds
    expected = embed_customers(artifact, customers(layout, held), at, HOUR_OF_WEEK)
    made = {row["customer_key"]: row["vector"] for row in rows(embedded.root, "embeddings")}
    chosen = held["customer_key"].isin(made).to_numpy()
    assert chosen.sum() == len(made) < len(held)
    given = np.array([made[key] for key in held["customer_key"][chosen]])
    np.testing.assert_allclose(given, expected[chosen], atol=1e-5)


def test_it_is_on_record_like_every_stage(embedded: Finished) -> None:
    (record,) = (row for row in rows(embedded.root, "audit") if row["stage"] == "embed")
    assert (record["status"], record["run_id"]) == ("done", embedded.summary["run_id"])
    entry: dict[str, Any] = json.loads(record["entry"])
    assert entry["counts"] == embedded.summary["stages"]["embed"]
    assert entry["tables_written"] == {"embeddings": 0}
    assert {name: entry["tables_read"][name] for name in ("sequences", "consent")} == {
        name: embedded.versions[name] for name in ("sequences", "consent")
    }
    facts = entry["facts"]
    assert (facts["purpose"], facts["width"]) == ("model_training", WIDTH)
