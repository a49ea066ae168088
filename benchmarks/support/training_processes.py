"""Whole trainings on synthetic blocks, started by the launchers: speed of two ranks, memory of one rank."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from benchmarks.support.blocks import DAYS, make_blocks, write_blocks
from lam_spark.config import TrainingConfig
from lam_spark.model.transformer import ModelSize
from lam_spark.training.launch.launchers import launch
from lam_spark.training.spec import SPEC_FILE, TrainingSpec
from lam_spark.training_data.layout import MICROS_PER_DAY, Layout, Target

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
SIZE = ModelSize(64, 2, 4, 0.1)
MICRO_BATCH_SIZE = 8
LARGE_MICRO_BATCH_SIZE = 32
# Enough for the fine-tuning, which is not measured, to run.
QUERIED_BLOCKS = 16
# Much to read and little to compute, so that retained row groups would show in the memory.
WIDE = Layout(
    categorical=("action", "item", "place"),
    sizes=(64, 300, 60),
    numeric=("amount", "quantity"),
    count_by="action",
    counted_ids=tuple(range(3, 63)),
    window_days=(7, 28, 91, 365),
    block_events=64,
    queries_per_block=16,
    targets=(Target("reply"),),
)
HOROVOD: dict[str, Any] = {"launcher": "horovod", "world_size": 2}
ONE_PROCESS: dict[str, Any] = {"launcher": "in_process", "world_size": 1}
# Variant -> training settings, environment. One rank is a process without Horovod.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "one_rank": (ONE_PROCESS, {}),
    "two_ranks": (HOROVOD, {}),
    "two_ranks_cycle_1ms": (HOROVOD, {"HOROVOD_CYCLE_TIME": "1"}),
    "two_ranks_torch": ({"launcher": "torch", "world_size": 2}, {}),
    "two_ranks_fp16": (HOROVOD | {"fp16_gradient_compression": True}, {}),
    "two_ranks_accumulate_4": (HOROVOD | {"gradient_accumulation_steps": 4}, {}),
    "one_rank_large_steps": (ONE_PROCESS | {"micro_batch_size": LARGE_MICRO_BATCH_SIZE}, {}),
    "two_ranks_large_steps": (HOROVOD | {"micro_batch_size": LARGE_MICRO_BATCH_SIZE}, {}),
}


def make_spec(
    layout: Layout, folder: Path, urls: Sequence[str], queried_urls: Sequence[str], **settings: Any
) -> TrainingSpec:
    """Training of the small model; the validation period is the second half of the days."""
    folder.mkdir(parents=True, exist_ok=True)
    return TrainingSpec(
        layout=layout,
        size=SIZE,
        settings=TrainingConfig(**{"finetune_epochs": 1, "micro_batch_size": MICRO_BATCH_SIZE} | settings),
        all_urls=tuple(urls),
        queried_urls=tuple(queried_urls),
        validation_start=150 * MICROS_PER_DAY,
        test_start=(DAYS + 1) * MICROS_PER_DAY,
        numeric_mean=(2.0,) * len(layout.numeric),
        numeric_std=(1.0,) * len(layout.numeric),
        numeric_edges=((0.0, 1.0, 2.0, 3.0, 4.0),) * len(layout.numeric),
        target="reply",
        target_weights=(1.0,),
        folder=str(folder),
        facts={},
    )


def pretrain(spec: TrainingSpec) -> tuple[float, float]:
    """Run the training.

    Returns:
        Events a second of all ranks in the last epoch of pre-training, and the validation loss after it.
    """
    records: list[dict[str, Any]] = []
    spec.save(Path(spec.folder) / SPEC_FILE)
    launch(spec, records.append)
    last = {r["event"]: r for r in records if r.get("phase") == "pre-training"}
    return float(last["epoch end"]["tokens_per_second"]), float(last["epoch"]["validation loss"])


def two_ranks(folder: Path, count: int, turns: int) -> dict[str, float]:
    """Speed of every variant; the variants take turns, so that a slow minute affects all of them."""
    blocks = make_blocks(LAYOUT, count)
    urls = write_blocks(folder / "all", blocks)
    queried = write_blocks(folder / "queried", blocks[:QUERIED_BLOCKS])
    speeds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    losses: dict[str, float] = {}
    independent: list[float] = []
    for turn in range(turns):
        for variant, (settings, environment) in VARIANTS.items():
            spec = make_spec(
                LAYOUT, folder / f"{variant}_{turn}", urls, queried, pretrain_epochs=2, **settings
            )
            with mock.patch.dict(os.environ, environment):
                speed, losses[variant] = pretrain(spec)
            speeds[variant].append(speed)
            print(f"{variant}: {speed:,.0f} events/s, validation loss {losses[variant]:.4f}", flush=True)
        pair = [
            make_spec(
                LAYOUT, folder / f"independent_{turn}_{n}", urls, queried, pretrain_epochs=2, **ONE_PROCESS
            )
            for n in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            independent.append(sum(speed for speed, _ in pool.map(pretrain, pair)))
        print(f"two independent processes: {independent[-1]:,.0f} events/s", flush=True)
    median = {variant: statistics.median(values) for variant, values in speeds.items()}
    return {
        "one_rank_events_per_second": median["one_rank"],
        "two_ranks_events_per_second": median["two_ranks"],
        "two_ranks": median["two_ranks"] / median["one_rank"],
        "two_ranks_torch": median["two_ranks_torch"] / median["one_rank"],
        "two_ranks_large_steps": median["two_ranks_large_steps"] / median["one_rank_large_steps"],
        "two_independent": statistics.median(independent) / median["one_rank"],
        "two_ranks_vs_independent": median["two_ranks"] / statistics.median(independent),
        "cycle_5ms_vs_1ms": median["two_ranks"] / median["two_ranks_cycle_1ms"],
        "fp16_vs_float32": median["two_ranks_fp16"] / median["two_ranks"],
        "fp16_loss_difference": losses["two_ranks_fp16"] - losses["two_ranks"],
        "accumulate_4_vs_1": median["two_ranks_accumulate_4"] / median["two_ranks"],
    }


def peak_gib(spec: TrainingSpec) -> float:
    """Peak resident memory (GiB) of a training's only rank, from the first import to the last step."""
    peak, finished = [0.0], threading.Event()

    def watch() -> None:
        while not finished.wait(0.1):
            peak.extend(_high_water_gib(child.pid) for child in psutil.Process().children(recursive=True))

    watcher = threading.Thread(target=watch, name="watch-memory", daemon=True)
    watcher.start()
    try:
        pretrain(spec)
    finally:
        finished.set()
        watcher.join()
    return max(peak)


def _high_water_gib(pid: int) -> float:
    """The kernel's high-water mark of a process; it includes peaks between two samples."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # the process has just ended
        return 0.0
    return max((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM:")), default=0.0)


def rank_memory(folder: Path, count: int) -> dict[str, float]:
    """Peak of one rank over `count` blocks and over four times as many, a quarter of them with queries."""
    blocks, peaks = make_blocks(WIDE, 512), []
    for times in (count // len(blocks), 4 * count // len(blocks)):
        own = folder / f"{times}"
        urls = write_blocks(own / "blocks", blocks, times)
        queried = write_blocks(own / "queried", blocks[:128], times)
        size = times * sum(column.nbytes for block in blocks for column in block.values()) / 2**20
        spec = make_spec(WIDE, own, urls, queried, pretrain_epochs=1, **ONE_PROCESS)
        peaks.append(peak_gib(spec))
        print(
            f"{times * len(blocks):,} blocks ({size:,.0f} MiB): peak of a rank {peaks[-1]:.3f} GiB",
            flush=True,
        )
    return {"rank_peak_gib": peaks[0], "rank_peak_at_4x": peaks[1] / peaks[0]}
