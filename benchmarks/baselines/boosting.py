"""LightGBM and logistic regression with model selection on the validation period, and a stopwatch for baselines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LIGHTGBM = {
    "n_estimators": 600,
    "learning_rate": 0.04,
    "num_leaves": 15,
    "min_child_samples": 40,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.5,
    "n_jobs": 2,
    "verbose": -1,
}
# Few labels: slower, with smaller leaves.
COUPON_LIGHTGBM = LIGHTGBM | {"learning_rate": 0.03, "min_child_samples": 20}
# Inverse regularisation strengths to choose from.
_STRENGTHS = (0.001, 0.003, 0.01, 0.1)
_LEAST_ROUNDS = 20


class Stopwatch:
    """Measures predictions, prints their seconds, and stores them for resumed runs.

    Args:
        folder: where predictions are stored; a stored prediction is loaded, not recomputed.

    Attributes:
        seconds: name -> seconds of each prediction, in the order of the calls.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, predict: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the prediction of this call's number under `name`."""
        path = self.folder and self.folder / f"{name}_{len(self.seconds[name])}.npz"
        if path and path.exists():
            stored = np.load(path)
            predictions, seconds = stored["predictions"], float(stored["seconds"])
        else:
            started = time.monotonic()
            predictions = predict()
            seconds = time.monotonic() - started
            print(f"{name}: {seconds:.1f} s", flush=True)
            if path:
                draft = path.with_suffix(".draft.npz")
                np.savez(draft, predictions=predictions, seconds=seconds)
                draft.rename(path)
        self.seconds[name].append(seconds)
        return predictions


def selection_masks(period: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) bool each: rows to fit on, rows to select by, and rows for the refit after the selection."""
    return (
        (period == "train").to_numpy(),
        (period == "validation").to_numpy(),
        (period != "test").to_numpy(),
    )


def fit_lightgbm(
    kind: Callable[..., Any],
    settings: dict[str, Any],
    table: pd.DataFrame,
    label: np.ndarray,
    period: pd.Series,
) -> Any:
    """LightGBM refitted on all but the test period, with the rounds that early stopping chose on validation."""
    train, validation, refit = selection_masks(period)
    selected = kind(**settings).fit(
        table[train],
        label[train],
        eval_X=table[validation],
        eval_y=label[validation],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    rounds = max(_LEAST_ROUNDS, selected.best_iteration_)
    return kind(**settings | {"n_estimators": rounds}).fit(table[refit], label[refit])


def logistic_regression(table: pd.DataFrame, label: np.ndarray, period: pd.Series) -> np.ndarray:
    """Probabilities of the test rows by logistic regression on log features; strength chosen on validation."""
    logs = (np.sign(table) * np.log1p(table.abs())).to_numpy()
    train, validation, refit = selection_masks(period)

    def fit(strength: float, rows: np.ndarray) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        return model.fit(logs[rows], label[rows])

    areas = {
        strength: roc_auc_score(label[validation], fit(strength, train).predict_proba(logs[validation])[:, 1])
        for strength in _STRENGTHS
    }
    best = fit(max(areas, key=areas.__getitem__), refit)
    probabilities: np.ndarray = best.predict_proba(logs[~refit])[:, 1]
    return probabilities
