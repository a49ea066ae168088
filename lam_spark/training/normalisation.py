"""What the training period's queries look like on the whole: constants that the model starts from.

One pass over some columns of the files with queries; memory: one row group, a histogram (16 KiB) an aggregate, some
numbers a target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lam_spark.model.value import LEAST_LOG_STD, MOST_LOG_STD
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.loader import BlockFiles, column_groups
from lam_spark.training_data.packing import Block, unfold

Float = npt.NDArray[np.float64]
# Aggregates are logarithms: a bin is 3 % of what they are of, and all ranks' histograms add up to one.
_BINS_A_UNIT, _MOST = 32, 32
_BIN_STARTS = np.arange(-_MOST * _BINS_A_UNIT, _MOST * _BINS_A_UNIT) / _BINS_A_UNIT


@dataclass(frozen=True)
class QueryStatistics:
    """Over all ranks' queries of the training period.

    Attributes:
        mean, std: (A,) of the aggregates (deviation 1 where they do not vary).
        edges: of each aggregate, the quantiles that bound equally full bins, ascending; to 1/32.
        constants: target -> (outputs,) the constant answer that fits its labels best. A head that starts there need
            not learn first how rare the rare is.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    edges: tuple[tuple[float, ...], ...]
    constants: dict[str, Tensor]


def query_statistics(files: BlockFiles, layout: Layout, world: ProcessGroup, bins: int) -> QueryStatistics:
    """One pass over the rank's files, and a sum over all ranks.

    Args:
        files: of this rank.
        layout: of the blocks.
        world: all ranks come here.
        bins: how many the `edges` bound; 0: none.
    """
    width = len(layout.aggregate_names)
    total: Float = np.zeros(1 + 2 * width + sum(map(_length, layout.targets)))
    histogram: Float = np.zeros((width, len(_BIN_STARTS)))
    labels_of = [f"label_{target.name}" for target in layout.targets]
    for group in column_groups(files, layout, ["window", "query_split", "aggregates", *labels_of]):
        block = unfold(layout, group)
        asked = block["query_split"] == SPLIT_IDS["train"]
        rows = block["aggregates"][asked].astype(np.float64)
        labels = [_sums(target, block, asked) for target in layout.targets]
        total += np.concatenate([[len(rows)], rows.sum(0), (rows**2).sum(0), *labels])
        if bins:
            histogram += _counted(rows)
    total = world.sum(torch.from_numpy(total)).numpy()
    histogram = world.sum(torch.from_numpy(histogram.ravel())).numpy().reshape(histogram.shape)
    count = max(1.0, total[0])
    mean = total[1 : 1 + width] / count
    square = total[1 + width : 1 + 2 * width] / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    constants, first = {}, 1 + 2 * width
    for target in layout.targets:
        length = _length(target)
        constants[target.name] = _constant(target, total[first : first + length])
        first += length
    return QueryStatistics(
        tuple(mean.tolist()),
        tuple(np.where(std > 1e-4, std, 1.0).tolist()),
        tuple(_edges(row, bins) for row in histogram),
        constants,
    )


def _counted(rows: Float) -> Float:
    """(n, A) -> (A, bins) how many of each aggregate fall into each bin."""
    width = rows.shape[1]
    # What is not finite shows in the mean, and so in the loss.
    reached = np.floor(np.nan_to_num(rows) * _BINS_A_UNIT) + _MOST * _BINS_A_UNIT
    bins = reached.clip(0, len(_BIN_STARTS) - 1).astype(np.int64)
    flat = (bins + np.arange(width) * len(_BIN_STARTS)).ravel()
    found: Float = np.bincount(flat, minlength=width * len(_BIN_STARTS)).astype(np.float64)
    return found.reshape(width, -1)


def _edges(counts: Float, bins: int) -> tuple[float, ...]:
    """The quantiles 0, 1/bins, ... 1 of a histogram; equal ones once."""
    reached = counts.cumsum()
    if not bins or not reached[-1]:
        return ()
    # The bin in which the n-th of all is, from the first to the last.
    wanted = np.maximum(1.0, reached[-1] * np.arange(bins + 1) / bins)
    return tuple(np.unique(_BIN_STARTS[np.searchsorted(reached, wanted)]).tolist())


def _length(target: Target) -> int:
    """How many numbers `_sums` gives."""
    return 4 if target.kind == "value" else 1 + target.values


def _sums(target: Target, block: Block, asked: npt.NDArray[np.bool_]) -> Float:
    """Of a target's labels, what `_constant` needs: queries, then a sum a value; of `value`, moments of the logs."""
    labels = block[f"label_{target.name}"][asked].astype(np.float64)
    if target.kind == "next":
        labels = labels[~np.isnan(labels).any(axis=1)]
        return np.concatenate([[len(labels)], labels.sum(axis=0)])
    labels = labels[~np.isnan(labels)]
    if target.kind == "binary":
        return np.array([len(labels), labels.sum()])
    logs = np.log(labels[labels > 0])
    return np.array([len(labels), len(logs), logs.sum(), (logs**2).sum()])


def _constant(target: Target, sums: Float) -> Tensor:
    if target.kind == "value":
        queries, found, total, square = sums
        mean = total / max(1.0, found)
        std = np.sqrt(max(square / max(1.0, found) - mean**2, 0.0))
        # The deviation over everybody; given what is known of a customer it is less.
        log_std = np.clip(np.log(max(std, 0.05)), LEAST_LOG_STD, MOST_LOG_STD - 0.1)
        answer = np.array([_log_odds(found, queries), mean, log_std])
    else:
        answer = _log_odds(sums[1:], sums[0])
    return torch.from_numpy(np.asarray(answer, dtype=np.float32))


def _log_odds(happened: Float, asked: Float) -> Float:
    """Of a share, drawn to a half by one query: finite where all or none did."""
    return np.asarray(np.log((happened + 0.5) / (asked - happened + 0.5)))
