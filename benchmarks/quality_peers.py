"""The peers of `quality.py`: questions, hand-made features, and what a rule, linear models and boosting answer."""

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
from coles import YEAR, embeddings, household_events
from coupon import (
    TEST_START,
    WINDOWS,
    Timing,
    boosted,
    commonest_categories,
    demographics,
    logistic,
    periods,
    purchases,
    raw,
)
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error

Array = npt.NDArray[Any]
HORIZON, ACTIVE = 28, 91
# Days between two questions of the test period.
STEP = 28
BOOSTING = {
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
# Peer -> its test predictions, one array a training of its own.
Answers = dict[str, list[Array]]


@dataclass(frozen=True)
class Question:
    """What the peers are asked, in the same order everywhere.

    Attributes:
        name: of the target.
        rows: `household_id`, `time` (local, days since the year's start), `period`; grain: a question.
        table: hand-made features.
        label: (n,), or (n, K) for K labels at once.
        boosting: LightGBM's settings.
    """

    name: str
    rows: pd.DataFrame
    table: pd.DataFrame
    label: Array
    boosting: dict[str, Any]

    @property
    def is_amount(self) -> bool:
        """Whether the label is an amount, not a yes or no."""
        return self.name == "spend"

    def where(self, *wanted: str) -> Array:
        """(n,) bool: the rows of some periods."""
        found: Array = self.rows.period.isin(wanted).to_numpy()
        return found


def daily() -> tuple[pd.DataFrame, Array, list[str]]:
    """Lines with local day and category; (households, days, K) what each did a day; names of the K."""
    lines = purchases()
    lines["day"] = (lines.time.dt.normalize() - YEAR).dt.days
    households = np.sort(lines.household_id.unique())
    lines["row"] = np.searchsorted(households, lines.household_id)
    commonest = commonest_categories(lines)
    # Days before the year are a day 0 for a transaction of New Year's Eve, local time.
    lines["day"] = lines.day.clip(lower=0)
    kinds = ["visits", "lines", "spend", "discount", "coupons", *commonest]
    cube = np.zeros((len(households), int(lines.day.max()) + 1, len(kinds)))
    place = (lines.row.to_numpy(), lines.day.to_numpy())
    np.add.at(cube[..., 1], place, 1)
    np.add.at(cube[..., 2], place, lines.sales_value)
    np.add.at(cube[..., 3], place, lines.retail_disc)
    np.add.at(cube[..., 4], place, lines.coupon_disc > 0)
    visits = lines.drop_duplicates("basket_id")
    np.add.at(cube[..., 0], (visits.row.to_numpy(), visits.day.to_numpy()), 1)
    for number, name in enumerate(commonest):
        own = lines[lines.product_category == name]
        np.add.at(cube[..., 5 + number], (own.row.to_numpy(), own.day.to_numpy()), 1)
    return pd.DataFrame({"household_id": households}), cube, kinds


def questions(cube: Array, step: int) -> pd.DataFrame:
    """Who is asked when (grain: household row and day), with the period that it falls into.

    Before the test period every `step` days; in it always every `STEP` days.
    """
    year = 13 * STEP
    numbers = [k for k in range(-year, year, step) if k < 0 or k % STEP == 0]
    days = pd.Series([TEST_START + pd.Timedelta(days=k) for k in numbers])
    asked = []
    for day, period in zip(days, periods(days, days + pd.Timedelta(days=HORIZON)), strict=True):
        number = (day - YEAR).days
        if period != "unused":
            active = cube[:, max(0, number - ACTIVE) : number, 1].sum(axis=1) > 0
            asked += [(row, number, period) for row in np.flatnonzero(active)]
    return pd.DataFrame(asked, columns=["row", "day", "period"])


def daily_marketing(households: Array, days: int) -> tuple[Array, list[str]]:
    """(households, days, K) what each was sent and redeemed a day; names of the K: redemptions, and of each type of
    campaign how many began and how many ended the day before.
    """
    sent = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    redeemed = raw("coupon_redemptions")
    types = sorted(sent.campaign_type.unique())
    names = ["redemptions", *(f"{what}_{kind}" for kind in types for what in ("contacts", "ended"))]
    cube = np.zeros((len(households), days, len(names)))

    def count(name: str, rows: pd.DataFrame, dates: pd.Series) -> None:
        # What began before the year counts from its first day on: so does its end.
        day = (dates - YEAR).dt.days.clip(lower=0).to_numpy()
        known = rows.household_id.isin(households).to_numpy() & (day < days)
        row = np.searchsorted(households, rows.household_id.to_numpy()[known])
        np.add.at(cube[..., names.index(name)], (row, day[known]), 1)

    count("redemptions", redeemed, redeemed.redemption_date)
    for kind in types:
        own = sent[sent.campaign_type == kind]
        count(f"contacts_{kind}", own, own.start_date)
        count(f"ended_{kind}", own, own.end_date + pd.Timedelta(days=1))
    return cube, names


def running(cube: Array) -> Array:
    """(households, days + 1, K) sums over the days before each."""
    return np.concatenate([np.zeros((len(cube), 1, cube.shape[2])), cube.cumsum(axis=1)], axis=1)


def regular_features(
    rows: pd.DataFrame, cube: Array, kinds: list[str], households: pd.DataFrame
) -> pd.DataFrame:
    """Before each question: recency, frequency, money, category shares, weekdays, coupons, campaigns; demographics."""
    sums = running(cube)
    keys = households.household_id.to_numpy()
    marketing, sent = daily_marketing(keys, cube.shape[1])
    told = running(marketing)
    weekday = (YEAR.weekday() + np.arange(cube.shape[1])) % 7
    row, day = rows.row.to_numpy(), rows.day.to_numpy()
    table: dict[str, Array] = {}
    for window in WINDOWS:
        inside = sums[row, day] - sums[row, np.maximum(0, day - window)]
        table |= {f"{name}_{window}": inside[:, number] for number, name in enumerate(kinds)}
        table[f"spend_a_visit_{window}"] = inside[:, 2] / np.maximum(inside[:, 0], 1)
        table |= {
            f"share_{name}_{window}": inside[:, number] / np.maximum(inside[:, 1], 1)
            for number, name in enumerate(kinds)
            if number >= 5 and window >= ACTIVE  # of a few days counts say the same
        }
        lately = told[row, day] - told[row, np.maximum(0, day - window)]
        table |= {
            f"{name}_{window}": lately[:, number]
            for number, name in enumerate(sent)
            if not name.startswith("ended_")
        }
    for number in range(7):
        visits = running(cube[..., :1] * (weekday == number)[None, :, None])[row, day, 0]
        table[f"visits_on_weekday_{number}"] = visits / np.maximum(sums[row, day, 0], 1)
    for number, name in enumerate(sent):
        if name.startswith("contacts_"):
            # Of each type the end stands beside the beginning.
            table[f"under_way_{name}"] = told[row, day, number] - told[row, day, number + 1]
    redeemed = marketing[..., 0] > 0
    last_redeemed = np.maximum.accumulate(np.where(redeemed, np.arange(cube.shape[1]), -400), axis=1)
    table["days_since_redeemed"] = day - last_redeemed[row, day - 1]
    bought = cube[..., 1] > 0
    number = np.arange(cube.shape[1])
    last = np.maximum.accumulate(np.where(bought, number, -400), axis=1)
    first = np.where(bought.any(axis=1), bought.argmax(axis=1), 400)
    table["days_since_visit"] = day - last[row, day - 1]
    table["days_known"] = day - first[row]
    gap = [np.diff(np.flatnonzero(bought[r, :d])) for r, d in zip(row, day, strict=True)]
    table["longest_gap"] = np.array([g.max() if len(g) else 400 for g in gap])
    table["usual_gap"] = np.array([np.median(g) if len(g) else 400 for g in gap])
    table["trend"] = table["spend_28"] * 91 / 28 / (table["spend_91"] + 1)
    table["weeks_with_a_visit"] = np.array(
        [
            len(np.unique(np.flatnonzero(bought[r, max(0, d - 91) : d]) // 7))
            for r, d in zip(row, day, strict=True)
        ]
    )
    people = demographics(pd.Series(keys[row]))
    made = pd.concat([pd.DataFrame(table), people], axis=1)
    made.attrs["categories"] = kinds[5:]
    return made


def answers(rows: pd.DataFrame, cube: Array) -> dict[str, Array]:
    """What followed each question: `lapse` (n,), `spend` (n,), `categories` (n, K)."""
    sums = running(cube)
    row, day = rows.row.to_numpy(), rows.day.to_numpy()
    after = sums[row, day + HORIZON] - sums[row, day]
    return {
        "lapse": (after[:, 1] == 0).astype(float),
        "spend": after[:, 2],
        "categories": (after[:, 5:] > 0).astype(float),
    }


def each_label(question: Question, answer: Callable[[Array], Array]) -> Array:
    """The answers to a label, or to each of K labels side by side."""
    if question.label.ndim == 1:
        return answer(question.label)
    return np.stack([answer(label) for label in question.label.T], axis=1)


def linear(question: Question) -> Array:
    """Logistic regression."""
    return each_label(question, lambda label: logistic(question.table, label, question.rows.period))


def by_lightgbm(question: Question, table: pd.DataFrame, seed: int) -> Array:
    """LightGBM on a table of the question's rows; of an amount its median."""
    kind, options = (lightgbm.LGBMClassifier, {})
    if question.is_amount:
        kind, options = lightgbm.LGBMRegressor, {"objective": "l1"}
    settings = question.boosting | options | {"random_state": seed}
    test = table[question.where("test")]

    def answer(label: Array) -> Array:
        model = boosted(kind, settings, table, label, question.rows.period)
        found: Array = model.predict(test) if question.is_amount else model.predict_proba(test)[:, 1]
        return found

    return each_label(question, answer)


def by_sklearn(question: Question) -> Array:
    """scikit-learn's gradient boosting on the features, its rounds chosen as LightGBM's are."""
    settings: dict[str, Any] = {
        "learning_rate": 0.04,
        "max_leaf_nodes": 15,
        "min_samples_leaf": question.boosting["min_child_samples"],
        "max_features": 0.5,
        "early_stopping": False,
        "random_state": 0,
    }
    kind, loss = HistGradientBoostingClassifier, log_loss
    if question.is_amount:
        kind, loss = HistGradientBoostingRegressor, mean_absolute_error
        settings["loss"] = "absolute_error"
    table = question.table.to_numpy()
    early, late, test = (question.where(name) for name in ("train", "validation", "test"))

    def answer(label: Array) -> Array:
        chosen = kind(max_iter=300, **settings).fit(table[early], label[early])
        staged = chosen.staged_predict if question.is_amount else chosen.staged_predict_proba
        losses = [loss(label[late], told) for told in staged(table[late])]
        model = kind(max_iter=max(20, int(np.argmin(losses)) + 1), **settings).fit(table[~test], label[~test])
        found: Array = model.predict(table[test])
        return found if question.is_amount else model.predict_proba(table[test])[:, 1]

    return each_label(question, answer)


def rule(question: Question) -> Array:
    """What anyone would guess without a model."""
    table = question.table[question.where("test")]
    if question.name == "lapse":
        found = table.days_since_visit - table.visits_91
    elif question.name == "spend":
        found = table.spend_91 * HORIZON / 91
    else:
        found = table[[f"{name}_91" for name in question.table.attrs["categories"]]]
    return found.to_numpy()


def regular_peers(question: Question, weekly: Question, seeds: Iterable[int], timing: Timing) -> Answers:
    """The peers of what is asked every four weeks; LightGBM also learns from the same asked every week.

    LightGBM of one label with each seed; of many, and weekly, with the first. The others have none.
    """
    name = question.name
    several = seeds if question.label.ndim == 1 else (0,)
    found = {
        "rule": [rule(question)],
        "lightgbm": [
            timing(f"lightgbm_{name}", lambda s=seed: by_lightgbm(question, question.table, s))
            for seed in several
        ],
        "lightgbm_weekly": [timing(f"lightgbm_weekly_{name}", lambda: by_lightgbm(weekly, weekly.table, 0))],
        "sklearn": [timing(f"sklearn_{name}", lambda: by_sklearn(question))],
    }
    if not question.is_amount:
        found["logistic"] = [timing(f"logistic_{name}", lambda: linear(question))]
    return found


def answers_folder(keep: Path) -> Path:
    """Where in `keep` the answers of these very peers lie: others, when their scripts or libraries change."""
    digest = hashlib.sha256(f"{lightgbm.__version__} {sklearn.__version__}".encode())
    for name in ("coupon.py", "quality_peers.py", "quality.py", "coles.py", "coles_train.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    folder = keep / f"answers_{digest.hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    return folder


def coles_peers(
    questions: list[Question], seeds: Iterable[int], keep: Path, timing: Timing
) -> dict[str, Answers]:
    """Target -> answers by CoLES embeddings: LightGBM on them alone, and on them beside the features.

    Many labels at once are asked of the first seed only, and only beside the features: each is a model. The embeddings
    stay in the folder `keep`.
    """
    events = household_events()
    asked = pd.concat([question.rows[["household_id", "time"]] for question in questions], ignore_index=True)
    ends = np.cumsum([len(question.rows) for question in questions])[:-1]
    found: dict[str, Answers] = {question.name: {} for question in questions}
    for turn, seed in enumerate(seeds):
        given = embeddings(events, asked, seed, keep)
        for question, vectors in zip(questions, np.split(given, ends), strict=True):
            own = pd.DataFrame(vectors).add_prefix("coles_")
            beside = pd.concat([question.table.reset_index(drop=True), own], axis=1)
            tables = {"coles": own, "coles_lightgbm": beside}
            if question.label.ndim > 1:
                tables = {"coles_lightgbm": beside} if turn == 0 else {}
            for peer, table in tables.items():
                what = f"{peer}_{question.name}"
                answer = timing(what, lambda q=question, t=table, s=seed: by_lightgbm(q, t, s))
                found[question.name].setdefault(peer, []).append(answer)
    return found
