"""Customer embeddings by CoLES of pytorch-lifestream, a baseline of `benchmarks/quality/retailer.py`.

The library pins releases that conflict with this project's lock. It therefore gets its own environment, which sees this
project's packages and adds the missing ones (200 MB, created on first use), without spaCy and Dask.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.baselines.complete_journey import TEST_START, YEAR, purchases, raw

_LIBRARY = "pytorch-lifestream==0.7.0"
_REQUIREMENTS = (
    "hydra-core==1.3.8",
    "pymonad==2.4.0",
    "pytorch-lightning==2.6.6",
    "torchmetrics==1.9.0",
    "transformers==4.57.6",
)
# Ids of a categorical field; rarer values share the last one.
_MOST_IDS = 400


def environment() -> Path:
    """Python of the library's environment, which is created if it does not exist."""
    own = sysconfig.get_paths()["purelib"]
    digest = hashlib.sha256("\n".join((_LIBRARY, *_REQUIREMENTS, own, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lam_spark"
    folder = cache / f"coles-{digest}"
    python = folder / "bin/python"
    done = folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        query = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        packages = Path(subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        (packages / "project.pth").write_text(own + "\n", encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "--no-input"]
        subprocess.run([*install, *_REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", _LIBRARY], check=True)
        done.touch()
    return python


def household_events() -> pd.DataFrame:
    """Purchases, contacts and redemptions of all households as `coles_train.py` reads them; time in local days."""
    products = raw("products")[["product_id", "department", "brand"]]
    lines = purchases().merge(products, on="product_id", how="left").rename(columns={"time": "at"})
    lines["action"] = "purchase"
    sent = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    sent = sent.rename(columns={"start_date": "at", "campaign_type": "product_category"})
    redeemed = raw("coupon_redemptions").rename(columns={"redemption_date": "at"})
    parts = [lines, sent.assign(action="contact"), redeemed.assign(action="redemption")]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.sort_values(["household_id", "at"], kind="stable", ignore_index=True)
    days = (rows["at"] - YEAR) / pd.Timedelta(days=1)
    gap = days.groupby(rows.household_id).diff().fillna(0)
    events = pd.DataFrame({"household_id": rows.household_id, "time": days, "num_gap": gap})
    events["learn"] = rows["at"] < TEST_START
    for name in ("action", "department", "brand", "product_category", "store_id"):
        # Ids by frequency, as in the library's own preprocessing; 0 is its padding.
        values = rows[name].astype("string").fillna("none")
        rank = values[events.learn].value_counts().rank(ascending=False, method="first")
        events[f"cat_{name}"] = values.map(rank).fillna(len(rank) + 1).clip(upper=_MOST_IDS).astype(int)
    events["cat_weekday"] = rows["at"].dt.weekday + 1
    events["cat_hour"] = rows["at"].dt.hour + 1
    for name in ("quantity", "sales_value", "retail_disc", "coupon_disc"):
        # Quantities include weights in grams; the library's log scaler handles the range.
        events[f"num_{name}"] = rows[name].fillna(0.0)
    return events


def embeddings(
    events: pd.DataFrame, queries: pd.DataFrame, seed: int, folder: Path
) -> npt.NDArray[np.float32]:
    """(queries, D): embedding of each query's household before its time, by one training.

    Args:
        events: from `household_events`.
        queries: `household_id`, `time` (days).
        seed: of the training.
        folder: stores the result; an equal training (library, script, rows, seed) is not repeated.
    """
    script = Path(__file__).with_name("coles_train.py")
    digest = hashlib.sha256(_LIBRARY.encode() + script.read_bytes())
    for table in (events, queries):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    stored = folder / f"coles_{digest.hexdigest()[:12]}_{seed}.npy"
    if not stored.exists():
        with tempfile.TemporaryDirectory(prefix="coles-", dir=folder) as name:
            work = Path(name)
            events.rename(columns={"household_id": "row"}).to_parquet(work / "events.parquet")
            queries.rename(columns={"household_id": "row"}).to_parquet(work / "queries.parquet")
            subprocess.run([environment(), script, work, str(seed)], check=True)
            (work / "embeddings.npy").rename(stored)
    result: npt.NDArray[np.float32] = np.load(stored)
    return result
