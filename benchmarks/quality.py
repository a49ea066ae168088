"""Four questions about the retailer's households: the model beside rules, linear models and gradient boosting.

    python benchmarks/quality.py [--small] [--folder FOLDER]

Complete Journey, forward in time, everybody opted in: coupon redemption of a contacted household; and every four weeks,
of who bought in the 91 days before: lapse (no purchase in 28 days), spend in 28 days, and which of the 20 commonest
categories are bought in 28 days. Labels of training mature before 2017-10-02, the test period begins there; what there
is to choose (rounds, epochs) is chosen on the period from 2017-07-12. One training answers all four.

Same rows of the test period on all sides. The model learns from the regular questions asked every week, the peers from
the same asked every four weeks, LightGBM also from every week, as a peer of its own. Peers are written as their own
users would write them (`quality_peers.py`): a rule, logistic regression, scikit-learn's and LightGBM's boosting on
hand-made features (recency, frequency and money over 7/28/91/365 days, category shares, trend, gaps, weekdays,
demographics, coupon history, campaigns by type; for coupons the offer and its products' affinity), and LightGBM on
embeddings by pytorch-lifestream's CoLES, alone and beside these features. Figures are means over the seeds where a peer
has any (LightGBM's of coupons are one answer, the mean of its seeds'); `lead_...` is what the model's first seed is
better by than the best peer's first, 95 % over households, since what a user runs is one model; `ties` and `wins` count
the questions where that interval holds 0 and where it lies above. `seconds_...` are of one training, features not
counted. `--small` trains one seed instead of five. With --folder what was trained stays there, and the same command
goes on from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from coles import YEAR
from common import (
    REPOSITORY,
    command_line,
    fill,
    kept_folder,
    kept_secret,
    lam_spark,
    origin_digest,
    report,
    stage_records,
)
from coupon import (
    COUPON_BOOSTING,
    EVERYONE,
    Timing,
    contacts,
    features,
    newest_file,
    peers,
    pseudonyms,
)
from demo import QUICK
from quality_peers import (
    BOOSTING,
    STEP,
    Answers,
    Question,
    answers,
    answers_folder,
    by_sklearn,
    coles_peers,
    daily,
    questions,
    regular_features,
    regular_peers,
)
from sklearn.metrics import roc_auc_score

Array = npt.NDArray[Any]
# Days between two questions that the model, and LightGBM as a peer of its own, learn from.
OFTEN = 7
PURCHASE = "\"action = 'purchase'\""
REGULAR = (
    # The test period's answers are compared every `STEP` days.
    f"every_days: {OFTEN}, active: {PURCHASE}, active_days: 91, later: {PURCHASE}, horizon_days: '28', "
    f"baseline_filter: {PURCHASE}"
)
TARGETS = (
    f"targets.lapse={{says: buys nothing for four weeks, absent: true, rule: -count(*), {REGULAR}}}",
    f"targets.spend={{says: spends in four weeks, kind: value, value: sum(outcome.sales_value), {REGULAR}}}",
    f"targets.categories={{says: buys in four weeks, kind: next, field: item, top_k: 64, {REGULAR}}}",
    "snapshot.queries_per_block=64",
)


def measure(target: str, label: Array, predicted: Array, weight: Array) -> float:
    """AUC, mean absolute error, or the mean of the categories' AUCs; `weight` is how often a row was drawn."""
    if target == "spend":
        return float(np.average(np.abs(label - predicted), weights=weight))
    if target == "categories":
        pairs = zip(label.T, predicted.T, strict=True)
        return float(np.mean([roc_auc_score(y, p, sample_weight=weight) for y, p in pairs]))
    return float(roc_auc_score(label, predicted, sample_weight=weight))


def paired(target: str, label: Array, ours: Array, theirs: Array, household: Array) -> tuple[float, float]:
    """95 % interval of how much better ours is, over households drawn with return, both on the same draw."""
    _, member = np.unique(household, return_inverse=True)
    rng = np.random.default_rng(0)
    sign = -1 if target == "spend" else 1
    drawn = []
    for _ in range(200):
        weight = rng.poisson(1.0, member.max() + 1)[member].astype(float)
        drawn.append(sign * (measure(target, label, ours, weight) - measure(target, label, theirs, weight)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


class Retailer:
    """A workspace of our own system up to the training snapshot."""

    def __init__(self, folder: Path, small: bool) -> None:
        self.folder, self.root = folder, folder / "retailer"
        self.conf = REPOSITORY / "conf/complete_journey.yaml"
        self.secret = os.environ["LAM_SPARK_SECRET"] = kept_secret(folder)
        self.settings = (EVERYONE, *TARGETS, *(QUICK if small else ()))
        filled = folder / "filled"
        if not filled.exists():
            fill(self.conf, self.root, *self.settings)
            filled.touch()

    def answers(
        self, seed: int, contacts_: pd.DataFrame, asked: pd.DataFrame, commonest: list[str]
    ) -> dict[str, Array]:
        """What `predictions` says after a training with the seed, and that training's `seconds`."""
        kept = self.folder / f"seed_{seed}.npz"
        if not kept.exists():
            trained = lam_spark("train", self.conf, self.root, *self.settings, f"training.seed={seed}")
            lam_spark("evaluate", self.conf, self.root, *self.settings)
            seconds = stage_records(self.root, trained["run_id"])["train"]["seconds"]
            whole = self.folder / "unfinished.npz"
            np.savez(whole, seconds=seconds, **self.predictions(contacts_, asked, commonest))
            whole.rename(kept)
        return dict(np.load(kept))

    def predictions(
        self, contacts_: pd.DataFrame, asked: pd.DataFrame, commonest: list[str]
    ) -> dict[str, Array]:
        """Target -> test predictions in the order of the rows that the peers answered."""
        tables = self.root / "tables"
        scores = pd.read_parquet(newest_file(tables / "held_out_scores"))
        scores["day"] = local_day(scores.as_of)
        wanted = pd.DataFrame(
            {
                "customer_key": pseudonyms(self.secret, contacts_.household_id),
                "day": contacts_.start_date.dt.date,
            }
        )
        coupon = wanted.merge(scores, on=["customer_key", "day"], how="left", validate="one_to_one")
        assert coupon.calibrated.notna().all(), "the same contacts on both sides"
        assert (coupon.label.to_numpy() == contacts_.label.to_numpy()).all(), "the same labels on both sides"
        held = pd.read_parquet(newest_file(tables / "held_out_predictions"))
        held["day"] = local_day(held.as_of)
        rows = pd.DataFrame(
            {
                "customer_key": pseudonyms(self.secret, asked.household_id),
                "day": [(YEAR + pd.Timedelta(days=int(d))).date() for d in asked.day],
            }
        )
        found: dict[str, Array] = {"coupon": coupon.calibrated.to_numpy()}
        ids = vocabulary_ids(tables / "vocabulary", "item")
        for target in ("lapse", "spend", "categories"):
            own = held[(held.target == target) & held.day.isin(rows.day)]
            both = rows.merge(own, on=["customer_key", "day"], how="left", validate="one_to_one")
            assert both.answer.notna().all(), f"the same questions of {target} on both sides"
            assert len(own) == len(rows), f"the same questions of {target} on both sides"
            if target != "categories":
                label = asked[target].to_numpy()
                assert np.allclose(both.label, label, atol=1e-6), (
                    f"the same answers to {target} on both sides"
                )
            given = np.stack(both.answer.tolist())
            # Of how much, the median: the measure is the absolute error.
            columns = (
                [ids[name] - 3 for name in commonest] if target == "categories" else [given.shape[1] - 1]
            )
            found[target] = given[:, columns].squeeze() if target != "categories" else given[:, columns]
        return found


def local_day(instants: pd.Series) -> pd.Series:
    """The retailer's day of UTC instants."""
    return pd.to_datetime(instants, utc=True).dt.tz_convert("America/New_York").dt.date


def vocabulary_ids(table: Path, field: str) -> dict[str, int]:
    """Value -> token id of a field."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted(table.glob("*.parquet"))])
    own = rows[rows.field == field]
    return dict(zip(own.value, own.token_id.astype(int), strict=True))


def asked_questions(households: pd.DataFrame, cube: Array, kinds: list[str], step: int) -> list[Question]:
    """The three regular questions about what `daily` gives, every so many days."""
    rows = questions(cube, step)
    rows["household_id"] = households.household_id.to_numpy()[rows.row]
    rows["time"] = rows.day.astype(float)
    table = regular_features(rows, cube, kinds, households)
    labels = answers(rows, cube)
    print(
        f"{len(rows):,} questions of {rows.household_id.nunique():,} households, {table.shape[1]} features",
        flush=True,
    )
    return [Question(name, rows, table, label, BOOSTING) for name, label in labels.items()]


def coupon_question() -> Question:
    """The contacts of all campaigns."""
    sent = contacts()
    sent["time"] = (sent.start_date - YEAR) / pd.Timedelta(days=1)
    return Question("coupon", sent, features(sent), sent.label.to_numpy(), COUPON_BOOSTING)


def every_peer(
    regular: list[Question],
    weekly: list[Question],
    coupon: Question,
    seeds: range,
    keep: Path,
    timing: Timing,
) -> dict[str, Answers]:
    """Target -> peer -> test predictions."""
    found = {
        one.name: regular_peers(one, often, seeds, timing) for one, often in zip(regular, weekly, strict=True)
    }
    own = peers(coupon.rows, coupon.table, seeds, timing)
    found["coupon"] = {name: [told] for name, told in own.items()}
    found["coupon"]["sklearn"] = [timing("sklearn_coupon", lambda: by_sklearn(coupon))]
    for name, theirs in coles_peers([coupon, *regular], seeds, keep, timing).items():
        found[name] |= theirs
    return found


def main() -> None:
    command = command_line(__doc__, keeps_folder=True).parse_args()
    small = command.small
    seeds = range(1 if small else 5)
    households, cube, kinds = daily()
    commonest = kinds[5:]
    regular, weekly = (asked_questions(households, cube, kinds, step) for step in (STEP, OFTEN))
    coupon = coupon_question()
    every = {question.name: question for question in (*regular, coupon)}
    truth = {name: question.label[question.where("test")] for name, question in every.items()}
    held = {name: question.rows[question.where("test")] for name, question in every.items()}
    sent = held["coupon"].reset_index(drop=True)
    asked = held["lapse"].reset_index(drop=True).assign(lapse=truth["lapse"], spend=truth["spend"])
    seconds = []
    # The peers know nothing of our own code: what they trained stays when it changes.
    with (
        kept_folder(command.folder and command.folder / "peers", "quality-peers-", "") as keep,
        kept_folder(command.folder and command.folder / "model", "quality-", origin_digest(small)) as folder,
    ):
        timing = Timing(answers_folder(keep))
        predictions = every_peer(regular, weekly, coupon, seeds, keep, timing)
        for name in every:
            predictions[name]["lam"] = []
        retailer = Retailer(folder, small)
        for seed in seeds:
            found = retailer.answers(seed, sent, asked, commonest)
            seconds.append(float(found["seconds"]))
            for name in every:
                predictions[name]["lam"].append(found[name])
            scored = {
                n: measure(n, truth[n], predictions[n]["lam"][-1], np.ones(len(truth[n]))) for n in every
            }
            print(f"seed {seed}, {seconds[-1]:.0f} s: {scored}", flush=True)
    figures: dict[str, float] = {"lam_train_seconds": float(np.median(seconds)), "seeds": len(seeds)}
    for name, label in truth.items():
        ones = np.ones(len(label))
        each = {
            peer: [measure(name, label, told, ones) for told in theirs]
            for peer, theirs in predictions[name].items()
        }
        figures |= {f"{name}_{peer}": float(np.mean(values)) for peer, values in each.items()}
        figures |= {f"{name}_lam_low": min(each["lam"]), f"{name}_lam_high": max(each["lam"])}
        # Against the strongest peer, by one seed: what a user runs is one model, not the mean of five.
        better = min if name == "spend" else max
        best = better((peer for peer in each if peer != "lam"), key=lambda p: figures[f"{name}_{p}"])
        theirs, ours = predictions[name][best][0], predictions[name]["lam"][0]
        low, high = paired(name, label, ours, theirs, held[name].household_id.to_numpy())
        print(f"{name}: the best peer is {best}; the model is better by {low:.4f} to {high:.4f} (95 %)")
        figures |= {f"{name}_lead_low": low, f"{name}_lead_high": high}
        figures["wins"] = figures.get("wins", 0) + (low > 0)
        figures["ties"] = figures.get("ties", 0) + (low <= 0 <= high)
    figures["as_good"] = figures["wins"] + figures["ties"]
    figures |= {f"seconds_{what}": float(np.median(each)) for what, each in timing.seconds.items()}
    report("quality", figures, {"coupon_lam": (">=", 0.80), "as_good": (">=", 4), "wins": (">=", 2)})


if __name__ == "__main__":
    main()
