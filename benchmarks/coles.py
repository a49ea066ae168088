"""Embeddings by pytorch-lifestream's CoLES, as a peer for `quality.py`.

The library asks for releases that the project's own set does not hold, so it gets an environment of its own, which
sees the project's packages and adds what it lacks (200 MB, made at the first use). Its spaCy and Dask are
left out: what is used here does not import them.
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
from coupon import TEST_START, purchases, raw

_LIBRARY = "pytorch-lifestream==0.7.0"
_NEEDS = (
    "hydra-core==1.3.8",
    "pymonad==2.4.0",
    "pytorch-lightning==2.6.6",
    "torchmetrics==1.9.0",
    "transformers==4.57.6",
)
YEAR = pd.Timestamp("2017-01-01")


def environment() -> Path:
    """The Python of the library's environment; makes it where it is not there yet."""
    own = sysconfig.get_paths()["purelib"]
    digest = hashlib.sha256("\n".join((_LIBRARY, *_NEEDS, own, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lam_spark"
    folder = cache / f"coles-{digest}"
    python = folder / "bin/python"
    done = folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        ask = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        packages = Path(subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        (packages / "project.pth").write_text(own + "\n", encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "--no-input"]
        subprocess.run([*install, *_NEEDS], check=True)
        subprocess.run([*install, "--no-deps", _LIBRARY], check=True)
        done.touch()
    return python


def household_events() -> pd.DataFrame:
    """All that a household did or got, as `coles_train.py` takes it, with `household_id`; local time in days."""
    products = raw("products")[["product_id", "department", "brand"]]
    lines = purchases().merge(products, on="product_id", how="left").rename(columns={"time": "at"})
    lines["action"] = "purchase"
    sent = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    sent = sent.rename(columns={"start_date": "at", "campaign_type": "product_category"})
    redeemed = raw("coupon_redemptions").rename(columns={"redemption_date": "at"})
    parts = [lines, sent.assign(action="contact"), redeemed.assign(action="redemption")]
    every = pd.concat(parts, ignore_index=True)
    every = every.sort_values(["household_id", "at"], kind="stable", ignore_index=True)
    days = (every["at"] - YEAR) / pd.Timedelta(days=1)
    gap = days.groupby(every.household_id).diff().fillna(0)
    events = pd.DataFrame({"household_id": every.household_id, "time": days, "num_gap": gap})
    events["learn"] = every["at"] < TEST_START
    for name in ("action", "department", "brand", "product_category", "store_id"):
        # By frequency, as the library's own preprocessing counts; 0 is its padding.
        values = every[name].astype("string").fillna("none")
        rank = values[events.learn].value_counts().rank(ascending=False, method="first")
        events[f"cat_{name}"] = values.map(rank).fillna(len(rank) + 1).clip(upper=400).astype(int)
    events["cat_weekday"] = every["at"].dt.weekday + 1
    events["cat_hour"] = every["at"].dt.hour + 1
    for name in ("quantity", "sales_value", "retail_disc", "coupon_disc"):
        # A weight in grams stands among the quantities: the logarithm of the scaler tames it.
        events[f"num_{name}"] = every[name].fillna(0.0)
    return events


def embeddings(events: pd.DataFrame, asked: pd.DataFrame, seed: int, keep: Path) -> npt.NDArray[np.float32]:
    """(questions, D): a vector of each question's household before its time, by one training.

    Args:
        events: of `household_events`.
        asked: `household_id`, `time` (days).
        seed: of the training.
        keep: a folder; a training that it tells of, of the same library, script and rows, is not run again.
    """
    script = Path(__file__).with_name("coles_train.py")
    given = hashlib.sha256(_LIBRARY.encode() + script.read_bytes())
    for table in (events, asked):
        given.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    kept = keep / f"coles_{given.hexdigest()[:12]}_{seed}.npy"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="coles-", dir=keep) as name:
            folder = Path(name)
            events.rename(columns={"household_id": "row"}).to_parquet(folder / "events.parquet")
            asked.rename(columns={"household_id": "row"}).to_parquet(folder / "asked.parquet")
            subprocess.run([environment(), script, folder, str(seed)], check=True)
            (folder / "vectors.npy").rename(kept)
    found: npt.NDArray[np.float32] = np.load(kept)
    return found
