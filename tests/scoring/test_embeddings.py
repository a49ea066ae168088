"""Who has no vector, and why: the stage on tables made by hand, with a model that nobody trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from lam_spark.errors import DataQualityError, ModelError
from lam_spark.runtime.context import Run
from lam_spark.scoring import embeddings as embed
from lam_spark.scoring.udf import champion
from lam_spark.sequences import stage as assemble
from lam_spark.training_data.columns import layout_of
from tests.support.shop import ONE_TARGET, run_builder
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
    # Its first four events fall out of its row: on 2 March nothing of what came before is kept.
    *[
        event("busy", f"2023-03-{day:02d}T12:00:00", f"b{day}", action="buy", amount=day)
        for day in range(1, 21)
    ],
    event("early", "2023-02-01T10:00:00", "e1", action="buy", amount=3),
    event("late", "2023-12-01T10:00:00", "l1", action="look"),
    event("later", "2023-12-19T10:00:00", "l2", action="buy", amount=9),
    event("contact", "2023-02-01T10:00:00", "c1", action="buy"),
]
STANDINGS = {
    **dict.fromkeys(("busy", "early", "late", "later", "silent"), BOTH),
    "contact": ("opt_out", "opt_in"),
}

Build = Callable[..., Run]


@pytest.fixture(scope="module")
def build(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds runs over a workspace with sequences and a model."""
    folder = tmp_path_factory.mktemp("embed")
    build = run_builder(spark, folder / "shop")
    run = build(**SECTIONS)
    publish(run, EVENTS, STANDINGS)
    assemble.run(run)
    register(run, random_model(layout_of(run.config, run.tables.read("vocabulary"))), folder / "model")
    return build


def vectors(run: Run) -> dict[str, list[float]]:
    """By customer, at the run's `as_of`."""
    rows = run.tables.read("embeddings").collect()
    return {
        row["customer_key"]: row["vector"]
        for row in rows
        if row["as_of"].timestamp() == run.as_of.timestamp()
    }


def test_who_has_no_vector_is_counted(build: Build) -> None:
    run = build(**SECTIONS, as_of="2023-03-02")
    result = embed.run(run)
    assert result.counts == {
        "customers_eligible": 5,  # not "contact"
        "without_sequence": 1,  # "silent"
        "before_kept_events": 1,  # "busy"
        "embeddings": 3,
    }
    found = vectors(run)
    assert found.keys() == {"early", "late", "later"}
    np.testing.assert_allclose(found["late"], found["later"], atol=1e-5)  # nobody has done anything yet
    assert np.abs(np.subtract(found["early"], found["late"])).max() > 1e-3


def test_whose_events_are_kept_has_one(build: Build) -> None:
    run = build(**SECTIONS)
    assert embed.run(run).counts["before_kept_events"] == 0
    assert vectors(run).keys() == {"busy", "early", "late", "later"}


def test_a_damaged_vector_publishes_nothing(build: Build, tmp_path: Path) -> None:
    run = build(**SECTIONS)
    embed.run(run)
    before = run.tables.version("embeddings")
    broken = random_model(layout_of(run.config, run.tables.read("vocabulary")))
    with torch.no_grad():
        broken.output_norm.weight[3] = torch.nan
    # Another alias, so that the other tests' model stays.
    run = build(**SECTIONS, scoring=run.config.scoring.model_dump() | {"alias": "broken"})
    register(run, broken, tmp_path / "model")
    with pytest.raises(
        DataQualityError, match="table 'embeddings' was not written: what the model says is not"
    ):
        embed.run(run)
    assert run.tables.version("embeddings") == before


def test_without_a_sequence_of_anybody_eligible_it_says_what_to_do(build: Build) -> None:
    run = build(**SECTIONS, embeddings={"purpose": "research"})
    stated = run.tables.read("consent").where("customer_key = 'silent'").limit(1)
    asked = stated.selectExpr("customer_key", "'research' AS purpose", *stated.columns[2:])
    run.tables.append(asked, "consent")
    with pytest.raises(
        DataQualityError, match="eligible for 'research' has a sequence: run the stage 'sequences'"
    ):
        embed.run(run)


def test_of_a_model_with_other_targets_there_are_vectors_but_no_answers(build: Build) -> None:
    run = build(**SECTIONS)
    renamed = {"renewal": ONE_TARGET["response"]}
    scoring = run.config.scoring.model_dump() | {"target": "renewal"}
    run = build(**(SECTIONS | {"targets": renamed}), scoring=scoring)
    assert embed.run(run).counts["embeddings"] == 4
    with pytest.raises(ModelError, match="the registered model answers response, not renewal: train again"):
        champion(run, ["renewal"])
