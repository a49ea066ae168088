"""Validation metrics of one target over a period, from sums that the processes add up.

Each process updates its `Validator` with batches; `compute` (collective) gives the loss, the loss of the best constant
prediction, a readable metric and the calibration. Memory does not depend on the number of queries: eight sums for
`value`, one histogram of logits per value for `binary` and `next`. The loss, which selects the best epoch, is exact;
metrics and calibration from the histogram are exact to its bins.
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
# Bins of logits are 0.02 wide; logits beyond +-12 fall into the outermost bins.
_BINS_PER_LOGIT, _MAX_LOGIT = 50, 12
_BIN_LOGITS = np.arange(-_MAX_LOGIT * _BINS_PER_LOGIT, _MAX_LOGIT * _BINS_PER_LOGIT + 1) / _BINS_PER_LOGIT
_BINS = len(_BIN_LOGITS)
_CENTRES, _LABELS = np.tile(_BIN_LOGITS, 2), np.repeat([0.0, 1.0], _BINS)
# The macro AUC is the mean over this many most frequent values.
_MACRO_VALUES = 20


@dataclass(frozen=True)
class ValidationMetrics:
    """Validation metrics of one target.

    Attributes:
        loss: mean loss over the examples (nats).
        naive_loss: mean loss of the best constant prediction (nats).
        unit: about the largest possible improvement (nats); makes targets of different kinds comparable.
        measures: metrics for people: `AUC`, `mean absolute error` or `macro AUC`.
        calibration: fitted on these predictions.
    """

    loss: float
    naive_loss: float
    unit: float
    measures: dict[str, float]
    calibration: Calibration

    @property
    def excess(self) -> float:
        """Loss minus the loss of the best constant prediction, in units; negative if the model is better."""
        return (self.loss - self.naive_loss) / self.unit


class Validator:
    """Collects the sums for the validation metrics of one target.

    Args:
        target: the target.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        # One flat array, so that one collective sum is enough.
        self._sums = np.zeros(8 if target.kind == "value" else 1 + 2 * _BINS + target.values * 2 * _BINS)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add examples: (n,) or (n, outputs) predictions, and (n,) or (n, values) labels."""
        if self.target.kind == "value":
            self._sums += _value_sums(predictions, labels)
            return
        loss, logit_sums, histogram = self._parts(self._sums)
        if not bool(predictions.isfinite().all()):
            loss[:] = np.nan
            return
        logits_64, labels_64 = predictions.double(), labels.double()
        loss += float(F.binary_cross_entropy_with_logits(logits_64, labels_64, reduction="sum"))
        logits = logits_64.reshape(-1, self.target.values).cpu().numpy()
        bins, label = _bins_of(logits), labels_64.reshape(logits.shape).cpu().numpy().astype(int)
        value = np.broadcast_to(np.arange(self.target.values), bins.shape)
        sums = np.bincount((2 * bins + label).ravel(), logits.ravel(), 2 * _BINS)
        logit_sums += sums.reshape(_BINS, 2)
        np.add.at(histogram, (value, bins, label), 1.0)

    def compute(self, group: ProcessGroup) -> ValidationMetrics:
        """Metrics over the examples of all processes.

        Raises:
            ModelError: there are no examples, or all have the same label.
        """
        sums = group.sum(torch.from_numpy(self._sums)).numpy()
        return self._from_amounts(sums) if self.target.kind == "value" else self._from_logits(sums)

    def _parts(self, sums: Float) -> tuple[Float, Float, Float]:
        """Views: (1,) loss, (bins, 2) sum of logits by label, and (values, bins, 2) number of examples by label."""
        loss, logit_sums, histogram = np.split(sums, [1, 1 + 2 * _BINS])
        return loss, logit_sums.reshape(_BINS, 2), histogram.reshape(self.target.values, _BINS, 2)

    def _from_amounts(self, sums: Float) -> ValidationMetrics:
        queries, positives, logs, squares, loss, error, amount, expected = sums.tolist()
        if not positives:
            raise self._one_class_error(queries)
        spread = max(math.sqrt(max(squares / positives - (logs / positives) ** 2, 0.0)), math.exp(-3.0))
        share = positives / queries
        unit = _entropy(share) + share
        naive = _entropy(share) + share * (0.5 + math.log(spread))
        # The expected amount may be NaN where a weight is; the loss then shows it.
        factor = amount / expected if expected > 0 else 1.0
        return ValidationMetrics(
            loss / queries, naive, unit, {"mean absolute error": error / queries}, Calibration(factor, 0.0)
        )

    def _from_logits(self, sums: Float) -> ValidationMetrics:
        loss, logit_sums, histogram = self._parts(sums)
        if not np.isfinite(loss[0]):
            return ValidationMetrics(math.nan, 0.0, 1.0, {}, Calibration(1.0, 0.0))
        queries = histogram[0].sum()
        positives = histogram[:, :, 1].sum(axis=1)
        if not ((positives > 0) & (positives < queries)).any():
            raise self._one_class_error(queries)
        naive = float(np.mean([_entropy(share) for share in positives / queries]))
        areas = [
            auc(_CENTRES, _LABELS, histogram[value].T.ravel())
            for value in np.argsort(-positives)[:_MACRO_VALUES]
            if 0 < positives[value] < queries
        ]
        counts = histogram.sum(axis=0)
        # Mean logit of each bin: the calibration needs the true size of logits in the outermost bins.
        logits = logit_sums / counts.clip(1)
        slope, intercept = fit_logistic_calibration(logits.T.ravel(), _LABELS, counts.T.ravel())
        return ValidationMetrics(
            float(loss[0] / (queries * self.target.values)),
            naive,
            naive,
            {"AUC" if self.target.kind == "binary" else "macro AUC": float(np.mean(areas))},
            Calibration(slope, intercept),
        )

    def _one_class_error(self, queries: float) -> ModelError:
        reason = {
            "binary": "but not of both classes",
            "value": "but none with an amount above 0",
            "next": f"but each of its {self.target.values} values follows all of them or none",
        }[self.target.kind]
        return ModelError(
            f"expected examples of {self.target.name!r} with different labels in the validation period, found "
            f"{queries:.0f} examples, {reason}: no epoch can be selected or calibrated. Move split.validation_start"
        )


def _value_sums(predictions: Tensor, labels: Tensor) -> Float:
    """Sums over (n, 3) predictions and (n,) amounts, in the order of `Validator._from_amounts`."""
    amounts = labels.double()
    logs = amounts[amounts > 0].log()
    columns = (
        torch.ones_like(amounts),
        amounts > 0,
        logs,
        logs.square(),
        value_loss(predictions, labels),
        (amounts - median_value(predictions)).abs(),
        amounts,
        expected_value(predictions),
    )
    return torch.stack([column.double().sum() for column in columns]).cpu().numpy()


def _bins_of(logits: Float) -> npt.NDArray[np.int64]:
    """Index of the nearest of `_BIN_LOGITS`."""
    clipped = logits.clip(-_MAX_LOGIT, _MAX_LOGIT)  # before the conversion: large logits overflow an integer
    bins: npt.NDArray[np.int64] = np.rint((clipped + _MAX_LOGIT) * _BINS_PER_LOGIT).astype(np.int64)
    return bins


def _entropy(share: float) -> float:
    """Entropy of a Bernoulli distribution (nats)."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
