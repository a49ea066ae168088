"""How good the answers to a target's queries are over a period: sums and rows that the ranks put together.

A judge of a rank takes batches; `verdict` (all ranks at once) says the loss, the loss of the best constant answer, a
measure for people and the calibration. Memory: of `binary` and `value` some numbers a query; of `next` a histogram a
value, whatever the number of queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lam_spark.dataset.layout import Target
from lam_spark.errors import ModelError
from lam_spark.metrics import auc, fit_logistic_calibration, log_loss
from lam_spark.model.artifact import Calibration
from lam_spark.model.value import expected_value, median_value, value_loss
from lam_spark.training.distributed import World

Float = npt.NDArray[np.float64]
# Of the logits of `next` answers: two hundredths apart; beyond, they are as good as certain.
_BINS_A_LOGIT, _MOST_LOGIT = 50, 12
_BIN_LOGITS = np.arange(-_MOST_LOGIT * _BINS_A_LOGIT, _MOST_LOGIT * _BINS_A_LOGIT + 1) / _BINS_A_LOGIT
_COMMONEST = 20


@dataclass(frozen=True)
class Verdict:
    """What a judge found.

    Attributes:
        loss: mean over the queries (nats).
        naive_loss: of the best answer that is the same for all.
        unit: what there is to gain at most, about: targets of all kinds are compared by it (nats).
        measures: for people: `AUC`, `mean absolute error` or `macro AUC`.
        calibration: fitted on these answers.
    """

    loss: float
    naive_loss: float
    unit: float
    measures: dict[str, float]
    calibration: Calibration

    @property
    def excess(self) -> float:
        """The loss beyond that of the best constant, in units: below 0 where something was learned."""
        return (self.loss - self.naive_loss) / self.unit


class Judge:
    """Of one target, over one pass through a period."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._rows: list[Float] = []
        self._histogram = np.zeros((target.values, len(_BIN_LOGITS), 2)) if target.kind == "next" else None

    def add(self, answers: Tensor, labels: Tensor) -> None:
        """(n,) or (n, outputs) answers and (n,) or (n, values) labels of queries that were asked."""
        if self._histogram is not None:
            if not bool(answers.isfinite().all()):
                self._histogram[:] = np.nan  # the loss shows it
                return
            binned = _bins_of(answers.double().cpu().numpy())
            value = np.broadcast_to(np.arange(self.target.values), binned.shape)
            np.add.at(self._histogram, (value, binned, labels.cpu().numpy().astype(int)), 1.0)
            return
        columns = [labels]
        if self.target.kind == "value":
            columns += [value_loss(answers, labels), expected_value(answers), median_value(answers)]
        else:
            columns += [answers]
        self._rows.append(torch.stack(columns, dim=1).double().cpu().numpy())

    def verdict(self, world: World) -> Verdict:
        """Of what all ranks were given.

        Raises:
            ModelError: there is nothing to judge by: no query, or all have the same answer.
        """
        if self._histogram is not None:
            total = world.sum(torch.from_numpy(self._histogram.ravel())).numpy()
            return self._of_next(total.reshape(self._histogram.shape))
        width = 4 if self.target.kind == "value" else 2
        rows = world.gather(np.concatenate([np.zeros((0, width)), *self._rows]))
        label = rows[:, 0]
        if len(np.unique(label > 0)) < 2:
            raise ModelError(
                f"the validation period has {len(rows)} examples of {self.target.name!r} and not both classes: "
                "nothing can be chosen or calibrated. Move split.validation_start"
            )
        return self._of_value(rows) if self.target.kind == "value" else _of_binary(rows)

    def _of_value(self, rows: Float) -> Verdict:
        label, losses, expected, median = rows.T
        logs = np.log(label[label > 0])
        spread = max(float(logs.std()), math.exp(-3.0))
        share = float((label > 0).mean())
        unit = _entropy(share) + share
        naive = _entropy(share) + share * (0.5 + math.log(spread))
        # An expectation may be no number where a weight is none; the loss tells, here it must not divide.
        factor = float(label.sum() / expected.sum()) if expected.sum() > 0 else 1.0
        measures = {"mean absolute error": float(np.abs(label - median).mean())}
        return Verdict(float(losses.mean()), naive, unit, measures, Calibration(factor, 0.0))

    def _of_next(self, histogram: Float) -> Verdict:
        if not np.isfinite(histogram).all():
            return Verdict(math.nan, 0.0, 1.0, {}, Calibration(1.0, 0.0))
        queries = histogram[0].sum()
        happened = histogram[:, :, 1].sum(axis=1)
        if not ((happened > 0) & (happened < queries)).any():
            raise ModelError(
                f"the validation period has {queries:.0f} examples of {self.target.name!r}, and of its "
                f"{self.target.values} values each follows all of them or none: nothing can be chosen. Move "
                "split.validation_start"
            )
        both = histogram.sum(axis=0)
        logits, labels = np.tile(_BIN_LOGITS, 2), np.repeat([0.0, 1.0], len(_BIN_LOGITS))
        weights = both.T.ravel()
        naive = float(np.mean([_entropy(share) for share in happened / queries]))
        areas = [
            auc(logits, labels, histogram[value].T.ravel())
            for value in np.argsort(-happened)[:_COMMONEST]
            if 0 < happened[value] < queries
        ]
        slope, intercept = fit_logistic_calibration(logits, labels, weights)
        return Verdict(
            log_loss(logits, labels, weights),
            naive,
            naive,
            {"macro AUC": float(np.mean(areas))},
            Calibration(slope, intercept),
        )


def _of_binary(rows: Float) -> Verdict:
    label, logit = rows.T
    naive = _entropy(float(label.mean()))
    return Verdict(
        log_loss(logit, label),
        naive,
        naive,
        {"AUC": auc(logit, label)},
        Calibration(*fit_logistic_calibration(logit, label)),
    )


def _bins_of(logits: Float) -> npt.NDArray[np.int64]:
    """The nearest of `_BIN_LOGITS`."""
    place: npt.NDArray[np.int64] = np.rint((logits + _MOST_LOGIT) * _BINS_A_LOGIT).astype(np.int64)
    return place.clip(0, len(_BIN_LOGITS) - 1)


def _entropy(share: float) -> float:
    """Of a coin, nats."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
