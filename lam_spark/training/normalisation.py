"""Statistics of the training period's queries: the constants that a model starts from.

One pass over a few columns of the files with queries. Memory: one row group, a histogram of 16 KiB per aggregate and a
few numbers per target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lam_spark.model.value import MAX_LOG_STD, MIN_LOG_STD
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.loader import BlockFiles, column_groups
from lam_spark.training_data.packing import Block, unfold

Float = npt.NDArray[np.float64]
# Aggregates are logarithms, so one bin is 3 % wide. Fixed bins let the processes add up their histograms.
_BINS_PER_UNIT, _LIMIT = 32, 32
_BIN_STARTS = np.arange(-_LIMIT * _BINS_PER_UNIT, _LIMIT * _BINS_PER_UNIT) / _BINS_PER_UNIT


@dataclass(frozen=True)
class QueryStatistics:
    """Statistics of the training period's queries, over all processes. A is the number of aggregates.

    Attributes:
        mean, std: (A,) of the aggregates; the deviation is 1 where an aggregate does not vary.
        edges: (A,) ascending quantiles that bound equally full bins, exact to 1/32.
        constants: target -> (outputs,) the constant prediction with the least loss. Heads start there, so that they
            need not learn the base rate of rare outcomes first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    edges: tuple[tuple[float, ...], ...]
    constants: dict[str, Tensor]


def query_statistics(files: BlockFiles, layout: Layout, group: ProcessGroup, bins: int) -> QueryStatistics:
    """Compute the statistics in one pass over this process's files and two sums over the processes.

    Args:
        files: files of this process.
        layout: layout of the blocks.
        group: the process group; the call is collective.
        bins: number of bins that `edges` bound; 0 gives no edges.
    """
    width = len(layout.aggregate_names)
    total: Float = np.zeros(1 + 2 * width + sum(map(_sum_count, layout.targets)))
    histogram: Float = np.zeros((width, len(_BIN_STARTS)))
    label_columns = [f"label_{target.name}" for target in layout.targets]
    for columns in column_groups(files, layout, ["window", "query_split", "aggregates", *label_columns]):
        block = unfold(layout, columns)
        in_training = block["query_split"] == SPLIT_IDS["train"]
        rows = block["aggregates"][in_training].astype(np.float64)
        labels = [_label_sums(target, block, in_training) for target in layout.targets]
        total += np.concatenate([[len(rows)], rows.sum(0), (rows**2).sum(0), *labels])
        if bins:
            histogram += _histogram(rows)
    total = group.sum(torch.from_numpy(total)).numpy()
    histogram = group.sum(torch.from_numpy(histogram.ravel())).numpy().reshape(histogram.shape)
    count = max(1.0, total[0])
    mean = total[1 : 1 + width] / count
    square = total[1 + width : 1 + 2 * width] / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    constants, first = {}, 1 + 2 * width
    for target in layout.targets:
        length = _sum_count(target)
        constants[target.name] = _best_constant(target, total[first : first + length])
        first += length
    return QueryStatistics(
        tuple(mean.tolist()),
        tuple(np.where(std > 1e-4, std, 1.0).tolist()),
        tuple(_edges(row, bins) for row in histogram),
        constants,
    )


def _histogram(rows: Float) -> Float:
    """(n, A) -> (A, bins) number of rows per bin."""
    width = rows.shape[1]
    # Values that are not finite show in the mean, and so in the loss.
    position = np.floor(np.nan_to_num(rows) * _BINS_PER_UNIT) + _LIMIT * _BINS_PER_UNIT
    bins = position.clip(0, len(_BIN_STARTS) - 1).astype(np.int64)
    flat = (bins + np.arange(width) * len(_BIN_STARTS)).ravel()
    counts: Float = np.bincount(flat, minlength=width * len(_BIN_STARTS)).astype(np.float64)
    return counts.reshape(width, -1)


def _edges(counts: Float, bins: int) -> tuple[float, ...]:
    """Distinct quantiles 0, 1/bins, ... 1 of a histogram."""
    cumulative = counts.cumsum()
    if not bins or not cumulative[-1]:
        return ()
    positions = np.maximum(1.0, cumulative[-1] * np.arange(bins + 1) / bins)
    return tuple(np.unique(_BIN_STARTS[np.searchsorted(cumulative, positions)]).tolist())


def _sum_count(target: Target) -> int:
    """Length of the array that `_label_sums` returns."""
    return 4 if target.kind == "value" else 1 + target.values


def _label_sums(target: Target, block: Block, in_training: npt.NDArray[np.bool_]) -> Float:
    """Sums over a target's labels for `_best_constant`.

    `binary` and `next`: number of queries, then the sum of each value's labels. `value`: number of queries, number of
    positive amounts, and the sum and the sum of squares of their logs.
    """
    labels = block[f"label_{target.name}"][in_training].astype(np.float64)
    if target.kind == "next":
        labels = labels[~np.isnan(labels).any(axis=1)]
        return np.concatenate([[len(labels)], labels.sum(axis=0)])
    labels = labels[~np.isnan(labels)]
    if target.kind == "binary":
        return np.array([len(labels), labels.sum()])
    logs = np.log(labels[labels > 0])
    return np.array([len(labels), len(logs), logs.sum(), (logs**2).sum()])


def _best_constant(target: Target, sums: Float) -> Tensor:
    """(outputs,) the constant prediction with the least loss, from `_label_sums`."""
    if target.kind == "value":
        queries, positives, total, square = sums
        mean = total / max(1.0, positives)
        std = np.sqrt(max(square / max(1.0, positives) - mean**2, 0.0))
        # The deviation over all customers; it is smaller given a customer's history.
        log_std = np.clip(np.log(max(std, 0.05)), MIN_LOG_STD, MAX_LOG_STD - 0.1)
        constant = np.array([_log_odds(positives, queries), mean, log_std])
    else:
        constant = _log_odds(sums[1:], sums[0])
    return torch.from_numpy(np.asarray(constant, dtype=np.float32))


def _log_odds(positives: Float, queries: Float) -> Float:
    """Log odds of a share with half a query added to both classes, so that they are always finite."""
    return np.asarray(np.log((positives + 0.5) / (queries - positives + 0.5)))
