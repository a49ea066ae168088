"""Answers for a batch of customers: pack, one pass, unpack. Pure torch and numpy, no Spark."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from lam_spark.dataset.layout import Layout
from lam_spark.dataset.packing import Block, Customer, pack_queries, unfold
from lam_spark.model.artifact import Artifact, as_batch, open_artifact
from lam_spark.model.value import expected_value, median_value
from lam_spark.tokens import UNKNOWN

_BLOCKS_PER_PASS = 8

_loaded: dict[str, Artifact] = {}


def model_of_process(weights: bytes, card: bytes, digest: str) -> Artifact:
    """The model, built once a Python process and digest."""
    if digest not in _loaded:
        _loaded.clear()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        _loaded[digest] = open_artifact(weights, card, digest)
    return _loaded[digest]


def answer_queries(
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
    logits: list[npt.NDArray[np.float32]] = []
    waiting: list[Block] = []
    for block in pack_queries(artifact.model.layout, numbered()):
        waiting.append(block)
        if len(waiting) == _BLOCKS_PER_PASS:
            _answer_blocks(artifact, waiting, target, rows, logits)
            waiting = []
    if waiting:
        _answer_blocks(artifact, waiting, target, rows, logits)
    shape = logits[0].shape[1:] if logits else ()
    ordered = np.full((sum(counts), *shape), np.nan, np.float32)
    if rows:
        ordered[np.concatenate(rows)] = np.concatenate(logits)
    return np.split(ordered, np.cumsum(counts)[:-1]) if counts else []


def readable(layout: Layout, target: str, answers: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Answers of `answer_queries` as (q, n): of `value` mean and median amount, else the logits."""
    asked = next(one for one in layout.targets if one.name == target)
    if asked.kind != "value":
        return answers.astype(np.float64).reshape(len(answers), asked.outputs)
    raw = torch.from_numpy(answers).double().reshape(-1, asked.outputs)
    return torch.stack([expected_value(raw), median_value(raw)], dim=1).numpy()


def _answer_blocks(
    artifact: Artifact,
    blocks: list[Block],
    target: str,
    rows: list[npt.NDArray[np.int32]],
    logits: list[npt.NDArray[np.float32]],
) -> None:
    stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
    with torch.inference_mode():
        batch = as_batch(unfold(artifact.model.layout, stacked))
        answers = artifact.model(batch).answers[target].numpy()
    asked = stacked["query_row"] >= 0
    rows.append(stacked["query_row"][asked])
    logits.append(answers[asked])


def _known_ids(layout: Layout, customer: Customer) -> Customer:
    """Ids that the vocabulary gained after training are unknown to this model."""
    events, queries = dict(customer.events), dict(customer.queries)
    for name, size in zip(layout.categorical, layout.sizes, strict=True):
        for arrays, key in ((events, name), (queries, f"query_{name}")):
            ids = np.asarray(arrays[key])
            if len(ids) and ids.max() >= size:
                arrays[key] = np.where(ids >= size, UNKNOWN, ids).astype(ids.dtype)
    return dataclasses.replace(customer, events=events, queries=queries)
