"""Seconds and memory of the demo, stage by stage, against their limits.

    python benchmarks/demo.py [--small]

The main job on real data in a fresh workspace: at most 12 minutes and 8 GiB in all processes together on two
cores. --small trains one epoch of each phase.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import REPOSITORY, lam_spark, report, small_asked, stage_records

QUICK = ("training.pretrain_epochs=1", "training.finetune_epochs=1")


def main() -> None:
    small = small_asked(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "demo"
        started = time.monotonic()
        summary = lam_spark("run", REPOSITORY / "conf/complete_journey.yaml", root, *(QUICK if small else ()))
        total = time.monotonic() - started
        records = stage_records(root, summary["run_id"])
    for stage, record in records.items():
        print(
            f"{stage:<10} {record['seconds']:7.1f} s  {record['peak_memory_gib']:5.2f} GiB  {record['says']}"
        )
    figures = {f"{stage}_seconds": record["seconds"] for stage, record in records.items()}
    figures |= {
        "total_seconds": round(total, 1),
        "peak_gib": max(record["peak_memory_gib"] for record in records.values()),
    }
    report("demo", figures, {"total_seconds": ("<=", 720), "peak_gib": ("<=", 8)})


if __name__ == "__main__":
    main()
