"""Metrics and calibration of binary predictions on arrays; NumPy only, shared by training and evaluation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
# A smaller calibration slope would reverse the order of the predictions or make them almost equal.
_MIN_SLOPE = 1e-3


def sigmoid(logits: Float) -> Float:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def auc(scores: Float, labels: Float, weights: Float | None = None) -> float:
    """Area under the ROC curve, ties counted half; NaN where a class is absent.

    Args:
        scores, labels: (n,), labels 0 or 1.
        weights: (n,) number of rows that each entry represents; 1 by default.
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
    """Mean negative log-likelihood (nats) of labels under logits, weighted by the rows that an entry represents."""
    return float(np.average(np.logaddexp(0.0, logits) - labels * logits, weights=weights))


def fit_logistic_calibration(logits: Float, labels: Float, rows: Float | None = None) -> tuple[float, float]:
    """Fit the logistic map from logits to probabilities (Platt 1999) by Newton steps.

    Platt's smoothed labels keep the fit finite where the classes separate. The slope stays positive, so calibration
    never reverses the order of the predictions.

    Args:
        logits, labels: (n,), labels 0 or 1.
        rows: (n,) number of rows that each entry represents; 1 by default.

    Returns:
        Slope and intercept.
    """
    row_weights = np.ones(len(logits)) if rows is None else rows
    positives, negatives = (row_weights * labels).sum(), (row_weights * (1 - labels)).sum()
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    smoothed = np.where(labels == 1, high, low)
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)
    parameters = np.array([1.0, 0.0])
    loss = log_loss(inputs @ parameters, smoothed, row_weights)
    for _ in range(100):
        predicted = sigmoid(inputs @ parameters)
        gradient = inputs.T @ (row_weights * (predicted - smoothed))
        curvature = (row_weights * predicted * (1 - predicted))[:, None]
        hessian = (inputs * curvature).T @ inputs + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        step_size = 1.0  # a full Newton step overshoots far from the optimum: halve it until the loss falls
        while (
            step_size > 1e-6
            and log_loss(inputs @ (parameters - step_size * step), smoothed, row_weights) > loss
        ):
            step_size /= 2
        parameters = parameters - step_size * step
        loss = log_loss(inputs @ parameters, smoothed, row_weights)
        if step_size * np.abs(step).max() < 1e-8:
            break
    if parameters[0] >= _MIN_SLOPE:
        return float(parameters[0]), float(parameters[1])
    # The logits contradict the labels: ignore almost all of them and predict the mean rate.
    rate = float((row_weights * smoothed).sum() / row_weights.sum())
    mean_logit = float((row_weights * logits).sum() / row_weights.sum())
    return _MIN_SLOPE, math.log(rate / (1 - rate)) - _MIN_SLOPE * mean_logit
