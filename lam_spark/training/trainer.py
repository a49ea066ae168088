"""The training of one model: pre-train, fine-tune with validation choosing, calibrate, refit. No Spark.

1. Pre-training: next moments before the validation period.
2. Fine-tuning: labelled queries of the training period, all targets at once, next moments kept as a side task;
   after each epoch the validation period judges the average of the last steps' weights; the best epoch is chosen by
   the targets' losses.
3. Calibration on the chosen epoch's validation logits.
4. Refit: from the pre-trained weights, as many epochs as were chosen, on everything that matured before the
   test period; the average is kept. The test period is never read here: the snapshot does not hold it.

A checkpoint every `training.checkpoint_minutes` says where this stands; the same training started again goes
on from the last one, to the same weights.

Memory of a rank: the model, its optimiser, one row group and a histogram of logits a target (of `next`, one a value),
whatever the size of the data.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lam_spark.errors import ModelError
from lam_spark.model.artifact import Calibration, as_batch, save_artifact
from lam_spark.model.transformer import LargeActionModel, Normaliser
from lam_spark.training.checkpoint import (
    Checkpoint,
    Weights,
    last_checkpoint,
    load_optimiser,
    optimiser_tensors,
    read_checkpoint,
    write_checkpoint,
)
from lam_spark.training.contrastive import contrastive_loss, count_anchors, cut_histories
from lam_spark.training.cost import block_flops, forward_flops
from lam_spark.training.losses import Period, in_splits, labelled_predictions, loss_counts, loss_of, losses
from lam_spark.training.normalisation import query_statistics
from lam_spark.training.process_group import ProcessGroup, sum_gradients
from lam_spark.training.progress import Meter, Progress
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training.validation import ValidationMetrics, Validator
from lam_spark.training.value_embeddings import load_vectors
from lam_spark.training.weight_average import WeightAverage
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.loader import (
    BlockFiles,
    block_batches,
    count_blocks,
    files_of_rank,
    places_of,
    some_files,
)
from lam_spark.training_data.packing import Block

CHECKPOINTS = "checkpoints"
PRE_TRAINING = "pre-training"
# Exponents of how many batches make a step.
_SCALING = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
# Microseconds UTC, before any event: before 1970, too.
_BEGINNING = -(2**62)
# What `_Pass.has_targets` looks at.
_TARGET_COLUMNS = ("window", "is_new", "event_time", "query_split")


@dataclass(frozen=True)
class _Pass:
    """One kind of pass over the data."""

    phase: str
    files: BlockFiles
    period: Period
    epochs: int
    learning_rate: float
    with_targets: bool
    next_weight: float

    def has_targets(self, block: Block) -> npt.NDArray[np.bool_]:
        """(blocks,): whether there is anything to learn in it; the others need not be computed."""
        time, period = block["event_time"], self.period
        found = np.zeros(len(time), np.bool_)
        if self.with_targets:
            found |= np.isin(block["query_split"], [SPLIT_IDS[name] for name in period.splits]).any(axis=1)
        if self.next_weight > 0:
            new = (block["window"] > 0) & (block["is_new"] > 0)
            found |= (new & (time >= period.start) & (time < period.end)).any(axis=1)
        return found


class Trainer:
    """The loop of one rank.

    Attributes:
        standing: how far the training is.
    """

    def __init__(self, spec: TrainingSpec, world: ProcessGroup, progress: Progress) -> None:
        self._started = self._saved = time.monotonic()
        self.spec, self.world, self.progress = spec, world, progress
        self.settings = spec.settings
        self.all_files = files_of_rank(spec.all_urls, world.rank, world.size)
        self.queried_files = files_of_rank(spec.queried_urls, world.rank, world.size)
        # Those that judge: of very many, a sample says as much.
        self._validation_all, self._validation_queried = (
            files_of_rank(
                some_files(urls, self.settings["validation_blocks"], world.size), world.rank, world.size
            )
            for urls in (spec.all_urls, spec.queried_urls)
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.settings["seed"])
        asked = query_statistics(self.queried_files, spec.layout, world, spec.size.numeric_bins)
        normaliser = Normaliser(
            spec.numeric_mean, spec.numeric_std, spec.numeric_edges, asked.mean, asked.std, asked.edges
        )
        self.model = LargeActionModel(spec.layout, spec.size, normaliser)
        self.model.initialise_targets(asked.constants)
        self.model.set_value_embeddings(load_vectors(Path(spec.folder), spec.vectors_digest))
        world.share_weights(self.model)
        self.model.to(self.device)
        self.model.activation_checkpointing = self.settings["activation_checkpointing"]
        together = world.size * self.settings["gradient_accumulation_steps"]
        self._scale = together ** _SCALING[self.settings["learning_rate_scaling"]]
        if self.settings["compile"]:
            self.model.compile()
        # Of the targets' losses, in the layout's order.
        self._weights = torch.tensor(spec.target_weights, device=self.device)
        self.standing = TrainingState()
        self._pretrained: Weights = {}
        self._average = WeightAverage(self.model)
        self._optimiser_state: Weights = {}

    def fit(self) -> str:
        """All four steps, from the last checkpoint of this training if there is one.

        Returns:
            The artifact's digest on the first rank, which writes it; nothing on the others.
        """
        self._resume()
        standing = self.standing
        late = Period(self.spec.validation_start, self.spec.test_start, ("validation",))
        pre_training, fine_tuning, refit = self._passes()
        if not standing.phase:
            # A validation period that nothing can be judged by is refused here, not after hours of pre-training.
            self._measure_targets(late)
            standing.enter(pre_training.phase)
            self._validate_next(0, late)
        if standing.phase == pre_training.phase:
            for epoch in self._epochs(pre_training):
                self._validate_next(epoch, late)
            # Beside the model's own copy and not where memory is dear: it is wanted once more, for the refit.
            self._pretrained = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
            }
            standing.enter(fine_tuning.phase)
        if standing.phase == fine_tuning.phase:
            for epoch in self._epochs(fine_tuning):
                with self._average.in_use():
                    self._validate_targets(epoch, late)
                if epoch - standing.chosen >= self.settings["patience"]:
                    break
            self.model.load_state_dict(self._pretrained)
            self._pretrained = {}
            standing.enter(refit.phase)
        for epoch in self._epochs(refit, stop_after=standing.chosen):
            self._report(epoch, {})
        self._average.swap()
        return self._finish()

    def _passes(self) -> tuple[_Pass, _Pass, _Pass]:
        spec, settings = self.spec, self.settings
        early = Period(_BEGINNING, spec.validation_start, ("train",))
        whole = Period(_BEGINNING, spec.test_start, ("train", "straddling", "validation"))
        pre_training = _Pass(
            PRE_TRAINING,
            self.all_files,
            early,
            settings["pretrain_epochs"],
            settings["learning_rate"],
            with_targets=False,
            next_weight=1.0,
        )
        fine_tuning = _Pass(
            "fine-tuning",
            self.queried_files,
            early,
            settings["finetune_epochs"],
            settings["finetune_learning_rate"],
            with_targets=True,
            next_weight=settings["next_event_weight"],
        )
        return pre_training, fine_tuning, dataclasses.replace(fine_tuning, phase="refit", period=whole)

    def _finish(self) -> str:
        """Save the artifact; the checkpoints have done their duty."""
        standing = self._of_all_ranks()
        gpu = self.device.type == "cuda"
        held = standing.seconds * self.world.size * (1 if gpu else self.settings["threads_per_rank"])
        facts = {
            **self.spec.facts,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens": standing.tokens,
            "flops": standing.flops,
            "world_size": self.world.size,
            "seconds": round(standing.seconds, 1),
            "gpu_seconds" if gpu else "core_seconds": round(held, 1),
            "chosen_epoch": standing.chosen,
            "seed": self.settings["seed"],
            **{name.replace(" ", "_"): value for name, value in standing.validation.items()},
        }
        digest = ""
        if self.world.rank == 0:
            facts = json.loads(json.dumps(facts, default=str))
            calibration = {target: Calibration(*values) for target, values in standing.calibration.items()}
            digest = save_artifact(Path(self.spec.folder), self.model, calibration, facts)
            self.progress({"event": "done", "digest": digest, "facts": facts})
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        return digest

    def _epochs(self, work: _Pass, stop_after: int | None = None) -> Iterator[int]:
        """Train from where the training stands; yields the number of each finished epoch, from 1."""
        if not work.epochs:
            return
        standing, step_blocks = (
            self.standing,
            self.settings["micro_batch_size"] * self.settings["gradient_accumulation_steps"],
        )
        blocks = count_blocks(work.files, self.spec.layout, work.has_targets, _TARGET_COLUMNS)
        steps = self.world.largest(math.ceil(blocks / step_blocks))  # one count for all ranks
        if not steps:
            raise ModelError(
                f"{work.phase}: there is nothing to learn from before "
                f"{dt.datetime.fromtimestamp(work.period.end / 1e6, dt.UTC):%Y-%m-%d %H:%M} (UTC), neither a next "
                f"event nor an answered question of {', '.join(work.period.splits)}. Move the dates of split"
            )
        taught = self.model.parameters_with_gradient(
            next_groups=work.next_weight > 0, answers=work.with_targets
        )
        # Gains hold the scale and constants the rate of what is rare: with both nearer to zero no model is simpler.
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in taught if weight.ndim > 1]},
            {"params": [weight for weight in taught if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            groups,
            betas=(0.9, 0.98),
            weight_decay=self.settings["weight_decay"],
            fused=True,  # one kernel for all parameters: of a small model's step a tenth
        )
        load_optimiser(optimiser, self._optimiser_state)
        self._optimiser_state = {}
        flops = block_flops(self.spec.layout, self.spec.size, work.with_targets)
        while standing.epoch <= (work.epochs if stop_after is None else stop_after):
            self.model.train()
            batches = block_batches(
                work.files,
                self.spec.layout,
                step_blocks,
                seed=self.settings["seed"],
                epoch=standing.epoch,
                wanted=work.has_targets,
            )
            meter = Meter(self.world, self.progress, standing, steps)
            # What an earlier process has trained on is read again, but not computed.
            rest = itertools.islice(batches, standing.step, None)
            while standing.step < steps:
                block = next(rest, None)
                done = (standing.epoch - 1) * steps + standing.step
                for group in optimiser.param_groups:
                    group["lr"] = work.learning_rate * self._scale * _schedule(done, steps * work.epochs)
                loss, due = self._step(optimiser, block, work)
                if work.with_targets:
                    self._average.follow(done)
                if block is None:
                    meter.add(loss, 0, 0.0)
                else:
                    meter.add(loss, int((block["window"] > 0).sum()), len(block["window"]) * flops)
                if due:
                    self._save(optimiser)
            meter.finish()
            yield standing.epoch
            standing.begin_epoch(standing.epoch + 1)

    def _step(self, optimiser: torch.optim.Optimizer, block: Block | None, work: _Pass) -> tuple[float, bool]:
        """One step of all ranks; a rank whose files are read through takes part with nothing.

        Returns:
            This rank's part of the loss, and whether a checkpoint is due (the first rank's clock decides).
        """
        standing = self.standing
        # What a step drops out depends on its place alone, so that a resumed training drops out the same.
        torch.manual_seed(
            _seed(self.settings["seed"], self.world.rank, work.phase, standing.epoch, standing.step)
        )
        optimiser.zero_grad(set_to_none=True)
        layout = self.spec.layout
        batches = [] if block is None else [as_batch(part, self.device) for part in self._parts(block)]
        # How much all ranks have to learn is summed while the model computes.
        contrast = self.settings["contrastive_weight"] if work.phase == PRE_TRAINING else 0.0
        if contrast:
            batches = [cut_histories(batch, work.period.end) for batch in batches]
        counts = torch.zeros(3 + len(layout.targets))
        since = time.monotonic() - self._saved
        counts[0] = self.world.rank == 0 and since >= 60 * self.settings["checkpoint_minutes"]
        for batch in batches:
            counts[1] += count_anchors(batch) if contrast else 0.0
            counts[2:] += loss_counts(batch, work.period, layout.targets, work.with_targets)
        summed = functools.cache(self.world.begin_sum(counts))
        value = 0.0
        for batch in batches:
            with self._precision():
                predictions = self.model(batch, work.with_targets)
                part = losses(
                    self.model,
                    batch,
                    predictions,
                    work.period,
                    with_next=work.next_weight > 0,
                    with_targets=work.with_targets,
                )
            # What one slice, moment or answer of each kind weighs among all ranks'.
            shares = 1.0 / summed()[1:].clamp_min(1.0).to(self.device)
            answered = (part.target_sums * shares[2:] * self._weights).sum()
            loss = work.next_weight * part.next_sum * shares[1] + answered
            if contrast:
                loss = loss + contrast * shares[0] * contrastive_loss(batch, predictions)
            value += float(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        due = bool(summed()[0])
        taught = [weight for group in optimiser.param_groups for weight in group["params"]]
        own = sum_gradients(self.world, taught, self.settings["fp16_gradient_compression"])
        norm = get_total_norm([p.grad for p in taught])
        finite = bool(torch.isfinite(norm))
        if not (finite and math.isfinite(value)):
            # All ranks have the same norm; that only a loss is not finite, no other rank knows.
            raise ModelError(self._not_finite(work, block, value, own, together=not finite))
        clip_grads_with_norm_(taught, self.settings["max_grad_norm"], norm)
        optimiser.step()
        return value, due

    def _not_finite(
        self, work: _Pass, block: Block | None, value: float, own: list[torch.Tensor], together: bool
    ) -> str:
        """What stops the training at this step: the ranks whose own loss or gradient is not finite, and their blocks.

        Args:
            work: the pass.
            block: the step's blocks of this rank.
            value: this rank's part of the loss.
            own: this rank's gradients.
            together: all ranks are here, and each says the same of all.
        """
        urls, standing = self.spec.all_urls, self.standing
        norm = float(get_total_norm(own))
        rows = np.zeros((0, 6))
        if block is not None and not (math.isfinite(value) and math.isfinite(norm)):
            places = places_of(work.files, self.spec.layout, block)
            about = (self.world.rank, value, norm)
            rows = np.array([[*about, urls.index(p.url), p.group, p.row] for p in places])
        if together:
            rows = self.world.gather(rows)
        place = f"{work.phase}, epoch {standing.epoch}, step {standing.step + 1}"
        if not len(rows):
            return (
                f"the gradients are finite on each rank in {place}, but their sum is not. Lower "
                "training.learning_rate"
            )
        blamed = []
        for rank in np.unique(rows[:, 0]):
            of_rank = rows[rows[:, 0] == rank]
            loss, norm = of_rank[0, 1:3].tolist()
            blocks = [
                f"{urls[file]} row group {group} row {row}" for file, group, row in of_rank[:, 3:].astype(int)
            ]
            blamed.append(f"rank {rank:.0f} (loss {loss}, gradient norm {norm}), {', '.join(blocks)}")
        return (
            f"the loss is not finite in {place}, {'; '.join(blamed)} (counted from 0). "
            "Lower training.learning_rate, or look for extreme numbers in the events of these blocks"
        )

    def _parts(self, block: Block) -> list[Block]:
        """A step's blocks, as many at once as the model computes."""
        held, most = len(block["window"]), self.settings["micro_batch_size"]
        return [
            {name: values[first : first + most] for name, values in block.items()}
            for first in range(0, held, most)
        ]

    @property
    def _checkpoints(self) -> Path:
        return Path(self.spec.folder) / CHECKPOINTS

    def _save(self, optimiser: torch.optim.Optimizer) -> None:
        """Write a checkpoint. All ranks come here, the first one writes; one that cannot is told of, and goes on."""
        standing = self._of_all_ranks()
        self._saved = time.monotonic()
        if self.world.rank != 0:
            return
        groups = {
            "model": self.model.state_dict(),
            "pretrained": self._pretrained,
            "average": self._average.weights,
            "optimiser": optimiser_tensors(optimiser),
        }
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, values in groups.items()
            for name, tensor in values.items()
        }
        state = {"fingerprint": self.spec.fingerprint(), "standing": standing.to_json()}
        try:
            write_checkpoint(self._checkpoints, Checkpoint(state, tensors))
        except OSError as error:
            self.progress({"event": "checkpoint failed", "phase": standing.phase, "error": str(error)})

    def _of_all_ranks(self) -> TrainingState:
        """Where the training stands, with what all ranks and earlier processes have spent on it."""
        own = [self.standing.tokens, self.standing.flops, self.standing.losses]
        tokens, flops, losses = self.world.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        seconds = self.standing.seconds + time.monotonic() - self._started
        return dataclasses.replace(
            self.standing, tokens=int(tokens), flops=flops, losses=losses, seconds=seconds
        )

    def _resume(self) -> None:
        """Go back to where the last whole checkpoint stands; the first rank looks for it, each reads it."""
        last: Path | None = None
        if self.world.rank == 0:
            last, damaged = last_checkpoint(self._checkpoints, self.spec.fingerprint())
            for name in damaged:
                self.progress({"event": "checkpoint damaged", "file": name})
        last = self.world.share(last)
        if last is None:
            return
        found = read_checkpoint(last)
        groups: dict[str, Weights] = {"model": {}, "pretrained": {}, "average": {}, "optimiser": {}}
        for key, tensor in found.tensors.items():
            group, _, name = key.partition(".")
            groups[group][name] = tensor
        self.model.load_state_dict(groups["model"])
        self._pretrained, self._optimiser_state = groups["pretrained"], groups["optimiser"]
        self._average.weights = {name: tensor.to(self.device) for name, tensor in groups["average"].items()}
        self.standing = TrainingState.from_json(found.state["standing"])
        if self.world.rank == 0:
            place = {name: getattr(self.standing, name) for name in ("phase", "epoch", "step", "seconds")}
            self.progress({"event": "resumed", **place})
        else:
            # The first rank's are the sums over all.
            self.standing.tokens, self.standing.flops, self.standing.losses = 0, 0.0, 0.0

    @torch.no_grad()
    def _validate_next(self, epoch: int, period: Period) -> None:
        """Next-moment loss on the validation period, over all ranks; not told where nothing follows anything in it."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        flops = forward_flops(self.spec.layout, self.spec.size, with_targets=False)
        for block in block_batches(
            self._validation_all,
            self.spec.layout,
            self.settings["micro_batch_size"],
            seed=None,
            wanted=lambda block: block["event_time"].max(axis=1) >= period.start,
        ):
            batch = as_batch(block, self.device)
            self.standing.flops += len(block["window"]) * flops
            with self._precision():
                part = loss_of(self.model, batch, period, with_next=True, with_targets=False)
            sums += torch.stack([part.next_sum, part.next_count]).double().cpu()
        loss, moments = self.world.sum(sums).tolist()
        self._report(epoch, {"validation loss": loss / moments} if moments else {})

    def _validate_targets(self, epoch: int, period: Period) -> None:
        """Validator the answers in the validation period; the epoch is chosen if it is the best so far."""
        verdicts = self._measure_targets(period)
        for target, verdict in verdicts.items():
            if not math.isfinite(verdict.loss):
                raise ModelError(
                    f"the validation loss of {target!r} is not finite after fine-tuning epoch {epoch}: nothing can be "
                    "chosen. Look for extreme numbers in the events of the validation period, files "
                    f"{self.queried_files.urls}"
                )
        judged: dict[str, float] = {}
        for target, verdict in verdicts.items():
            # The scored target's go by the plain names.
            of = "" if target == self.spec.target else f"{target} "
            judged[f"validation {of}loss"] = verdict.loss
            judged |= {f"validation {of}{name}": value for name, value in verdict.measures.items()}
        self._report(epoch, judged)
        standing = self.standing
        excess = sum(
            float(weight) * verdict.excess
            for weight, verdict in zip(self._weights.tolist(), verdicts.values(), strict=True)
        )
        if excess < standing.best:
            standing.chosen, standing.best, standing.validation = epoch, excess, judged
            standing.calibration = {
                target: (verdict.calibration.slope, verdict.calibration.intercept)
                for target, verdict in verdicts.items()
            }

    @torch.no_grad()
    def _measure_targets(self, period: Period) -> dict[str, ValidationMetrics]:
        """Of each target's queries in the period, over all ranks."""
        self.model.eval()
        judges = [Validator(target) for target in self.spec.layout.targets]
        splits = [SPLIT_IDS[name] for name in period.splits]
        flops = forward_flops(self.spec.layout, self.spec.size)
        for block in block_batches(
            self._validation_queried,
            self.spec.layout,
            self.settings["micro_batch_size"],
            seed=None,
            wanted=lambda block: np.isin(block["query_split"], splits).any(axis=1),
        ):
            batch = as_batch(block, self.device)
            self.standing.flops += len(block["window"]) * flops
            with self._precision():
                predictions = self.model(batch)
            allowed = in_splits(batch, period.splits)
            for judge in judges:
                judge.add(*labelled_predictions(judge.target, batch, predictions, allowed))
        return {judge.target.name: judge.verdict(self.world) for judge in judges}

    def _precision(self) -> torch.autocast:
        """Weights, losses and the optimiser stay in float32; with `bfloat16`, matrix products do not."""
        wanted = self.settings["precision"] == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def _report(self, epoch: int, values: dict[str, float]) -> None:
        standing = self._of_all_ranks()
        if self.world.rank == 0:
            place = {"phase": standing.phase, "epoch": epoch, "tokens": standing.tokens}
            self.progress({"event": "epoch", **place, **values})


def _schedule(done: int, total: int) -> float:
    """Share of the highest learning rate after `done` of `total` steps: a linear start, then half a cosine."""
    warmup = max(1, min(100, total // 10))
    return min(1.0, (done + 1) / warmup) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * done / total)))


def _seed(seed: int, rank: int, phase: str, epoch: int, step: int) -> int:
    """A seed of its own for each step of each rank."""
    place = [seed, rank, *phase.encode(), epoch, step]
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
