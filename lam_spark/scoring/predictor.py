"""Predictions and embeddings for batches of customers: pack, run the model, unpack. Pure torch and NumPy, no Spark."""

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
# Runs the model on a batch and returns one tensor per query, (B, Q, ...).
_Inference = Callable[[LargeActionModel, Batch], torch.Tensor]

_loaded: dict[str, Artifact] = {}


def cached_artifact(weights: bytes, card: bytes, digest: str) -> Artifact:
    """Open an artifact once per Python process and digest."""
    if digest not in _loaded:
        _loaded.clear()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        _loaded[digest] = open_artifact(weights, card, digest)
    return _loaded[digest]


def predict_queries(
    artifact: Artifact, customers: Iterable[Customer], target: str
) -> list[npt.NDArray[np.float32]]:
    """Predict a target for every query of every customer.

    Args:
        artifact: the model.
        customers: customers with any number of queries; a query does not see events after it.
        target: name of the target.

    Returns:
        For each customer the predictions in the order of its queries, float32: (q,) of a binary target, else
        (q, outputs) (`Predictions.targets`).
    """
    predictions, counts = _infer(artifact, customers, lambda model, batch: model(batch).targets[target])
    return np.split(predictions, np.cumsum(counts)[:-1]) if counts else []


def prediction_values(
    layout: Layout, target: str, predictions: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Convert the output of `predict_queries` to (q, n): mean and median of a `value` target, else the logits."""
    spec = next(spec for spec in layout.targets if spec.name == target)
    if spec.kind != "value":
        return predictions.astype(np.float64).reshape(len(predictions), spec.outputs)
    parameters = torch.from_numpy(predictions).double().reshape(-1, spec.outputs)
    return torch.stack([expected_value(parameters), median_value(parameters)], dim=1).numpy()


def embed_customers(
    artifact: Artifact, customers: Iterable[Customer], as_of: int, hour_of_week: int
) -> npt.NDArray[np.float32]:
    """Compute customer embeddings: the hidden state of a query whose fields are all missing.

    Args:
        artifact: the model.
        customers: customers; their queries are ignored. Events at or after `as_of` are not seen.
        as_of: time of the query, microseconds UTC.
        hour_of_week: hour of the week at `as_of` in the data set's time zone (0 = Sunday 00:00).

    Returns:
        (n, D) float32 in the order of the customers: the hidden state after the output norm and before the heads, so
        without the aggregates. All customers without events before `as_of` get the same embedding, that of an empty
        history.
    """
    query = _empty_query(artifact.model.layout, as_of, hour_of_week)
    queried = (dataclasses.replace(customer, queries=query) for customer in customers)
    embeddings, counts = _infer(
        artifact, queried, lambda model, batch: model(batch, with_targets=False).query_hidden_BQD
    )
    return embeddings.reshape(len(counts), artifact.model.size.d_model)


def _empty_query(layout: Layout, as_of: int, hour_of_week: int) -> dict[str, Array]:
    """Columns of one query whose fields are all missing."""
    values = {
        "query_time": as_of,
        "query_hour_of_week": hour_of_week,
        "query_split": SPLIT_IDS["score"],
        **{f"query_{name}": MISSING for name in layout.categorical},
    }
    columns = {}
    for name, (dtype, _) in layout.query_columns.items():
        numbers = layout.values_per_query.get(name)
        default = np.nan if dtype == "float32" else 0
        columns[name] = np.full(1 if numbers is None else (1, numbers), values.get(name, default), dtype)
    return columns


def _infer(
    artifact: Artifact, customers: Iterable[Customer], inference: _Inference
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Run the model on all queries of the customers, `_BLOCKS_PER_PASS` blocks at a time.

    Returns:
        (N, ...) float32 by customer and query, and the number of queries of each customer (N in total).
    """
    layout, counts = artifact.model.layout, list[int]()
    blocks = pack_queries(layout, _numbered(layout, customers, counts))
    rows: list[npt.NDArray[np.int32]] = []
    outputs: list[npt.NDArray[np.float32]] = []
    while batch := list(itertools.islice(blocks, _BLOCKS_PER_PASS)):
        block_rows, block_outputs = _run_blocks(artifact.model, batch, inference)
        rows.append(block_rows)
        outputs.append(block_outputs)
    if not outputs:
        return np.zeros(0, np.float32), counts
    ordered = np.full((sum(counts), *outputs[0].shape[1:]), np.nan, np.float32)
    ordered[np.concatenate(rows)] = np.concatenate(outputs)
    return ordered, counts


def _numbered(layout: Layout, customers: Iterable[Customer], counts: list[int]) -> Iterator[Customer]:
    """Number the queries of all customers in `query_row`, and append each customer's number of queries to `counts`."""
    first = 0
    for customer in customers:
        n_queries = len(customer.queries["query_time"])
        counts.append(n_queries)
        rows = np.arange(first, first + n_queries, dtype=np.int32)
        first += n_queries
        customer = _with_known_ids(layout, customer)
        yield dataclasses.replace(customer, queries={**customer.queries, "query_row": rows})


def _run_blocks(
    model: LargeActionModel, blocks: list[Block], inference: _Inference
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Run the model on some blocks; returns `query_row` and output of the query slots in use."""
    stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
    with torch.inference_mode():
        output = inference(model, as_batch(unfold(model.layout, stacked))).numpy()
    in_use = stacked["query_row"] >= 0
    return stacked["query_row"][in_use], output[in_use]


def _with_known_ids(layout: Layout, customer: Customer) -> Customer:
    """Replace ids that the vocabulary gained after training by `UNKNOWN`."""
    events, queries = dict(customer.events), dict(customer.queries)
    for name, size in layout.ids_in_use.items():
        for arrays, key in ((events, name), (queries, f"query_{name}")):
            ids = np.asarray(arrays[key])
            if len(ids) and ids.max() >= size:
                arrays[key] = np.where(ids >= size, UNKNOWN, ids).astype(ids.dtype)
    return dataclasses.replace(customer, events=events, queries=queries)
