"""Events a second of one and of two Horovod ranks (gloo, one thread each), and what Horovod's cycle time costs.

    python benchmarks/ranks.py [--small]

The same made-up blocks, model and loop; equal batch a rank. Two ranks read twice the events a step: 2.0 would be
perfect. Three runs of each in turn, medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import report, small_asked

from lam_spark.config import TrainingConfig
from lam_spark.dataset.layout import MICROS_PER_DAY, Layout
from lam_spark.dataset.packing import Block, Customer, Packer, prepare
from lam_spark.model.transformer import ModelSize
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.worker import PROGRESS_FILE

LAYOUT = Layout(
    categorical=("action", "item", "place"),
    sizes=(6, 300, 60),
    numeric=("amount", "quantity"),
    count_by="action",
    counted_ids=(3, 4, 5),
    window_days=(28, 91),
    block_events=256,
    queries_per_block=16,
    targets=("reply",),
)
DAYS = 300


def customers(count: int, rng: np.random.Generator) -> Iterator[Customer]:
    """Random events and two labelled queries a customer."""
    for _ in range(count):
        events = int(rng.integers(60, 500))
        times = np.sort(rng.integers(0, DAYS * MICROS_PER_DAY, events))
        asked = np.array([100, 200], dtype=np.int64) * MICROS_PER_DAY
        sizes = dict(zip(LAYOUT.categorical, LAYOUT.sizes, strict=True))
        yield Customer(
            {
                "event_time": times,
                "hour_of_week": (times // 3_600_000_000 % 168).astype(np.int32),
                **{name: rng.integers(3, size, events).astype(np.int32) for name, size in sizes.items()},
                **{name: rng.gamma(2, 5, events).astype(np.float32) for name in LAYOUT.numeric},
            },
            {
                "query_time": asked,
                "query_hour_of_week": np.zeros(2, np.int32),
                "query_split": np.array([1, 2], np.int32),
                "query_row": np.full(2, -1, np.int32),
                **{f"query_{name}": np.full(2, 3, np.int32) for name in LAYOUT.categorical},
                **{f"query_{name}": np.full(2, np.nan, np.float32) for name in LAYOUT.numeric},
                "label_reply": rng.integers(0, 2, 2).astype(np.float32),
            },
        )


def blocks(count: int) -> list[Block]:
    """So many full blocks."""
    packer, made = Packer(LAYOUT), []
    for customer in customers(10**6, np.random.default_rng(0)):
        prepared = prepare(LAYOUT, customer)
        for segment in prepared.segments:
            made += packer.place(prepared, segment, with_loss=True)
        if len(made) >= count:
            return made[:count]
    return made


def write(folder: Path, made: list[Block]) -> list[str]:
    """Two Parquet files of the blocks, as the snapshot has them."""
    urls = []
    for part in range(2):
        chosen = made[part::2]
        table = pa.table({name: [block[name] for block in chosen] for name in chosen[0]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=32)
        urls.append(f"file://{folder / f'{part}.parquet'}")
    return urls


def events_a_second(folder: Path, urls: list[str], ranks: int, cycle_ms: int) -> float:
    """Of the second epoch of pre-training."""
    settings = TrainingConfig(ranks=ranks, pretrain_epochs=2, finetune_epochs=1, batch_blocks=8).model_dump(
        mode="json"
    )
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
        "reply",
        str(folder),
        {},
    )
    spec.save(folder / "spec.json")
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    launcher = [
        str(Path(sys.executable).with_name("horovodrun")),
        "--gloo",
        "-np",
        str(ranks),
        "-H",
        f"localhost:{ranks}",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HOROVOD_CYCLE_TIME": str(cycle_ms),
    }
    subprocess.run(
        [*launcher, sys.executable, "-m", "lam_spark.training.worker", str(folder / "spec.json")],
        env=environment,
        check=True,
        capture_output=True,
    )
    records = [json.loads(line) for line in (folder / PROGRESS_FILE).read_text().splitlines()]
    ends = [r for r in records if r["event"] == "epoch end" and r["phase"] == "pre-training"]
    return float(ends[-1]["tokens_per_second"])


def main() -> None:
    small = small_asked(__doc__)
    speeds: dict[tuple[int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write(folder, blocks(128 if small else 768))
        for _ in range(1 if small else 3):
            for ranks, cycle in ((1, 5), (2, 1), (2, 5)):
                speeds.setdefault((ranks, cycle), []).append(events_a_second(folder, urls, ranks, cycle))
                print(
                    f"{ranks} ranks, cycle {cycle} ms: {speeds[ranks, cycle][-1]:,.0f} events/s", flush=True
                )
    middle = {key: statistics.median(values) for key, values in speeds.items()}
    figures = {
        "one_rank_events_a_second": middle[1, 5],
        "two_ranks_events_a_second": middle[2, 5],
        "two_ranks": middle[2, 5] / middle[1, 5],
        "cycle_5ms_vs_1ms": middle[2, 5] / middle[2, 1],
    }
    report("ranks", figures, {"two_ranks": (">=", 1.7)})


if __name__ == "__main__":
    main()
