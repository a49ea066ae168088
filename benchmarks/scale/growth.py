"""Growth of time and memory with the number of customers, from `ingest` to `score`.

    python -m benchmarks.scale.growth [--smoke]

Runs the stages on a synthetic purchase log of N and of 4 N customers with 40 purchases each, in fresh workspaces on
the same cores. Limits: 4.4 times the seconds (4 is linear; start-up costs lower it) and 8 GiB without the training.
N is 10,000; `--smoke` takes 500.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import PURCHASE_LOG_CONF, report, run_stage, smoke_requested

STAGES = ("ingest", "consent", "sequences", "examples", "snapshot", "train", "score")
PURCHASES = 40


def write_log(folder: Path, customers: int, seed: int) -> None:
    """Write a year of purchases, with a rate per customer, and a consent ledger in which everybody opted in."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    keys = np.char.add("customer-", np.arange(customers).astype(str))
    gaps = rng.exponential(rng.gamma(2.0, 4.5, (customers, 1)), (customers, PURCHASES))
    days = np.minimum(np.cumsum(gaps, axis=1) + rng.uniform(0, 60, (customers, 1)), 364).astype(int)
    log = pd.DataFrame(
        {
            "customer": np.repeat(keys, PURCHASES),
            "day": (np.datetime64("2024-01-01") + days.ravel()).astype(str),
            "quantity": rng.integers(1, 6, customers * PURCHASES),
            "amount": rng.gamma(2.0, 12.0, customers * PURCHASES).round(2),
        }
    )
    log.to_csv(folder / "purchases.csv", index=False)
    consent = pd.DataFrame(
        [
            (key, purpose, "opt_in", "2024-01-01T00:00:00Z")
            for key in keys
            for purpose in ("model_training", "direct_marketing")
        ],
        columns=["customer", "purpose", "state", "stated_at"],
    )
    consent.to_csv(folder / "agreed.csv", index=False)


def measure(customers: int) -> tuple[dict[str, float], float]:
    """Seconds by stage, and peak memory of all processes (GiB) without the training."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "log"
        write_log(root / "raw", customers, seed=7)
        settings = (
            f"inputs.purchases.path={root}/raw/purchases.csv",
            f"inputs.agreed.path={root}/raw/agreed.csv",
            "training.launcher=horovod",
            "training.world_size=2",
            "training.pretrain_epochs=0",
            "training.finetune_epochs=1",
            "quality.max_quarantine_share=0",
        )
        seconds, peak = {}, 0.0
        for stage in STAGES:
            record = run_stage(stage, PURCHASE_LOG_CONF, root, *settings)
            seconds[stage] = record["seconds"]
            if stage != "train":
                peak = max(peak, record["peak_memory_gib"])
            print(
                f"{customers:>8,} customers  {stage:<10} {record['seconds']:6.1f} s  {record['message']}",
                flush=True,
            )
    return seconds, peak


def main() -> None:
    base = 500 if smoke_requested(__doc__) else 10_000
    (seconds, peak), (seconds_4, peak_4) = measure(base), measure(4 * base)
    figures = {f"{stage}_time_at_4x": seconds_4[stage] / seconds[stage] for stage in STAGES}
    figures |= {
        "time_at_4x": sum(seconds_4.values()) / sum(seconds.values()),
        "peak_gib": peak,
        "peak_gib_at_4x": peak_4,
        "events": float(base * PURCHASES),
    }
    report("growth", figures, {"time_at_4x": ("<=", 4.4), "peak_gib_at_4x": ("<=", 8)})


if __name__ == "__main__":
    main()
