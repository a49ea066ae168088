"""Metrics of binary answers on arrays; numpy only, shared by training and evaluation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
# Of a calibration: below it answers would be turned round, or all but equal.
_LEAST_SLOPE = 1e-3


def sigmoid(logits: Float) -> Float:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def auc(scores: Float, labels: Float, weights: Float | None = None) -> float:
    """Area under the ROC curve, ties counted half; NaN where a class is absent.

    Args:
        scores, labels: (n,), labels 0 or 1.
        weights: (n,) rows that each entry stands for; 1 where not given.
    """
    rows = np.ones(len(scores)) if weights is None else weights
    values, inverse = np.unique(scores, return_inverse=True)
    positive = np.bincount(inverse, rows * labels, len(values))
    negative = np.bincount(inverse, rows * (1 - labels), len(values))
    total = positive.sum() * negative.sum()
    if total == 0:
        return float("nan")
    below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
    return float((positive * (below + negative / 2)).sum() / total)


def log_loss(logits: Float, labels: Float, weights: Float | None = None) -> float:
    """Mean negative log-likelihood (nats) of labels under logits; `weights` are rows that an entry stands for."""
    return float(np.average(np.logaddexp(0.0, logits) - labels * logits, weights=weights))


def fit_logistic_calibration(logits: Float, labels: Float, rows: Float | None = None) -> tuple[float, float]:
    """Slope and intercept of the logistic map from logits to probabilities (Platt 1999), by Newton steps.

    Platt's smoothed targets keep the fit finite where the classes separate. The slope is kept positive, so
    that calibration never turns the order round. `rows` are how many each entry stands for; 1 where not given.
    """
    stands_for = np.ones(len(logits)) if rows is None else rows
    positives, negatives = (stands_for * labels).sum(), (stands_for * (1 - labels)).sum()
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    wanted = np.where(labels == 1, high, low)
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, 0.0])
    loss = log_loss(inputs @ weights, wanted, stands_for)
    for _ in range(100):
        predicted = sigmoid(inputs @ weights)
        gradient = inputs.T @ (stands_for * (predicted - wanted))
        curvature = (inputs * (stands_for * predicted * (1 - predicted))[:, None]).T @ inputs + 1e-6 * np.eye(
            2
        )
        step = np.linalg.solve(curvature, gradient)
        size = 1.0  # a full Newton step from far away overshoots: halve it until it helps
        while size > 1e-6 and log_loss(inputs @ (weights - size * step), wanted, stands_for) > loss:
            size /= 2
        weights = weights - size * step
        loss = log_loss(inputs @ weights, wanted, stands_for)
        if size * np.abs(step).max() < 1e-8:
            break
    if weights[0] >= _LEAST_SLOPE:
        return float(weights[0]), float(weights[1])
    # Logits that say the opposite of what is true are all but left out; what remains is how often it is true.
    share = float((stands_for * wanted).sum() / stands_for.sum())
    centre = float((stands_for * logits).sum() / stands_for.sum())
    return _LEAST_SLOPE, math.log(share / (1 - share)) - _LEAST_SLOPE * centre
