"""Answers and vectors for a batch of customers: pack, one pass, unpack. Pure torch and numpy, no Spark."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from lam_spark.model.artifact import Artifact, as_batch, open_artifact
from lam_spark.model.transformer import Batch, LargeActionModel
from lam_spark.model.value import expected_value, median_value
from lam_spark.sequences.tokens import MISSING, UNKNOWN
from lam_spark.training_data.layout import SPLIT_IDS, Layout
from lam_spark.training_data.packing import Array, Block, Customer, pack_queries, unfold

_BLOCKS_PER_PASS = 8
# Of a batch, what is wanted: (B, Q, ...).
_Read = Callable[[LargeActionModel, Batch], torch.Tensor]

_loaded: dict[str, Artifact] = {}


def model_of_process(weights: bytes, card: bytes, digest: str) -> Artifact:
    """The model, built once a Python process and digest."""
    if digest not in _loaded:
        _loaded.clear()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        _loaded[digest] = open_artifact(weights, card, digest)
    return _loaded[digest]


def predict_queries(
    artifact: Artifact, customers: Iterable[Customer], target: str
) -> list[npt.NDArray[np.float32]]:
    """What the model answers to every customer's queries.

    Args:
        artifact: the model.
        customers: with their queries in any number; events after a query are not seen by it.
        target: which answer.

    Returns:
        For each customer the answers in the order of its queries, float32: (q,), or (q, outputs) of a target that is
        not binary (`Predictions.answers`).
    """
    answers, counts = _ask(artifact, customers, lambda model, batch: model(batch).answers[target])
    return np.split(answers, np.cumsum(counts)[:-1]) if counts else []


def embed_customers(
    artifact: Artifact, customers: Iterable[Customer], at: int, hour_of_week: int
) -> npt.NDArray[np.float32]:
    """A vector a customer: the model's hidden state where it is asked, of nothing in particular, what comes next.

    Args:
        artifact: the model.
        customers: their own queries are not looked at. Events at or after `at` are not seen.
        at: the instant of the question, microseconds UTC.
        hour_of_week: of that instant, by the clock of the data set (0 = Sunday 00:00).

    Returns:
        (n, D) float32 in the order of the customers: after the output norm, before any head, so without the
        aggregates. Whoever has no event before `at` gets the vector of an empty history, the same for all of
        them: it is what the model expects of somebody it knows nothing about, and the order stays whole.
    """
    query = _what_next(artifact.model.layout, at, hour_of_week)
    asking = (dataclasses.replace(customer, queries=query) for customer in customers)
    vectors, counts = _ask(
        artifact, asking, lambda model, batch: model(batch, with_targets=False).query_hidden_BQD
    )
    return vectors.reshape(len(counts), artifact.model.size.d_model)


def _what_next(layout: Layout, at: int, hour_of_week: int) -> dict[str, Array]:
    """One query whose fields are all missing."""
    given = {
        "query_time": at,
        "query_hour_of_week": hour_of_week,
        "query_split": SPLIT_IDS["score"],
        **{f"query_{name}": MISSING for name in layout.categorical},
    }
    return {
        name: np.full(
            (1, layout.wide[name]) if name in layout.wide else 1,
            given.get(name, np.nan if dtype == "float32" else 0),
            dtype,
        )
        for name, (dtype, _) in layout.query_columns.items()
    }


def _ask(
    artifact: Artifact, customers: Iterable[Customer], read: _Read
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """What the model says at every query.

    Args:
        artifact: the model.
        customers: with their queries.
        read: what is wanted of a pass, (B, Q, ...).

    Returns:
        (N, ...) float32, by customer and query; how many queries each customer has (N in all).
    """
    counts: list[int] = []

    def numbered() -> Iterator[Customer]:
        first = 0
        for customer in customers:
            asked = len(customer.queries["query_time"])
            counts.append(asked)
            rows = np.arange(first, first + asked, dtype=np.int32)
            first += asked
            known = _known_ids(artifact.model.layout, customer)
            yield dataclasses.replace(known, queries={**known.queries, "query_row": rows})

    rows: list[npt.NDArray[np.int32]] = []
    answers: list[npt.NDArray[np.float32]] = []
    blocks = pack_queries(artifact.model.layout, numbered())
    while waiting := list(itertools.islice(blocks, _BLOCKS_PER_PASS)):
        _ask_blocks(artifact, waiting, read, rows, answers)
    if not answers:
        return np.zeros(0, np.float32), counts
    ordered = np.full((sum(counts), *answers[0].shape[1:]), np.nan, np.float32)
    ordered[np.concatenate(rows)] = np.concatenate(answers)
    return ordered, counts


def readable(layout: Layout, target: str, answers: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Answers of `predict_queries` as (q, n): of `value` mean and median amount, else the logits."""
    asked = next(one for one in layout.targets if one.name == target)
    if asked.kind != "value":
        return answers.astype(np.float64).reshape(len(answers), asked.outputs)
    raw = torch.from_numpy(answers).double().reshape(-1, asked.outputs)
    return torch.stack([expected_value(raw), median_value(raw)], dim=1).numpy()


def _ask_blocks(
    artifact: Artifact,
    blocks: list[Block],
    read: _Read,
    rows: list[npt.NDArray[np.int32]],
    answers: list[npt.NDArray[np.float32]],
) -> None:
    stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
    with torch.inference_mode():
        batch = as_batch(unfold(artifact.model.layout, stacked))
        told = read(artifact.model, batch).numpy()
    asked = stacked["query_row"] >= 0
    rows.append(stacked["query_row"][asked])
    answers.append(told[asked])


def _known_ids(layout: Layout, customer: Customer) -> Customer:
    """Ids that the vocabulary gained after training are unknown to this model."""
    events, queries = dict(customer.events), dict(customer.queries)
    for name, size in zip(layout.categorical, layout.sizes, strict=True):
        for arrays, key in ((events, name), (queries, f"query_{name}")):
            ids = np.asarray(arrays[key])
            if len(ids) and ids.max() >= size:
                arrays[key] = np.where(ids >= size, UNKNOWN, ids).astype(ids.dtype)
    return dataclasses.replace(customer, events=events, queries=queries)
