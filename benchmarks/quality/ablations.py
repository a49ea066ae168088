"""What each part of the model is worth: trainings with and without it, measured on the validation period.

    python -m benchmarks.quality.ablations [--smoke] [--folder FOLDER] [--seeds 5] [--data retailer telecom]

The retailer's four targets (Complete Journey) and the upgrades of 10,000 synthetic telecom customers, five seeds each.
Every training pre-trains one epoch and fine-tunes up to two; the measures of the chosen epoch count, compared with the
complete model of the same seeds. The test period is not read. One training a core at a time, one thread each, on a GPU
if torch sees one. This takes hours on two cores; with `--folder` finished trainings are stored, and the same command
resumes. `--smoke`: 1,000 telecom customers, small model, one seed, four variants.

Variants without a part: `order`: events between two queries are shuffled, their times stay; `time`: no elapsed time
and no hour of the week (aggregates and decayed counts still know days); `numbers`: no number in any event; `who`:
queries lack the customer's traits; `bins`: no quantile bins; `aggregates`, `decayed_counts`: constant; `counts`: both
constant, so that heads see the sequence alone; `pre_training`: fine-tuning from the start; `averaging`: the last
step's weights. `contrastive` adds its term. `accumulate...`: four batches a step, learning rate as it is or scaled.
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
from torch import Tensor

from benchmarks.common import (
    EVERYONE_OPTED_IN,
    RETAILER_CONF,
    SMOKE_TRAINING,
    TELECOM_CONF,
    command_line,
    load,
    open_context,
    origin_digest,
    report,
    resumable_folder,
    run_up_to_snapshot,
    stored_secret,
)
from benchmarks.support.retailer_targets import RETAILER_TARGETS
from lam_spark.config import TrainingConfig
from lam_spark.model import transformer
from lam_spark.model.artifact import as_batch
from lam_spark.model.decayed_counts import DecayedCounts
from lam_spark.sequences.tokens import MISSING
from lam_spark.training import trainer, validate, weight_average
from lam_spark.training.preparation import require_snapshot, specification
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training_data.columns import layout_with
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
    """Shuffle event fields between two queries of a window; times stay."""
    window = batch["window"]
    slot = torch.arange(window.shape[1], device=window.device)
    same_window = batch["query_window"][:, :, None] == window[:, None]
    seen = same_window & (batch["query_index"][:, :, None] <= slot)
    # Groups ascend along a block; empty slots come last.
    group = torch.where(window > 0, window.long() * 10_000 + seen.sum(dim=1), 1 << 40)
    permutation = (group.double() + torch.rand(group.shape, device=group.device)).argsort(dim=1)
    shuffled = {name: batch[name].gather(1, permutation) for name in batch if name.startswith("event_")}
    return {**batch, **shuffled}


def without_time(batch: Batch, layout: Layout) -> Batch:
    """Set the hour of the week to 0."""
    names = ("hour_of_week", "query_hour_of_week")
    return {**batch, **{name: torch.zeros_like(batch[name]) for name in names}}


def without_numbers(batch: Batch, layout: Layout) -> Batch:
    """Set every number to missing."""
    names = [n for n in batch if n.startswith(("event_", "query_")) and batch[n].is_floating_point()]
    return {**batch, **{name: torch.full_like(batch[name], torch.nan) for name in names}}


def without_who(batch: Batch, layout: Layout) -> Batch:
    """Set the customer's traits in queries to missing."""
    names = [f"query_{name}" for name in layout.who_fields]
    values = {name: torch.nan if batch[name].is_floating_point() else MISSING for name in names}
    return {**batch, **{name: torch.full_like(batch[name], value) for name, value in values.items()}}


def without_aggregates(batch: Batch, layout: Layout) -> Batch:
    """Set all aggregates to 0."""
    return {**batch, "aggregates": torch.zeros_like(batch["aggregates"])}


def without_bins(spec: TrainingSpec) -> TrainingSpec:
    """No quantile bins of numbers and aggregates."""
    no_edges: tuple[tuple[float, ...], ...] = ((),) * len(spec.numeric_edges)
    size = dataclasses.replace(spec.size, numeric_bins=0)
    return dataclasses.replace(spec, size=size, numeric_edges=no_edges)


_count, _time_features = DecayedCounts.forward, transformer._time_features


def constant_counts(module: DecayedCounts, batch: Batch, visible_BQT: Tensor) -> Tensor:
    """Decayed counts of 0."""
    return torch.zeros_like(_count(module, batch, visible_BQT))


def no_elapsed_time(elapsed: Tensor) -> Tensor:
    """Time features of an elapsed time of 0."""
    return _time_features(elapsed * 0)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a training differs from the complete model.

    Attributes:
        settings: changed training settings.
        batch: changes each batch.
        spec: changes the specification.
        patches: (object, attribute, replacement) while it trains.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch: Callable[[Batch, Layout], Batch] = lambda batch, layout: batch
    spec: Callable[[TrainingSpec], TrainingSpec] = lambda spec: spec
    patches: tuple[tuple[object, str, object], ...] = ()


_CONSTANT_COUNTS = (DecayedCounts, "forward", constant_counts)
VARIANTS: dict[str, Variant] = {
    "complete": Variant(),
    "order": Variant(batch=without_order),
    "time": Variant(batch=without_time, patches=((transformer, "_time_features", no_elapsed_time),)),
    "numbers": Variant(batch=without_numbers),
    "who": Variant(batch=without_who),
    "bins": Variant(spec=without_bins),
    "aggregates": Variant(batch=without_aggregates),
    "decayed_counts": Variant(patches=(_CONSTANT_COUNTS,)),
    "counts": Variant(batch=without_aggregates, patches=(_CONSTANT_COUNTS,)),
    "pre_training": Variant({"pretrain_epochs": 0}),
    # So large a span keeps the weights of the last step.
    "averaging": Variant(patches=((weight_average, "_SPAN", 1 << 40),)),
    "contrastive": Variant({"contrastive_weight": 1.0}),
    "accumulate": Variant({"gradient_accumulation_steps": 4}),
    "accumulate_sqrt": Variant({"gradient_accumulation_steps": 4, "learning_rate_scaling": "sqrt"}),
    "accumulate_linear": Variant({"gradient_accumulation_steps": 4, "learning_rate_scaling": "linear"}),
}
SMOKE_VARIANTS = ("complete", "order", "time", "counts")


class EpochChosen(Exception):  # noqa: N818 - a signal, not an error
    """Ends a training after fine-tuning."""


def measures(spec: TrainingSpec, name: str) -> dict[str, float]:
    """Validation measures of the chosen epoch of a variant, and the seconds until then."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]

    def changed_batch(block: Block, device: torch.device) -> Batch:
        return variant.batch(as_batch(block, device), spec.layout)

    def stop_at_refit(record: dict[str, Any]) -> None:
        if record.get("phase") == "refit":
            raise EpochChosen

    # Training and validation convert their batches in two modules.
    changes = ((trainer, "as_batch", changed_batch), (validate, "as_batch", changed_batch), *variant.patches)
    with contextlib.ExitStack() as patches:
        for target, attribute, replacement in changes:
            patches.enter_context(mock.patch.object(target, attribute, replacement))
        started = time.monotonic()
        loop = trainer.Trainer(variant.spec(spec), LocalGroup(), stop_at_refit)
        with contextlib.suppress(EpochChosen):
            loop.fit()
    return loop.state.validation | {"seconds": time.monotonic() - started}


def prepare_spec(conf: Path, root: Path, *settings: str) -> TrainingSpec:
    """Training specification of a workspace; runs the stages up to the snapshot if they have not run."""
    path = root / "spec.json"
    if path.exists():
        return TrainingSpec.load(path)
    run_up_to_snapshot(conf, root, *settings)
    ctx = open_context(load(conf, root, *settings))
    snapshot = require_snapshot(ctx.tables, ctx.cache, ctx.config, ctx.started_at)
    spec = specification(
        ctx.tables,
        ctx.cache,
        ctx.config,
        snapshot,
        folder=root / "training",
        layout=layout_with(ctx.config, snapshot.sizes),
        value_embeddings_digest="",
        run_id=ctx.run_id,
        at=ctx.started_at,
    )
    ctx.spark.stop()
    spec.save(path)
    return spec


def train_variants(
    spec: TrainingSpec, folder: Path, seeds: range, variants: Iterable[str]
) -> dict[str, dict[str, list[float]]]:
    """Variant -> measure -> a value a seed; trainings with a result in the folder are not repeated."""
    results: dict[str, dict[str, list[float]]] = {v: defaultdict(list) for v in variants}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {}
        # Seeds in the outer loop, so that an interrupted run has nearly as many for each variant.
        for seed in seeds:
            for variant in results:
                own = folder / f"{variant}_{seed}"
                settings = TrainingConfig(
                    **spec.settings.model_dump() | SETTINGS | VARIANTS[variant].settings | {"seed": seed}
                )
                changed = dataclasses.replace(spec, settings=settings, folder=str(own))
                if not (own / "measures.json").exists():
                    shutil.rmtree(own, ignore_errors=True)
                    own.mkdir(parents=True)
                    jobs[pool.submit(measures, changed, variant)] = own
        for done, job in enumerate(as_completed(jobs), 1):
            if job.exception():
                # Do not wait for the jobs that have not started.
                pool.shutdown(cancel_futures=True)
            own, values = jobs[job], job.result()
            (own / "measures.json").write_text(json.dumps(values), encoding="utf-8")
            print(f"  {done} of {len(jobs)}, {own.name}: {values}", flush=True)
    for variant in results:
        for seed in seeds:
            path = folder / f"{variant}_{seed}" / "measures.json"
            for name, value in json.loads(path.read_text(encoding="utf-8")).items():
                results[variant][name].append(value)
    return results


def losses_by_variant(results: dict[str, dict[str, list[float]]], prefix: str) -> dict[str, float]:
    """The complete model's measures, and how much each loses by a variant (negative: the variant is better)."""
    figures: dict[str, float] = {}
    complete = results["complete"]
    for name in (n for n in complete if n.endswith(("AUC", "error"))):
        key = f"{prefix}_{name.removeprefix('validation ').replace(' ', '_')}"
        figures[key] = statistics.fmean(complete[name])
        if len(complete[name]) > 1:
            figures[f"{key}_spread"] = statistics.stdev(complete[name])
        sign = -1 if name.endswith("error") else 1
        for variant in results:
            if variant != "complete":
                lost = sign * (figures[key] - statistics.fmean(results[variant][name]))
                figures[f"{key}_lost_by_{variant}"] = lost
    figures[f"{prefix}_seconds"] = statistics.median(complete["seconds"])
    return figures


DATA: dict[str, tuple[Path, tuple[str, ...]]] = {
    "retailer": (RETAILER_CONF, (EVERYONE_OPTED_IN, *RETAILER_TARGETS)),
    "telecom": (TELECOM_CONF, ("fetch.arguments.customers=10000",)),
}
SMOKE_SETTINGS = ("fetch.arguments.customers=1000", *SMOKE_TRAINING)


def main() -> None:
    parser = command_line(__doc__, with_folder=True)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    arguments = parser.parse_args()
    smoke = arguments.smoke
    seeds = range(1 if smoke else arguments.seeds)
    figures: dict[str, float] = {"seeds": len(seeds)}
    with resumable_folder(arguments.folder, "ablations-", origin_digest(smoke)) as folder:
        os.environ["LAM_SPARK_SECRET"] = stored_secret(folder)
        for name in ["telecom"] if smoke else arguments.data:
            conf, settings = DATA[name]
            root = folder / name
            spec = prepare_spec(conf, root, *settings, *(SMOKE_SETTINGS if smoke else ()))
            # Batch accumulation is measured on the retailer's data only.
            variants = [v for v in VARIANTS if name == "retailer" or not v.startswith("accumulate")]
            results = train_variants(spec, root / "ablations", seeds, SMOKE_VARIANTS if smoke else variants)
            figures |= losses_by_variant(results, name)
    report("ablations", figures, {})


if __name__ == "__main__":
    main()
