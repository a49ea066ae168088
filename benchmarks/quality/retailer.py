"""Four targets of the retailer's households: the model compared with a simple baseline, linear models and boosting.

    python -m benchmarks.quality.retailer [--smoke] [--folder FOLDER]

Complete Journey, forward in time, all households opted in: coupon redemption of a contacted household, and every four
weeks, for households that bought in the last 91 days: lapse (no purchase in 28 days), spend in 28 days, and which of
the 20 commonest categories they buy in 28 days. Training labels mature before 2017-10-02, where the test period begins;
rounds and epochs are chosen on the period from 2017-07-12. One training predicts all four targets.

All sides predict the same test rows. The model trains on weekly calendar queries, the baselines on every fourth week,
LightGBM also on weekly ones. Baselines (`benchmarks/baselines/retailer.py`): a simple ordering, logistic regression,
scikit-learn's and LightGBM's boosting on hand-made features, LightGBM on CoLES embeddings alone and with the features.

Figures are means over the seeds. `difference_...` compares the model's first seed with the best baseline's first: 95 %
interval over households; `ties` and `wins` count targets whose interval contains 0 or lies above it. `seconds_...`
are of one training without features. `--smoke`: one seed, small model, no scikit-learn, logistic regression or CoLES.
With `--folder` finished trainings are stored, and the same command resumes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks.baselines.boosting import COUPON_LIGHTGBM, LIGHTGBM, Stopwatch
from benchmarks.baselines.complete_journey import YEAR, contacts
from benchmarks.baselines.coupon import ContactFeatures, coupon_baselines
from benchmarks.baselines.retailer import (
    Predictions,
    Task,
    calendar_baselines,
    coles_baselines,
    predict_sklearn,
    predictions_folder,
    quick_baselines,
)
from benchmarks.baselines.retailer_features import (
    STEP,
    TOTALS,
    calendar_features,
    calendar_queries,
    daily_purchases,
    labels,
)
from benchmarks.common import (
    EVERYONE_OPTED_IN,
    RETAILER_CONF,
    SMOKE_TRAINING,
    command_line,
    lam_spark,
    origin_digest,
    report,
    resumable_folder,
    run_stage,
    run_up_to_snapshot,
    stored_secret,
)
from benchmarks.support.retailer_targets import RETAILER_TARGETS, WEEK
from benchmarks.support.workspace import local_day, newest_files, pseudonyms, token_ids

Array = npt.NDArray[Any]
# Bootstrap samples of the households.
SAMPLES = 200


def measure(target: str, label: Array, predicted: Array, weight: Array) -> float:
    """AUC, mean absolute error of `spend`, or mean AUC of `categories`; `weight` counts a row's repetitions."""
    if target == "spend":
        return float(np.average(np.abs(label - predicted), weights=weight))
    if target == "categories":
        pairs = zip(label.T, predicted.T, strict=True)
        return float(np.mean([roc_auc_score(y, p, sample_weight=weight) for y, p in pairs]))
    return float(roc_auc_score(label, predicted, sample_weight=weight))


def paired_difference(
    target: str, label: Array, ours: Array, theirs: Array, household: Array
) -> tuple[float, float]:
    """95 % interval of the model's advantage, by a paired bootstrap over households."""
    _, member = np.unique(household, return_inverse=True)
    rng = np.random.default_rng(0)
    sign = -1 if target == "spend" else 1
    differences = []
    for _ in range(SAMPLES):
        weight = rng.poisson(1.0, member.max() + 1)[member].astype(float)
        ours_measured, theirs_measured = (measure(target, label, p, weight) for p in (ours, theirs))
        differences.append(sign * (ours_measured - theirs_measured))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


class Workspace:
    """A workspace of this project up to the training snapshot."""

    def __init__(self, folder: Path, smoke: bool) -> None:
        self.folder, self.root = folder, folder / "retailer"
        self.secret = os.environ["LAM_SPARK_SECRET"] = stored_secret(folder)
        self.settings = (EVERYONE_OPTED_IN, *RETAILER_TARGETS, *(SMOKE_TRAINING if smoke else ()))
        finished = folder / "snapshot_finished"
        if not finished.exists():
            run_up_to_snapshot(RETAILER_CONF, self.root, *self.settings)
            finished.touch()

    def predictions(
        self, seed: int, sent: pd.DataFrame, queries: pd.DataFrame, categories: list[str]
    ) -> dict[str, Array]:
        """Target -> test predictions of a training with this seed, and its `seconds`."""
        path = self.folder / f"seed_{seed}.npz"
        if not path.exists():
            overrides = (*self.settings, f"training.seed={seed}")
            seconds = run_stage("train", RETAILER_CONF, self.root, *overrides)["seconds"]
            lam_spark("evaluate", RETAILER_CONF, self.root, *self.settings)
            draft = self.folder / "draft.npz"
            predictions = {"coupon": self._coupon(sent), **self._calendar(queries, categories)}
            np.savez(draft, seconds=seconds, **predictions)
            draft.rename(path)
        return dict(np.load(path))

    def _coupon(self, sent: pd.DataFrame) -> Array:
        """Probabilities of the contacts, in their order."""
        scores = pd.read_parquet(newest_files(self.root / "tables" / "held_out_scores"))
        scores["day"] = local_day(scores.as_of)
        keys = pseudonyms(self.secret, sent.household_id)
        expected = pd.DataFrame({"customer_key": keys, "day": sent.start_date.dt.date})
        joined = expected.merge(scores, on=["customer_key", "day"], how="left", validate="one_to_one")
        assert joined.probability.notna().all(), "expected the same contacts on both sides"
        assert (joined.label.to_numpy() == sent.label.to_numpy()).all(), "expected the same labels"
        return joined.probability.to_numpy()

    def _calendar(self, queries: pd.DataFrame, categories: list[str]) -> dict[str, Array]:
        """Target -> predictions of the calendar queries, in their order."""
        held_out = pd.read_parquet(newest_files(self.root / "tables" / "held_out_predictions"))
        held_out["day"] = local_day(held_out.as_of)
        days = [(YEAR + pd.Timedelta(days=int(d))).date() for d in queries.day]
        keys = pseudonyms(self.secret, queries.household_id)
        rows = pd.DataFrame({"customer_key": keys, "day": days})
        ids = token_ids(self.root / "tables" / "vocabulary", "item")
        predictions = {}
        for target in ("lapse", "spend", "categories"):
            own = held_out[(held_out.target == target) & held_out.day.isin(rows.day)]
            joined = rows.merge(own, on=["customer_key", "day"], how="left", validate="one_to_one")
            same = len(own) == len(rows) and joined.prediction.notna().all()
            assert same, f"expected the same queries of {target} on both sides"
            if target != "categories":
                assert np.allclose(joined.label, queries[target].to_numpy(), atol=1e-6), (
                    f"expected the same labels of {target} on both sides"
                )
            outputs = np.stack(joined.prediction.tolist())
            # The last output of an amount is its median, which minimises the absolute error.
            predictions[target] = (
                outputs[:, [ids[name] - 3 for name in categories]]
                if target == "categories"
                else outputs[:, -1]
            )
        return predictions


def calendar_tasks(
    households: pd.DataFrame, cube: Array, columns: list[str], step: int, lightgbm: dict[str, Any]
) -> list[Task]:
    """The three calendar targets, with queries every `step` days."""
    rows = calendar_queries(cube, step)
    rows["household_id"] = households.household_id.to_numpy()[rows.row]
    rows["time"] = rows.day.astype(float)
    table = calendar_features(rows, cube, columns, households)
    households_count = rows.household_id.nunique()
    print(f"{len(rows):,} queries of {households_count:,} households, {table.shape[1]} features", flush=True)
    return [Task(name, rows, table, label, lightgbm) for name, label in labels(rows, cube).items()]


def coupon_task() -> Task:
    """The contacts of all campaigns."""
    rows = contacts()
    rows["time"] = (rows.start_date - YEAR) / pd.Timedelta(days=1)
    return Task("coupon", rows, ContactFeatures().table(rows), rows.label.to_numpy(), COUPON_LIGHTGBM)


def all_baselines(
    calendar: list[Task], weekly: list[Task], coupon: Task, seeds: range, folder: Path, stopwatch: Stopwatch
) -> dict[str, Predictions]:
    """Target -> baseline -> test predictions."""
    predictions = {
        task.name: calendar_baselines(task, often, seeds, stopwatch)
        for task, often in zip(calendar, weekly, strict=True)
    }
    own = coupon_baselines(coupon.rows, coupon.table, seeds, stopwatch)
    predictions["coupon"] = {name: [scores] for name, scores in own.items()}
    predictions["coupon"]["sklearn"] = [stopwatch("sklearn_coupon", lambda: predict_sklearn(coupon))]
    for name, theirs in coles_baselines([coupon, *calendar], seeds, folder, stopwatch).items():
        predictions[name] |= theirs
    return predictions


def smoke_baselines(calendar: list[Task], coupon: Task, stopwatch: Stopwatch) -> dict[str, Predictions]:
    """The quick baselines of every target."""
    own = coupon_baselines(coupon.rows, coupon.table, range(1), stopwatch)
    predictions = {task.name: quick_baselines(task, stopwatch) for task in calendar}
    return predictions | {"coupon": {name: [scores] for name, scores in own.items()}}


def compare(task: Task, predictions: Predictions) -> dict[str, float]:
    """Measures of every side, and the difference to the best baseline."""
    name, test = task.name, task.mask("test")
    label, households = task.label[test], task.rows[test].household_id.to_numpy()
    ones = np.ones(len(label))
    values = {
        side: [measure(name, label, own, ones) for own in trainings]
        for side, trainings in predictions.items()
    }
    figures = {f"{name}_{side}": float(np.mean(own)) for side, own in values.items()}
    figures |= {f"{name}_lam_low": min(values["lam"]), f"{name}_lam_high": max(values["lam"])}
    choose = min if name == "spend" else max
    best = choose((side for side in values if side != "lam"), key=lambda side: figures[f"{name}_{side}"])
    # One seed on each side, because a user runs one model and not the mean of five.
    ours, theirs = predictions["lam"][0], predictions[best][0]
    low, high = paired_difference(name, label, ours, theirs, households)
    print(f"{name}: difference to the best baseline ({best}): {low:.4f} to {high:.4f} (95 %)")
    return figures | {f"{name}_difference_low": low, f"{name}_difference_high": high}


def main() -> None:
    arguments = command_line(__doc__, with_folder=True).parse_args()
    smoke, folder = arguments.smoke, arguments.folder
    seeds = range(1 if smoke else 5)
    households, cube, columns = daily_purchases()
    lightgbm = LIGHTGBM | ({"n_estimators": 30} if smoke else {})
    calendar = calendar_tasks(households, cube, columns, STEP, lightgbm)
    coupon = coupon_task()
    tasks = {task.name: task for task in (*calendar, coupon)}
    sent = coupon.rows[coupon.mask("test")].reset_index(drop=True)
    test = tasks["lapse"].mask("test")
    own_labels = {name: tasks[name].label[test] for name in ("lapse", "spend")}
    queries = tasks["lapse"].rows[test].reset_index(drop=True).assign(**own_labels)
    seconds = []
    # Baselines do not depend on this project's code, so their results survive its changes.
    with (
        resumable_folder(folder and folder / "baselines", "retailer-baselines-", "") as baseline_folder,
        resumable_folder(folder and folder / "model", "retailer-", origin_digest(smoke)) as model_folder,
    ):
        stopwatch = Stopwatch(predictions_folder(baseline_folder))
        if smoke:
            predictions = smoke_baselines(calendar, coupon, stopwatch)
        else:
            weekly = calendar_tasks(households, cube, columns, WEEK, lightgbm)
            predictions = all_baselines(calendar, weekly, coupon, seeds, baseline_folder, stopwatch)
        workspace = Workspace(model_folder, smoke)
        for seed in seeds:
            found = workspace.predictions(seed, sent, queries, columns[len(TOTALS) :])
            seconds.append(float(found["seconds"]))
            for name in tasks:
                predictions[name].setdefault("lam", []).append(found[name])
            print(f"seed {seed}: trained in {seconds[-1]:.0f} s", flush=True)
    figures: dict[str, float] = {"lam_train_seconds": float(np.median(seconds)), "seeds": len(seeds)}
    figures |= {"wins": 0, "ties": 0}
    for name, task in tasks.items():
        figures |= compare(task, predictions[name])
        low, high = figures[f"{name}_difference_low"], figures[f"{name}_difference_high"]
        figures["wins"] += low > 0
        figures["ties"] += low <= 0 <= high
    figures["as_good"] = figures["wins"] + figures["ties"]
    figures |= {f"seconds_{name}": float(np.median(own)) for name, own in stopwatch.seconds.items()}
    report("retailer", figures, {"coupon_lam": (">=", 0.80), "as_good": (">=", 4), "wins": (">=", 2)})


if __name__ == "__main__":
    main()
