"""Whole trainings of made-up blocks, started as `lam-spark train` starts them: speed of ranks, memory of a rank."""

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
from blocks import DAYS, blocks, write

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
BATCH_BLOCKS = 8
LARGE_STEPS = 32
# Enough for the answers' training, which is not looked at here, to go through.
QUERIED_BLOCKS = 16
# Much to read and little to compute: aggregates by the hundred. Who held on to what was read would be seen.
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
# Settings of the training, environment. One rank is a process without Horovod: what a second one is worth to its user.
HOROVOD: dict[str, Any] = {"launcher": "horovod", "world_size": 2}
WAYS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "one_rank": ({"launcher": "in_process", "world_size": 1}, {}),
    "two_ranks": (HOROVOD, {}),
    "two_ranks_cycle_1ms": (HOROVOD, {"HOROVOD_CYCLE_TIME": "1"}),
    "two_ranks_torch": ({"launcher": "torch", "world_size": 2}, {}),
    "two_ranks_fp16": (HOROVOD | {"fp16_gradient_compression": True}, {}),
    "two_ranks_accumulate_4": (HOROVOD | {"gradient_accumulation_steps": 4}, {}),
    "one_rank_large_steps": (
        {"launcher": "in_process", "world_size": 1, "micro_batch_size": LARGE_STEPS},
        {},
    ),
    "two_ranks_large_steps": (HOROVOD | {"micro_batch_size": LARGE_STEPS}, {}),
}


def spec_of(
    layout: Layout, folder: Path, urls: Sequence[str], queried_urls: Sequence[str], **settings: Any
) -> TrainingSpec:
    """A training of the small model; half of the days are for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = TrainingConfig(**{"finetune_epochs": 1, "micro_batch_size": BATCH_BLOCKS} | settings)
    return TrainingSpec(
        layout,
        SIZE,
        chosen,
        tuple(urls),
        tuple(queried_urls),
        150 * MICROS_PER_DAY,
        (DAYS + 1) * MICROS_PER_DAY,
        (2.0,) * len(layout.numeric),
        (1.0,) * len(layout.numeric),
        ((0.0, 1.0, 2.0, 3.0, 4.0),) * len(layout.numeric),
        "reply",
        (1.0,),
        str(folder),
        {},
    )


def pre_trained(spec: TrainingSpec) -> tuple[float, float]:
    """Events a second of the last epoch of pre-training, all ranks together, and the validation loss after it."""
    told: list[dict[str, Any]] = []
    spec.save(Path(spec.folder) / SPEC_FILE)
    launch(spec, told.append)
    last = {r["event"]: r for r in told if r.get("phase") == "pre-training"}
    return float(last["epoch end"]["tokens_per_second"]), float(last["epoch"]["validation loss"])


def two_ranks(folder: Path, count: int, turns: int) -> dict[str, float]:
    """Every way in turn, so that a slow minute hits all of them."""
    made = blocks(LAYOUT, count)
    urls, queried = write(folder / "all", made), write(folder / "queried", made[:QUERIED_BLOCKS])
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, float] = {}
    apart: list[float] = []
    for turn in range(turns):
        for way, (settings, environment) in WAYS.items():
            spec = spec_of(LAYOUT, folder / f"{way}_{turn}", urls, queried, pretrain_epochs=2, **settings)
            with mock.patch.dict(os.environ, environment):
                speed, losses[way] = pre_trained(spec)
            speeds[way].append(speed)
            print(f"{way}: {speed:,.0f} events/s, validation loss {losses[way]:.4f}", flush=True)
        alone = WAYS["one_rank"][0]
        pair = [
            spec_of(LAYOUT, folder / f"apart_{turn}_{number}", urls, queried, pretrain_epochs=2, **alone)
            for number in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            apart.append(sum(speed for speed, _ in pool.map(pre_trained, pair)))
        print(f"two processes that share nothing: {apart[-1]:,.0f} events/s", flush=True)
    median = {way: statistics.median(values) for way, values in speeds.items()}
    return {
        "one_rank_events_a_second": median["one_rank"],
        "two_ranks_events_a_second": median["two_ranks"],
        "two_ranks": median["two_ranks"] / median["one_rank"],
        "two_ranks_torch": median["two_ranks_torch"] / median["one_rank"],
        "two_ranks_large_steps": median["two_ranks_large_steps"] / median["one_rank_large_steps"],
        "two_apart": statistics.median(apart) / median["one_rank"],
        "two_ranks_vs_apart": median["two_ranks"] / statistics.median(apart),
        "cycle_5ms_vs_1ms": median["two_ranks"] / median["two_ranks_cycle_1ms"],
        "fp16_vs_float32": median["two_ranks_fp16"] / median["two_ranks"],
        "fp16_loss_difference": losses["two_ranks_fp16"] - losses["two_ranks"],
        "accumulate_4_vs_1": median["two_ranks_accumulate_4"] / median["two_ranks"],
    }


def peak_gib(spec: TrainingSpec) -> float:
    """Highest resident memory of a training's one rank, from the first import to the last step."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak.extend(_high_water_gib(child.pid) for child in psutil.Process().children(recursive=True))

    watcher = threading.Thread(target=watch, name="watch-memory", daemon=True)
    watcher.start()
    try:
        pre_trained(spec)
    finally:
        over.set()
        watcher.join()
    return max(peak)


def _high_water_gib(pid: int) -> float:
    """The kernel's own mark: a look that comes late sees what was before it too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0
    return max((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM:")), default=0.0)


def rank_memory(folder: Path, count: int) -> dict[str, float]:
    """Peak of one rank over `count` blocks and over four times as many, a quarter of them with questions.

    The answers are trained and judged too: who held on to what was asked would be seen as well.
    """
    made, peaks = blocks(WIDE, 512), []
    for times in (count // len(made), 4 * count // len(made)):
        place = folder / f"{times}"
        urls = write(place / "blocks", made, times)
        queried = write(place / "queried", made[:128], times)  # of 64 events: few hold a question
        held = times * sum(column.nbytes for block in made for column in block.values()) / 2**20
        spec = spec_of(WIDE, place, urls, queried, launcher="in_process", world_size=1, pretrain_epochs=1)
        peaks.append(peak_gib(spec))
        print(
            f"{times * len(made):,} blocks ({held:,.0f} MiB if one held them): a rank's peak {peaks[-1]:.3f} GiB",
            flush=True,
        )
    return {"rank_peak_gib": peaks[0], "rank_peak_at_4x": peaks[1] / peaks[0]}
