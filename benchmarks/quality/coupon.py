"""Coupon redemption on Complete Journey: the model compared with a simple ordering, a logistic model and LightGBM.

    python -m benchmarks.quality.coupon [--smoke]

All households opt in, so that the test rows are all 1,653 contacts of campaigns 16 to 19. The baselines
(`benchmarks/baselines/coupon.py`) learn from the same contacts as the model, labels matured before 2017-10-02, and
select their settings on the validation period. Figures: AUC on the test rows. Target: 0.80. `--smoke`: one seed,
small model.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks.baselines.boosting import Stopwatch
from benchmarks.baselines.complete_journey import contacts
from benchmarks.baselines.coupon import ContactFeatures, coupon_baselines
from benchmarks.common import (
    EVERYONE_OPTED_IN,
    RETAILER_CONF,
    SMOKE_TRAINING,
    lam_spark,
    report,
    run_stage,
    run_up_to_snapshot,
    smoke_requested,
)
from benchmarks.support.workspace import local_day, newest_files, pseudonyms


def model_auc(root: Path, test: pd.DataFrame, keys: list[str]) -> float:
    """AUC of the evaluated model on the same contacts as the baselines."""
    held_out = pd.read_parquet(newest_files(root / "tables" / "held_out_scores"))
    held_out["as_of"] = local_day(held_out.as_of)
    expected = pd.DataFrame(
        {"customer_key": keys, "as_of": test.start_date.dt.date, "label": test.label.to_numpy()}
    )
    joined = expected.merge(held_out, on=["customer_key", "as_of"], suffixes=("", "_lam"))
    assert len(joined) == len(expected), "expected the same contacts on both sides"
    assert (joined.label == joined.label_lam).all(), "expected the same labels on both sides"
    return float(roc_auc_score(joined.label, joined.logit))


def main() -> None:
    smoke = smoke_requested(__doc__)
    rows = contacts()
    started = time.monotonic()
    table = ContactFeatures().table(rows)
    print(f"{len(rows):,} contacts, {table.shape[1]} features in {time.monotonic() - started:.0f} s")
    test = rows[rows.period == "test"]
    seeds = range(1 if smoke else 5)
    baselines = coupon_baselines(rows, table, seeds, Stopwatch())
    areas = {name: float(roc_auc_score(test.label, scores)) for name, scores in baselines.items()}
    secret = os.environ["LAM_SPARK_SECRET"] = secrets.token_hex(32)
    keys = pseudonyms(secret, test.household_id)
    settings = (EVERYONE_OPTED_IN, *(SMOKE_TRAINING if smoke else ()))
    lam, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coupon"
        run_up_to_snapshot(RETAILER_CONF, root, *settings)
        for seed in seeds:
            record = run_stage("train", RETAILER_CONF, root, *settings, f"training.seed={seed}")
            seconds.append(record["seconds"])
            lam_spark("evaluate", RETAILER_CONF, root, *settings)
            lam.append(model_auc(root, test, keys))
            print(f"lam_spark, seed {seed}: AUC {lam[-1]:.4f}, training {seconds[-1]:.0f} s", flush=True)
    figures = {f"{name}_auc": area for name, area in areas.items()}
    figures |= {
        "contacts": len(test),
        "lam_auc": float(np.mean(lam)),
        "lam_auc_low": float(np.min(lam)),
        "lam_auc_high": float(np.max(lam)),
        "lam_vs_lightgbm": float(np.mean(lam) / areas["lightgbm"]),
        "lam_train_seconds": float(np.median(seconds)),
    }
    report("coupon", figures, {"lam_auc": (">=", 0.80)})


if __name__ == "__main__":
    main()
