"""Seconds and memory of the demo by stage, compared with their limits.

    python -m benchmarks.scale.demo [--smoke]

Runs every stage on Complete Journey in a fresh workspace. Limits on two cores: 12 minutes, and 8 GiB for all
processes together. `--smoke` trains a small model for one epoch of each phase, with one household in five opted in.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.common import RETAILER_CONF, SMOKE_TRAINING, lam_spark, report, smoke_requested, stage_records

SMOKE = (*SMOKE_TRAINING, "fetch.arguments={seed: 20170101, opted_in: 0.2}")


def main() -> None:
    settings = SMOKE if smoke_requested(__doc__) else ()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "demo"
        started = time.monotonic()
        summary = lam_spark("run", RETAILER_CONF, root, *settings)
        total = time.monotonic() - started
        records = stage_records(root, summary["run_id"])
    for stage, record in records.items():
        print(
            f"{stage:<10} {record['seconds']:7.1f} s  {record['peak_memory_gib']:5.2f} GiB  {record['message']}"
        )
    figures = {f"{stage}_seconds": record["seconds"] for stage, record in records.items()}
    figures |= {
        "total_seconds": round(total, 1),
        "peak_gib": max(record["peak_memory_gib"] for record in records.values()),
    }
    report("demo", figures, {"total_seconds": ("<=", 720), "peak_gib": ("<=", 8)})


if __name__ == "__main__":
    main()
