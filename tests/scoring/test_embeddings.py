"""The stage `embed` on small tables with an untrained model: customers with and without an embedding."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from lam_spark.errors import DataQualityError, ModelError
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.embeddings import embed
from lam_spark.sequences.stage import build_sequences
from lam_spark.training_data.columns import layout_of
from tests.support.shop import ONE_TARGET, context_builder
from tests.support.tables import event, publish, register
from tests.support.tiny import random_model

BOTH = ("opt_in", "opt_in")
SECTIONS = {
    "sequences": {"max_events": 16},
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_events": 8, "window_days": [28]},
    "targets": ONE_TARGET,
    "fields": {
        "action": {"role": "how", "kind": "categorical", "min_count": 2},
        "amount": {"role": "how", "kind": "numeric"},
    },
}
EVENTS = [
    # The sequence contains the latest 16 events, all of them after 2 March.
    *[
        event("busy", f"2023-03-{day:02d}T12:00:00", f"b{day}", action="buy", amount=day)
        for day in range(1, 21)
    ],
    event("early", "2023-02-01T10:00:00", "e1", action="buy", amount=3),
    event("late", "2023-12-01T10:00:00", "l1", action="look"),
    event("later", "2023-12-19T10:00:00", "l2", action="buy", amount=9),
    event("contact", "2023-02-01T10:00:00", "c1", action="buy"),
]
STATUSES = {
    **dict.fromkeys(("busy", "early", "late", "later", "silent"), BOTH),
    "contact": ("opt_out", "opt_in"),
}

Build = Callable[..., RunContext]


@pytest.fixture(scope="module")
def build(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds run contexts on a workspace with sequences and a model."""
    folder = tmp_path_factory.mktemp("embed")
    build = context_builder(spark, folder / "shop")
    ctx = build(**SECTIONS)
    publish(ctx, EVENTS, STATUSES)
    build_sequences(ctx)
    register(ctx, random_model(layout_of(ctx.config, ctx.tables.read("vocabulary"))), folder / "model")
    return build


def embeddings(ctx: RunContext) -> dict[str, list[float]]:
    """Customer -> embedding at `as_of`."""
    rows = ctx.tables.read("embeddings").collect()
    return {
        row["customer_key"]: row["embedding"]
        for row in rows
        if row["as_of"].timestamp() == ctx.as_of.timestamp()
    }


def test_customers_without_an_embedding_are_counted(build: Build) -> None:
    ctx = build(**SECTIONS, as_of="2023-03-02")
    result = embed(ctx)
    assert result.counts == {
        "customers_eligible": 5,  # all except "contact"
        "without_sequence": 1,  # "silent"
        "truncated": 1,  # "busy"
        "embeddings": 3,
    }
    embedding = embeddings(ctx)
    assert embedding.keys() == {"early", "late", "later"}
    np.testing.assert_allclose(embedding["late"], embedding["later"], atol=1e-5)  # both histories are empty
    assert np.abs(np.subtract(embedding["early"], embedding["late"])).max() > 1e-3


def test_customers_with_events_before_as_of_have_an_embedding(build: Build) -> None:
    ctx = build(**SECTIONS)
    assert embed(ctx).counts["truncated"] == 0
    assert embeddings(ctx).keys() == {"busy", "early", "late", "later"}


def test_embeddings_that_are_not_finite_are_not_published(build: Build, tmp_path: Path) -> None:
    ctx = build(**SECTIONS)
    embed(ctx)
    before = ctx.tables.version("embeddings")
    broken = random_model(layout_of(ctx.config, ctx.tables.read("vocabulary")))
    with torch.no_grad():
        broken.output_norm.weight[3] = torch.nan
    # Another alias keeps the model of the other tests.
    ctx = build(**SECTIONS, scoring=ctx.config.scoring.model_dump() | {"alias": "broken"})
    register(ctx, broken, tmp_path / "model")
    with pytest.raises(
        DataQualityError, match="table 'embeddings' was not written: the model's output is not"
    ):
        embed(ctx)
    assert ctx.tables.version("embeddings") == before


def test_embed_fails_if_no_eligible_customer_has_a_sequence(build: Build) -> None:
    ctx = build(**SECTIONS, embeddings={"purpose": "research"})
    row = ctx.tables.read("consent").where("customer_key = 'silent'").limit(1)
    statements = row.selectExpr("customer_key", "'research' AS purpose", *row.columns[2:])
    ctx.tables.append(statements, "consent")
    with pytest.raises(
        DataQualityError, match="eligible for 'research' has a sequence: run the stage 'sequences'"
    ):
        embed(ctx)


def test_a_model_of_other_targets_is_not_used(build: Build) -> None:
    ctx = build(**SECTIONS)
    renamed = {"renewal": ONE_TARGET["response"]}
    scoring = ctx.config.scoring.model_dump() | {"target": "renewal"}
    ctx = build(**(SECTIONS | {"targets": renamed}), scoring=scoring)
    message = (
        "the registered model was trained for another configuration, which differs in targets.renewal (added), "
        "targets.response (removed): run the stage 'examples' again, then those after it"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        embed(ctx)
