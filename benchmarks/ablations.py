"""What each part of the model is worth: trainings with and without it, judged on the validation period.

    python benchmarks/ablations.py [--small] [--folder FOLDER] [--seeds 5] [--worlds retailer telecom]

On the retailer's four questions (Complete Journey) and on the telecom world's upgrades (10,000 customers), five seeds
(--small: one seed, 1,000 customers). Each training pre-trains one epoch and fine-tunes up to two; the chosen epoch's
measures count. The test period is not looked at. As many trainings at a time as there are cores, a thread each, on a
GPU if torch sees one. On two cores it takes hours: with --folder what is finished stays there, and the same command
goes on from it.

Without a part means: `order`: events between two questions change places at random, their times stay; `time`: no
elapsed time and no hour of the week (aggregates and decayed_counts still know days); `numbers`: no number in any
event; `who`: no query says who asks (the event that said it is seen while it is among the last); `bins`: neither
numbers nor aggregates by their quantile bins; `aggregates`: the same for all; `decayed_counts`: the same for all;
`counts`: both, the answers see the sequence alone; `pre_training`: fine-tuning from the start; `averaging`: the last
step's weights. `contrastive` is the other way round: what comes of adding it. `gradient_accumulation_steps...` are
four batches a step, with the learning rate as it is or scaled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import REPOSITORY, command_line, fill, kept_folder, kept_secret, open_run, origin_digest, report
from coupon import EVERYONE
from quality import TARGETS
from torch import Tensor

from lam_spark.model import transformer
from lam_spark.model.artifact import as_batch
from lam_spark.model.decayed_counts import DecayedCounts
from lam_spark.sequences.tokens import MISSING
from lam_spark.training import trainer, validate, weight_average
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.stage import specification
from lam_spark.training_data.columns import layout_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block

Batch = dict[str, Tensor]
SETTINGS: dict[str, Any] = {
    "launcher": "in_process",
    "world_size": 1,
    "threads_per_rank": 1,
    "pretrain_epochs": 1,
    "finetune_epochs": 2,
}


def without_order(batch: Batch, layout: Layout) -> Batch:
    """What happened changes places between two questions of a window; when something happened stays."""
    window = batch["window"]
    slot = torch.arange(window.shape[1], device=window.device)
    asked = (batch["query_window"][:, :, None] == window[:, None]) & (
        batch["query_index"][:, :, None] <= slot
    )
    # Ascending along a block, the empty slots at its end last.
    group = torch.where(window > 0, window.long() * 10_000 + asked.sum(dim=1), 1 << 40)
    places = (group.double() + torch.rand(group.shape, device=group.device)).argsort(dim=1)
    moved = {
        name: batch[name].gather(1, places)
        for name in batch
        if name.startswith("event_") and name != "event_time"
    }
    return {**batch, **moved}


def without_time(batch: Batch, layout: Layout) -> Batch:
    """No hour of the week."""
    names = ("hour_of_week", "query_hour_of_week")
    return {**batch, **{name: torch.zeros_like(batch[name]) for name in names}}


def without_numbers(batch: Batch, layout: Layout) -> Batch:
    """Every number is missing."""
    names = [n for n in batch if n.startswith(("event_", "query_")) and batch[n].is_floating_point()]
    return {**batch, **{name: torch.full_like(batch[name], torch.nan) for name in names}}


def without_who(batch: Batch, layout: Layout) -> Batch:
    """No query says who asks."""
    asked = [f"query_{name}" for name in layout.who_fields]
    nothing = {name: torch.nan if batch[name].is_floating_point() else MISSING for name in asked}
    return {**batch, **{name: torch.full_like(batch[name], value) for name, value in nothing.items()}}


def without_aggregates(batch: Batch, layout: Layout) -> Batch:
    """The same aggregates for all."""
    return {**batch, "aggregates": torch.zeros_like(batch["aggregates"])}


def without_bins(spec: TrainingSpec) -> TrainingSpec:
    """Neither numbers nor aggregates by their bins."""
    nothing: tuple[tuple[float, ...], ...] = ((),) * len(spec.numeric_edges)
    size = dataclasses.replace(spec.size, numeric_bins=0)
    return dataclasses.replace(spec, size=size, numeric_edges=nothing)


def no_habits(decayed_counts: DecayedCounts, batch: Batch, visible_BQT: Tensor) -> Tensor:
    """The same decayed_counts for all."""
    return torch.zeros_like(_counted(decayed_counts, batch, visible_BQT))


def no_elapsed_time(elapsed: Tensor) -> Tensor:
    """As if no time passed."""
    return _time_features(elapsed * 0)


_counted, _time_features = DecayedCounts.forward, transformer._time_features


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a training differs from the whole.

    Attributes:
        settings: that it changes.
        batch: what the model is given instead.
        spec: the specification.
        patches: what stands in for parts of the program while it trains: whose, the name, the other.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch: Callable[[Batch, Layout], Batch] = lambda batch, layout: batch
    spec: Callable[[TrainingSpec], TrainingSpec] = lambda spec: spec
    patches: tuple[tuple[object, str, object], ...] = ()


_NO_HABITS = (DecayedCounts, "forward", no_habits)
VARIANTS: dict[str, Variant] = {
    "whole": Variant(),
    "order": Variant(batch=without_order),
    "time": Variant(batch=without_time, patches=((transformer, "_time_features", no_elapsed_time),)),
    "numbers": Variant(batch=without_numbers),
    "who": Variant(batch=without_who),
    "bins": Variant(spec=without_bins),
    "aggregates": Variant(batch=without_aggregates),
    "decayed_counts": Variant(patches=(_NO_HABITS,)),
    "counts": Variant(batch=without_aggregates, patches=(_NO_HABITS,)),
    "pre_training": Variant({"pretrain_epochs": 0}),
    "averaging": Variant(patches=((weight_average, "_SPAN", 1 << 40),)),
    "contrastive": Variant({"contrastive_weight": 1.0}),
    "gradient_accumulation_steps": Variant({"gradient_accumulation_steps": 4}),
    "accumulate_sqrt": Variant({"gradient_accumulation_steps": 4, "learning_rate_scaling": "sqrt"}),
    "accumulate_linear": Variant({"gradient_accumulation_steps": 4, "learning_rate_scaling": "linear"}),
}


class JudgedError(Exception):
    """The epoch is chosen: what comes after it is not looked at."""


def measures(spec: TrainingSpec, name: str) -> dict[str, float]:
    """The chosen epoch's measures on the validation period, and the seconds until then."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]

    def changed(block: Block, device: torch.device) -> Batch:
        return variant.batch(as_batch(block, device), spec.layout)

    def stop_at_refit(record: dict[str, Any]) -> None:
        if record.get("phase") == "refit":
            raise JudgedError

    with contextlib.ExitStack() as patched:
        batches = ((trainer, "as_batch", changed), (validate, "as_batch", changed))
        for whose, attribute, other in (*batches, *variant.patches):
            patched.enter_context(mock.patch.object(whose, attribute, other))
        started = time.monotonic()
        loop = trainer.Trainer(variant.spec(spec), LocalGroup(), stop_at_refit)
        with contextlib.suppress(JudgedError):
            loop.fit()
    metrics = {f"validation {name}": value for name, value in loop.state.validation.items()}
    return metrics | {"seconds": time.monotonic() - started}


def prepared(conf: Path, root: Path, *settings: str) -> TrainingSpec:
    """Run the stages up to the snapshot, unless they have run; how its training is specified."""
    kept = root / "spec.json"
    if kept.exists():
        return TrainingSpec.load(kept)
    fill(conf, root, *settings)
    run = open_run(conf, root, *settings)
    layout = layout_of(run.config, run.tables.read("vocabulary"))
    spec: TrainingSpec = specification(run, root / "training", layout, "")
    run.spark.stop()
    spec.save(kept)
    return spec


def all_variants(
    spec: TrainingSpec, folder: Path, seeds: range, variants: Iterable[str]
) -> dict[str, dict[str, list[float]]]:
    """Variant -> measure -> a value a seed; trainings that the folder tells of are not run again."""
    found: dict[str, dict[str, list[float]]] = {v: defaultdict(list) for v in variants}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {}
        # The seeds outside: stopped early, each variant has had nearly as many.
        for seed in seeds:
            for variant in found:
                place = folder / f"{variant}_{seed}"
                settings = spec.settings.model_copy(
                    update=SETTINGS | VARIANTS[variant].settings | {"seed": seed}
                )
                own = dataclasses.replace(spec, settings=settings, folder=str(place))
                if not (place / "measures.json").exists():
                    shutil.rmtree(place, ignore_errors=True)
                    place.mkdir(parents=True)
                    jobs[pool.submit(measures, own, variant)] = place
        for done, job in enumerate(as_completed(jobs), 1):
            if job.exception():
                # Else the others are waited for, and what they say is lost.
                pool.shutdown(cancel_futures=True)
            place, told = jobs[job], job.result()
            (place / "measures.json").write_text(json.dumps(told), encoding="utf-8")
            print(f"  {done} of {len(jobs)}, {place.name}: {told}", flush=True)
    for variant in found:
        for seed in seeds:
            kept = folder / f"{variant}_{seed}" / "measures.json"
            for name, value in json.loads(kept.read_text(encoding="utf-8")).items():
                found[variant][name].append(value)
    return found


def worth(found: dict[str, dict[str, list[float]]], prefix: str) -> dict[str, float]:
    """Figures: the whole model's measures, and how much worse each is without a part (or with the addition)."""
    figures: dict[str, float] = {}
    whole = found["whole"]
    names = [n for n in whole if n.endswith(("AUC", "error"))]
    for name in names:
        key = f"{prefix}_{name.removeprefix('validation ').replace(' ', '_')}"
        figures[key] = statistics.fmean(whole[name])
        if len(whole[name]) > 1:
            figures[f"{key}_spread"] = statistics.stdev(whole[name])
        sign = -1 if name.endswith("error") else 1
        for variant in found:
            if variant != "whole":
                lost = sign * (figures[key] - statistics.fmean(found[variant][name]))
                figures[f"{key}_lost_by_{variant}"] = lost
    figures[f"{prefix}_seconds"] = statistics.median(whole["seconds"])
    return figures


WORLDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "retailer": ("conf/complete_journey.yaml", (EVERYONE, *TARGETS)),
    "telecom": ("conf/telecom.yaml", ("fetch.arguments.customers=10000",)),
}
SMALL = "fetch.arguments.customers=1000"


def main() -> None:
    parser = command_line(__doc__, keeps_folder=True)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    asked = parser.parse_args()
    seeds = range(1 if asked.small else asked.seeds)
    figures: dict[str, float] = {"seeds": len(seeds)}
    with kept_folder(asked.folder, "ablations-", origin_digest(asked.small)) as folder:
        os.environ["LAM_SPARK_SECRET"] = kept_secret(folder)
        for name in asked.worlds:
            conf, settings = WORLDS[name]
            if asked.small and name == "telecom":
                settings = (*settings, SMALL)
            root = folder / name
            spec = prepared(REPOSITORY / conf, root, *settings)
            # How batches are put together is a matter of one world.
            variants = [
                v for v in VARIANTS if name == "retailer" or not v.startswith("gradient_accumulation_steps")
            ]
            figures |= worth(all_variants(spec, root / "ablations", seeds, variants), name)
    report("ablations", figures, {})


if __name__ == "__main__":
    main()
