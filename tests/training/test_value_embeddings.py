"""Value embeddings: their effect on the model, and their file in the training folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lam_spark.errors import ModelError
from lam_spark.model.artifact import digest_of as artifact_digest
from lam_spark.model.artifact import open_artifact, read_artifact
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.value_embeddings import (
    VALUE_EMBEDDINGS_FILE,
    load_value_embeddings,
    pack_value_embeddings,
    save_value_embeddings,
    value_embeddings_digest,
)
from lam_spark.training_data.packing import Customer
from tests.support.learnable import SHAPE, person, specification
from tests.support.tiny import batch_of, blocks_of, customer, layout, random_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

ITEMS, DIM = 203, 5
MANY_ITEMS = dataclasses.replace(SHAPE, sizes=(6, ITEMS))
WITH_EMBEDDINGS = dataclasses.replace(MANY_ITEMS, value_embedding_dims=(0, DIM))
EMBEDDINGS = np.random.default_rng(3).normal(size=(ITEMS, DIM)).astype(np.float32)
EMBEDDINGS[:3] = 0  # padding, unknown, missing


def picky_customer(number: int) -> Customer:
    """A customer who says yes if the first number of the item's embedding is above zero; items are rare.

    Items of the training period's queries do not occur in later queries.
    """
    customer = person(number)
    rng = np.random.default_rng(number)
    late = np.arange(len(customer.queries["query_time"])) >= 4
    items = np.where(late, rng.integers(103, ITEMS, len(late)), rng.integers(3, 103, len(late)))
    customer.queries["query_item"] = items.astype(np.int32)
    customer.queries["label_reply"] = (EMBEDDINGS[items, 0] > 0).astype(np.float32)
    return customer


def train(folder: Path, content: bytes) -> None:
    files = [blocks_of(MANY_ITEMS, [picky_customer(number) for number in range(120)])]
    spec = specification(folder, files, pretrain_epochs=0, finetune_epochs=6, patience=6)
    shape = WITH_EMBEDDINGS if content else MANY_ITEMS
    spec = dataclasses.replace(spec, layout=shape, value_embeddings_digest=value_embeddings_digest(content))
    save_value_embeddings(folder, content)
    worker.train(spec, LocalGroup())


def validation_auc(folder: Path) -> float:
    card: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return float(card["facts"]["training"]["validation"]["AUC"])


@pytest.fixture(scope="module")
def with_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("value_embeddings") / "with"
    train(folder, pack_value_embeddings({"item": EMBEDDINGS}))
    return folder


def test_embeddings_generalise_to_values_that_training_never_saw(
    with_embeddings: Path, tmp_path: Path
) -> None:
    train(tmp_path / "without", b"")
    assert validation_auc(with_embeddings) > 0.9
    assert validation_auc(tmp_path / "without") < 0.65


def test_embeddings_are_saved_with_the_weights_and_not_trained(with_embeddings: Path) -> None:
    weights, card = read_artifact(with_embeddings)
    model = open_artifact(weights, card, artifact_digest(weights, card)).model
    assert torch.equal(model.state_dict()["value_embeddings.of_item.table"], torch.from_numpy(EMBEDDINGS))
    assert not any("value_embeddings" in name for name, _ in model.named_parameters())


def test_queries_that_differ_only_in_embeddings_get_different_states() -> None:
    shape = layout(value_embedding_dims=(0, 3))
    model = random_model(shape)
    batch = batch_of(shape, [customer(shape, [1, 2, 3], [4])])
    before = model(batch)
    table = torch.zeros(9, 3)
    table[int(batch["query_item"][0, 0])] = 1.0
    model.set_value_embeddings({"item": table})
    after = model(batch)
    assert not torch.equal(before.query_hidden_BQD[0, 0], after.query_hidden_BQD[0, 0])
    model.set_value_embeddings({"item": torch.zeros(9, 3)})
    assert torch.equal(before.query_hidden_BQD, model(batch).query_hidden_BQD)


def test_a_layout_keeps_its_embedding_sizes_in_json() -> None:
    assert (
        type(WITH_EMBEDDINGS).from_json(json.loads(json.dumps(WITH_EMBEDDINGS.to_json()))) == WITH_EMBEDDINGS
    )
    assert WITH_EMBEDDINGS.value_embedding_shapes == {"item": (ITEMS, DIM)}
    assert MANY_ITEMS.value_embedding_shapes == {}


def test_other_embeddings_change_the_fingerprint(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks_of(SHAPE, [person(0)])])
    digest = value_embeddings_digest(pack_value_embeddings({"item": EMBEDDINGS}))
    assert spec.fingerprint() != dataclasses.replace(spec, value_embeddings_digest=digest).fingerprint()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    content = pack_value_embeddings({"item": EMBEDDINGS})
    digest = value_embeddings_digest(content)
    save_value_embeddings(tmp_path, content)
    assert torch.equal(load_value_embeddings(tmp_path, digest)["item"], torch.from_numpy(EMBEDDINGS))
    path = tmp_path / VALUE_EMBEDDINGS_FILE
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + b"\0")
    with pytest.raises(ModelError) as raised:
        load_value_embeddings(tmp_path, digest)
    assert (
        str(raised.value)
        == f"{path} is missing or damaged: remove {tmp_path} and run the stage 'train' again"
    )
