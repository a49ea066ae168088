"""What the training period's queries look like on the whole: constants that the model starts from.

One pass over the files with queries; memory: one row group and a few numbers an aggregate and target.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lam_spark.dataset.layout import SPLIT_IDS, Layout, Target
from lam_spark.dataset.loader import BlockFiles, block_batches
from lam_spark.dataset.packing import Block
from lam_spark.training.distributed import World

Float = npt.NDArray[np.float64]
_BLOCKS = 64


def query_statistics(
    files: BlockFiles, layout: Layout, world: World
) -> tuple[tuple[Float, Float], dict[str, Tensor]]:
    """Over all ranks' queries of the training period.

    Returns:
        (A,) means and deviations of the aggregates (1 where they do not vary), and target -> (outputs,) the constant
        answer that fits its labels best. A head that starts there need not learn first how rare the rare is.
    """
    width = len(layout.aggregate_names)
    total: Float = np.zeros(1 + 2 * width + sum(map(_length, layout.targets)))
    for block in block_batches(files, layout, _BLOCKS, seed=None):
        asked = block["query_split"] == SPLIT_IDS["train"]
        rows = block["aggregates"][asked].astype(np.float64)
        labels = [_sums(target, block, asked) for target in layout.targets]
        total += np.concatenate([[len(rows)], rows.sum(0), (rows**2).sum(0), *labels])
    total = world.sum(torch.from_numpy(total)).numpy()
    count = max(1.0, total[0])
    mean = total[1 : 1 + width] / count
    square = total[1 + width : 1 + 2 * width] / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    answers, first = {}, 1 + 2 * width
    for target in layout.targets:
        length = _length(target)
        answers[target.name] = _constant(target, total[first : first + length])
        first += length
    return (mean, np.where(std > 1e-4, std, 1.0)), answers


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
        answer = np.array([_log_odds(found, queries), mean, np.log(max(std, 0.05))])
    else:
        answer = _log_odds(sums[1:], sums[0])
    return torch.from_numpy(np.asarray(answer, dtype=np.float32))


def _log_odds(happened: Float, asked: Float) -> Float:
    """Of a share, drawn to a half by one query: finite where all or none did."""
    return np.asarray(np.log((happened + 0.5) / (asked - happened + 0.5)))
