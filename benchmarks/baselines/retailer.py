"""Baselines of `benchmarks/quality/retailer.py`: simple ordering, logistic regression, boosting, CoLES."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import pandas as pd
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error

from benchmarks.baselines.boosting import Stopwatch, fit_lightgbm, logistic_regression
from benchmarks.baselines.coles import embeddings, household_events
from benchmarks.baselines.retailer_features import HORIZON

Array = npt.NDArray[Any]
# Baseline -> its test predictions, one array a training.
Predictions = dict[str, list[Array]]


@dataclass(frozen=True)
class Task:
    """One target with its queries, features and labels, in one order of rows.

    Attributes:
        name: of the target.
        rows: grain: a query; `household_id`, `time` (local, days since the year's start), `period`.
        table: hand-made features.
        label: (n,), or (n, K) for K labels at once.
        lightgbm: settings of LightGBM.
    """

    name: str
    rows: pd.DataFrame
    table: pd.DataFrame
    label: Array
    lightgbm: dict[str, Any]

    @property
    def is_amount(self) -> bool:
        """Whether the label is an amount and not binary."""
        return self.name == "spend"

    def mask(self, *periods: str) -> Array:
        """(n,) bool: rows of these periods."""
        mask: Array = self.rows.period.isin(periods).to_numpy()
        return mask


def for_each_label(task: Task, predict: Callable[[Array], Array]) -> Array:
    """Predictions for the label, or for each of K labels as columns."""
    if task.label.ndim == 1:
        return predict(task.label)
    return np.stack([predict(label) for label in task.label.T], axis=1)


def predict_logistic(task: Task) -> Array:
    """Test predictions of logistic regression."""
    return for_each_label(task, lambda label: logistic_regression(task.table, label, task.rows.period))


def predict_lightgbm(task: Task, table: pd.DataFrame, seed: int) -> Array:
    """Test predictions of LightGBM on a table of the task's rows; the median of an amount."""
    kind, settings = lightgbm.LGBMClassifier, task.lightgbm | {"random_state": seed}
    if task.is_amount:
        kind, settings = lightgbm.LGBMRegressor, settings | {"objective": "l1"}
    test = table[task.mask("test")]

    def predict(label: Array) -> Array:
        model = fit_lightgbm(kind, settings, table, label, task.rows.period)
        predictions: Array = model.predict(test) if task.is_amount else model.predict_proba(test)[:, 1]
        return predictions

    return for_each_label(task, predict)


def predict_sklearn(task: Task) -> Array:
    """Test predictions of scikit-learn's gradient boosting; iterations chosen on validation."""
    settings: dict[str, Any] = {
        "learning_rate": 0.04,
        "max_leaf_nodes": 15,
        "min_samples_leaf": task.lightgbm["min_child_samples"],
        "max_features": 0.5,
        "early_stopping": False,
        "random_state": 0,
    }
    kind, loss = HistGradientBoostingClassifier, log_loss
    if task.is_amount:
        kind, loss = HistGradientBoostingRegressor, mean_absolute_error
        settings["loss"] = "absolute_error"
    table = task.table.to_numpy()
    train, validation, test = (task.mask(name) for name in ("train", "validation", "test"))

    def predict(label: Array) -> Array:
        selected = kind(max_iter=300, **settings).fit(table[train], label[train])
        staged = selected.staged_predict if task.is_amount else selected.staged_predict_proba
        losses = [loss(label[validation], predictions) for predictions in staged(table[validation])]
        iterations = max(20, int(np.argmin(losses)) + 1)
        model = kind(max_iter=iterations, **settings).fit(table[~test], label[~test])
        predictions: Array = model.predict(table[test])
        return predictions if task.is_amount else model.predict_proba(table[test])[:, 1]

    return for_each_label(task, predict)


def simple_baseline(task: Task) -> Array:
    """Test predictions without a model: recency and frequency, past spend, past category counts."""
    table = task.table[task.mask("test")]
    if task.name == "lapse":
        scores = table.days_since_visit - table.visits_91
    elif task.name == "spend":
        scores = table.spend_91 * HORIZON / 91
    else:
        scores = table[[f"{name}_91" for name in task.table.attrs["categories"]]]
    return scores.to_numpy()


def quick_baselines(task: Task, stopwatch: Stopwatch) -> Predictions:
    """The simple baseline and one LightGBM, for smoke runs."""
    lgbm = stopwatch(f"lightgbm_{task.name}", lambda: predict_lightgbm(task, task.table, 0))
    return {"baseline": [simple_baseline(task)], "lightgbm": [lgbm]}


def calendar_baselines(task: Task, weekly: Task, seeds: Iterable[int], stopwatch: Stopwatch) -> Predictions:
    """Baselines of a calendar target, trained on queries every four weeks.

    LightGBM runs with every seed (one seed for many labels at once), and also on weekly queries with the first seed.
    """
    name = task.name
    lightgbm_seeds = seeds if task.label.ndim == 1 else (0,)
    predictions = {
        "baseline": [simple_baseline(task)],
        "lightgbm": [
            stopwatch(f"lightgbm_{name}", lambda s=seed: predict_lightgbm(task, task.table, s))
            for seed in lightgbm_seeds
        ],
        "lightgbm_weekly": [
            stopwatch(f"lightgbm_weekly_{name}", lambda: predict_lightgbm(weekly, weekly.table, 0))
        ],
        "sklearn": [stopwatch(f"sklearn_{name}", lambda: predict_sklearn(task))],
    }
    if not task.is_amount:
        predictions["logistic"] = [stopwatch(f"logistic_{name}", lambda: predict_logistic(task))]
    return predictions


def predictions_folder(folder: Path) -> Path:
    """Subfolder for stored predictions; a new one when the baselines' scripts or libraries change."""
    digest = hashlib.sha256(f"{lightgbm.__version__} {sklearn.__version__}".encode())
    scripts = [*Path(__file__).parent.glob("*.py"), Path(__file__).parents[1] / "quality" / "retailer.py"]
    for script in sorted(scripts):
        digest.update(script.read_bytes())
    subfolder = folder / f"predictions_{digest.hexdigest()[:12]}"
    subfolder.mkdir(exist_ok=True)
    return subfolder


def coles_baselines(
    tasks: list[Task], seeds: Iterable[int], folder: Path, stopwatch: Stopwatch
) -> dict[str, Predictions]:
    """Target -> predictions of LightGBM on CoLES embeddings, alone and together with the features.

    Many labels at once run with the first seed and with the features only, since each label is a model.

    Args:
        tasks: the targets.
        seeds: of the CoLES trainings.
        folder: stores the embeddings.
        stopwatch: measures the predictions.
    """
    events = household_events()
    queries = pd.concat([task.rows[["household_id", "time"]] for task in tasks], ignore_index=True)
    ends = np.cumsum([len(task.rows) for task in tasks])[:-1]
    predictions: dict[str, Predictions] = {task.name: {} for task in tasks}
    for turn, seed in enumerate(seeds):
        rows = embeddings(events, queries, seed, folder)
        for task, own in zip(tasks, np.split(rows, ends), strict=True):
            alone = pd.DataFrame(own).add_prefix("coles_")
            joined = pd.concat([task.table.reset_index(drop=True), alone], axis=1)
            tables = {"coles": alone, "coles_lightgbm": joined}
            if task.label.ndim > 1:
                tables = {"coles_lightgbm": joined} if turn == 0 else {}
            for name, table in tables.items():
                predicted = stopwatch(
                    f"{name}_{task.name}", lambda q=task, t=table, s=seed: predict_lightgbm(q, t, s)
                )
                predictions[task.name].setdefault(name, []).append(predicted)
    return predictions
