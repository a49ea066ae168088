"""Fixed vectors of values: what the model does with them, and how they travel."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lam_spark.errors import ModelError
from lam_spark.model.artifact import digest_of as artifact_digest
from lam_spark.model.artifact import open_artifact, read_artifact
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.value_embeddings import (
    VECTORS_FILE,
    digest_of,
    load_vectors,
    packed_vectors,
    save_vectors,
)
from lam_spark.training_data.packing import Customer
from tests.support.learnable import SHAPE, person, specification
from tests.support.tiny import batch_of, blocks_of, customer, layout, random_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

ITEMS, WIDTH = 203, 5
MANY_ITEMS = dataclasses.replace(SHAPE, sizes=(6, ITEMS))
WITH_VECTORS = dataclasses.replace(MANY_ITEMS, value_embedding_dims=(0, WIDTH))
VECTORS = np.random.default_rng(3).normal(size=(ITEMS, WIDTH)).astype(np.float32)
VECTORS[:3] = 0  # padding, unknown, missing


def picky(number: int) -> Customer:
    """Whoever is asked about an item says yes if the first number of its vector is above zero; items are rare.

    Those of the training period's questions are never asked about later.
    """
    one = person(number)
    rng = np.random.default_rng(number)
    late = np.arange(len(one.queries["query_time"])) >= 4
    asked = np.where(late, rng.integers(103, ITEMS, len(late)), rng.integers(3, 103, len(late)))
    one.queries["query_item"] = asked.astype(np.int32)
    one.queries["label_reply"] = (VECTORS[asked, 0] > 0).astype(np.float32)
    return one


def trained(folder: Path, vectors: bytes) -> None:
    files = [blocks_of(MANY_ITEMS, [picky(number) for number in range(120)])]
    spec = specification(folder, files, pretrain_epochs=0, finetune_epochs=6, patience=6)
    shape = WITH_VECTORS if vectors else MANY_ITEMS
    spec = dataclasses.replace(spec, layout=shape, vectors_digest=digest_of(vectors))
    save_vectors(folder, vectors)
    worker.train(spec, LocalGroup())


def told(folder: Path) -> dict[str, float]:
    card = json.loads((folder / "model.json").read_text())
    return dict(card["facts"])


@pytest.fixture(scope="module")
def with_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "with"
    trained(folder, packed_vectors({"item": VECTORS}))
    return folder


def test_vectors_tell_of_values_that_training_never_saw(with_vectors: Path, tmp_path: Path) -> None:
    trained(tmp_path / "without", b"")
    assert told(with_vectors)["validation_AUC"] > 0.9
    assert told(tmp_path / "without")["validation_AUC"] < 0.65


def test_they_travel_with_the_weights_and_are_not_trained(with_vectors: Path) -> None:
    weights, card = read_artifact(with_vectors)
    model = open_artifact(weights, card, artifact_digest(weights, card)).model
    assert torch.equal(model.state_dict()["value_embeddings.of_item.table"], torch.from_numpy(VECTORS))
    assert not any("value_embeddings" in name for name, _ in model.named_parameters())


def test_events_and_queries_are_told_apart_by_vectors_alone() -> None:
    shape = layout(value_embedding_dims=(0, 3))
    model = random_model(shape)
    batch = batch_of(shape, [customer(shape, [1, 2, 3], query_times=[4])])
    before = model(batch)
    table = torch.zeros(9, 3)
    table[int(batch["query_item"][0, 0])] = 1.0
    model.set_value_embeddings({"item": table})
    after = model(batch)
    assert not torch.equal(before.query_hidden_BQD[0, 0], after.query_hidden_BQD[0, 0])
    model.set_value_embeddings({"item": torch.zeros(9, 3)})
    assert torch.equal(before.query_hidden_BQD, model(batch).query_hidden_BQD)


def test_a_layout_keeps_its_vectors_in_json() -> None:
    assert type(WITH_VECTORS).from_json(json.loads(json.dumps(WITH_VECTORS.to_json()))) == WITH_VECTORS
    assert WITH_VECTORS.value_embedding_shapes == {"item": (ITEMS, WIDTH)}
    assert MANY_ITEMS.value_embedding_shapes == {}


def test_other_vectors_make_another_training(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks_of(SHAPE, [person(0)])])
    other = dataclasses.replace(spec, vectors_digest=digest_of(packed_vectors({"item": VECTORS})))
    assert spec.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_file_is_told(tmp_path: Path, damage: str) -> None:
    vectors = packed_vectors({"item": VECTORS})
    save_vectors(tmp_path, vectors)
    assert torch.equal(load_vectors(tmp_path, digest_of(vectors))["item"], torch.from_numpy(VECTORS))
    if damage == "missing":
        (tmp_path / VECTORS_FILE).unlink()
    else:
        (tmp_path / VECTORS_FILE).write_bytes(vectors[:-1] + b"\0")
    with pytest.raises(ModelError, match="missing or damaged"):
        load_vectors(tmp_path, digest_of(vectors))
