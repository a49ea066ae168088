"""How good the answers to a target's queries are over a period: sums that the ranks put together.

A judge of a rank takes batches; `verdict` (all ranks at once) says the loss, the loss of the best constant answer, a
measure for people and the calibration. Memory: of `value` eight sums, of `binary` and `next` a histogram of logits a
value, whatever the number of queries. The loss, by which an epoch is chosen, is exact; what comes of the histogram is
as fine as its bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lam_spark.errors import ModelError
from lam_spark.model.artifact import Calibration
from lam_spark.model.metrics import auc, fit_logistic_calibration
from lam_spark.model.value import expected_value, median_value, value_loss
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training_data.layout import Target

Float = npt.NDArray[np.float64]
# Of logits: two hundredths apart; beyond, they are as good as certain.
_BINS_A_LOGIT, _MOST_LOGIT = 50, 12
_BIN_LOGITS = np.arange(-_MOST_LOGIT * _BINS_A_LOGIT, _MOST_LOGIT * _BINS_A_LOGIT + 1) / _BINS_A_LOGIT
_BINS = len(_BIN_LOGITS)
_CENTRES, _LABELS = np.tile(_BIN_LOGITS, 2), np.repeat([0.0, 1.0], _BINS)
_COMMONEST = 20


@dataclass(frozen=True)
class ValidationMetrics:
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


class Validator:
    """Of one target, over one pass through a period."""

    def __init__(self, target: Target) -> None:
        self.target = target
        # Flat, for the ranks to add up at once.
        self._sums = np.zeros(8 if target.kind == "value" else 1 + 2 * _BINS + target.values * 2 * _BINS)

    def add(self, answers: Tensor, labels: Tensor) -> None:
        """(n,) or (n, outputs) answers and (n,) or (n, values) labels of queries that were asked."""
        if self.target.kind == "value":
            self._sums += _value_sums(answers, labels)
            return
        loss, logit_sums, histogram = self._parts(self._sums)
        if not bool(answers.isfinite().all()):
            loss[:] = np.nan
            return
        wide, yes = answers.double(), labels.double()
        loss += float(F.binary_cross_entropy_with_logits(wide, yes, reduction="sum"))
        logits = wide.reshape(-1, self.target.values).cpu().numpy()
        binned, label = _bins_of(logits), yes.reshape(logits.shape).cpu().numpy().astype(int)
        value = np.broadcast_to(np.arange(self.target.values), binned.shape)
        of_bins = np.bincount((2 * binned + label).ravel(), logits.ravel(), 2 * _BINS)
        logit_sums += of_bins.reshape(_BINS, 2)
        np.add.at(histogram, (value, binned, label), 1.0)

    def verdict(self, world: ProcessGroup) -> ValidationMetrics:
        """Of what all ranks were given.

        Raises:
            ModelError: there is nothing to judge by: no query, or all have the same answer.
        """
        sums = world.sum(torch.from_numpy(self._sums)).numpy()
        return self._of_value(sums) if self.target.kind == "value" else self._of_logits(sums)

    def _parts(self, sums: Float) -> tuple[Float, Float, Float]:
        """(1,) loss, (bins, 2) logits by label, of all values, and (values, bins, 2) answers by label: views."""
        loss, logit_sums, histogram = np.split(sums, [1, 1 + 2 * _BINS])
        return loss, logit_sums.reshape(_BINS, 2), histogram.reshape(self.target.values, _BINS, 2)

    def _of_value(self, sums: Float) -> ValidationMetrics:
        queries, some, logs, squares, loss, off, amount, expected = sums.tolist()
        if not some:
            raise self._one_class(queries)
        spread = max(math.sqrt(max(squares / some - (logs / some) ** 2, 0.0)), math.exp(-3.0))
        share = some / queries
        unit = _entropy(share) + share
        naive = _entropy(share) + share * (0.5 + math.log(spread))
        # An expectation may be no number where a weight is none; the loss tells, here it must not divide.
        factor = amount / expected if expected > 0 else 1.0
        return ValidationMetrics(
            loss / queries, naive, unit, {"mean absolute error": off / queries}, Calibration(factor, 0.0)
        )

    def _of_logits(self, sums: Float) -> ValidationMetrics:
        loss, logit_sums, histogram = self._parts(sums)
        if not np.isfinite(loss[0]):
            return ValidationMetrics(math.nan, 0.0, 1.0, {}, Calibration(1.0, 0.0))
        queries = histogram[0].sum()
        happened = histogram[:, :, 1].sum(axis=1)
        if not ((happened > 0) & (happened < queries)).any():
            raise self._one_class(queries)
        naive = float(np.mean([_entropy(share) for share in happened / queries]))
        areas = [
            auc(_CENTRES, _LABELS, histogram[value].T.ravel())
            for value in np.argsort(-happened)[:_COMMONEST]
            if 0 < happened[value] < queries
        ]
        both = histogram.sum(axis=0)
        # What a bin's logits are on average: the outermost hold all beyond, and a calibration has to see how far.
        logits = logit_sums / both.clip(1)
        slope, intercept = fit_logistic_calibration(logits.T.ravel(), _LABELS, both.T.ravel())
        return ValidationMetrics(
            float(loss[0] / (queries * self.target.values)),
            naive,
            naive,
            {"AUC" if self.target.kind == "binary" else "macro AUC": float(np.mean(areas))},
            Calibration(slope, intercept),
        )

    def _one_class(self, queries: float) -> ModelError:
        found = f"the validation period has {queries:.0f} examples of {self.target.name!r}"
        if self.target.kind == "value":
            return ModelError(
                f"{found}, and none comes to more than 0: nothing can be chosen or calibrated. Move "
                "split.validation_start"
            )
        if self.target.kind == "next":
            return ModelError(
                f"{found}, and of its {self.target.values} values each follows all of them or none: nothing can be "
                "chosen. Move split.validation_start"
            )
        return ModelError(
            f"{found} and not both classes: nothing can be chosen or calibrated. Move split.validation_start"
        )


def _value_sums(answers: Tensor, labels: Tensor) -> Float:
    """What `Validator._of_value` needs of (n, 3) answers and (n,) amounts, in its order."""
    amounts = labels.double()
    logs = amounts[amounts > 0].log()
    columns = (
        torch.ones_like(amounts),
        amounts > 0,
        logs,
        logs.square(),
        value_loss(answers, labels),
        (amounts - median_value(answers)).abs(),
        amounts,
        expected_value(answers),
    )
    return torch.stack([column.double().sum() for column in columns]).cpu().numpy()


def _bins_of(logits: Float) -> npt.NDArray[np.int64]:
    """The nearest of `_BIN_LOGITS`."""
    near = logits.clip(-_MOST_LOGIT, _MOST_LOGIT)  # what is far away would not fit into an integer
    place: npt.NDArray[np.int64] = np.rint((near + _MOST_LOGIT) * _BINS_A_LOGIT).astype(np.int64)
    return place


def _entropy(share: float) -> float:
    """Of a coin, nats."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
