"""Events a second of one and of two ranks (gloo, one thread each): Horovod, its cycle time, and torch.distributed.

    python benchmarks/ranks.py [--small]

The same made-up blocks, model and loop; equal batch a rank. Two ranks read twice the events a step: 2.0 would be
perfect. Three runs of each in turn, medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blocks import DAYS, blocks
from common import report, small_asked

from lam_spark.config import TrainingConfig
from lam_spark.dataset.layout import MICROS_PER_DAY, Layout, Target
from lam_spark.dataset.packing import Block
from lam_spark.model.transformer import ModelSize
from lam_spark.training.launch import launch
from lam_spark.training.spec import SPEC_FILE, TrainingSpec

LAYOUT = Layout(
    categorical=("action", "item", "place"),
    sizes=(6, 300, 60),
    numeric=("amount", "quantity"),
    count_by="action",
    counted_ids=(3, 4, 5),
    window_days=(28, 91),
    block_events=256,
    queries_per_block=16,
    targets=(Target("reply"),),
)
# Launcher, ranks, Horovod's cycle time (ms).
WAYS = (("horovod", 1, 5), ("horovod", 2, 1), ("horovod", 2, 5), ("torch", 2, 5))


def write(folder: Path, made: list[Block]) -> list[str]:
    """Two Parquet files of the blocks, as the snapshot has them."""
    urls = []
    for part in range(2):
        chosen = made[part::2]
        table = pa.table({name: [block[name] for block in chosen] for name in chosen[0]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=32)
        urls.append(f"file://{folder / f'{part}.parquet'}")
    return urls


def events_a_second(folder: Path, urls: list[str], launcher: str, ranks: int, cycle_ms: int) -> float:
    """Of the second epoch of pre-training."""
    settings = TrainingConfig(
        launcher=launcher, ranks=ranks, pretrain_epochs=2, finetune_epochs=1, batch_blocks=8
    ).model_dump(mode="json")
    spec = TrainingSpec(
        LAYOUT,
        ModelSize(64, 2, 4, 0.1),
        settings,
        tuple(urls),
        tuple(urls),
        150 * MICROS_PER_DAY,
        (DAYS + 1) * MICROS_PER_DAY,
        (2.0, 2.0),
        (1.0, 1.0),
        ((0.0, 1.0, 2.0, 3.0, 4.0),) * 2,
        "reply",
        (1.0,),
        str(folder),
        {},
    )
    spec.save(folder / SPEC_FILE)
    os.environ["HOROVOD_CYCLE_TIME"] = str(cycle_ms)
    told: list[dict[str, Any]] = []
    launch(spec, told.append)
    ends = [r for r in told if r["event"] == "epoch end" and r["phase"] == "pre-training"]
    return float(ends[-1]["tokens_per_second"])


def main() -> None:
    small = small_asked(__doc__)
    speeds: dict[tuple[str, int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write(folder, blocks(LAYOUT, 128 if small else 768))
        for _ in range(1 if small else 3):
            for way in WAYS:
                speeds.setdefault(way, []).append(events_a_second(folder, urls, *way))
                launcher, ranks, cycle = way
                print(
                    f"{launcher}, {ranks} ranks, cycle {cycle} ms: {speeds[way][-1]:,.0f} events/s",
                    flush=True,
                )
    one, quick, two, torch = (statistics.median(speeds[way]) for way in WAYS)
    figures = {
        "one_rank_events_a_second": one,
        "two_ranks_events_a_second": two,
        "two_ranks": two / one,
        "two_ranks_torch": torch / one,
        "cycle_5ms_vs_1ms": two / quick,
    }
    report("ranks", figures, {"two_ranks": (">=", 1.7)})


if __name__ == "__main__":
    main()
