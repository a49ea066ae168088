"""The training of one model: pre-train, fine-tune with validation choosing, calibrate, refit. No Spark.

1. Pre-training: next moments before the validation period.
2. Fine-tuning: labelled queries of the training period, next moments kept as a side task; after each epoch
   the validation period judges; the best epoch is chosen by its log loss.
3. Calibration on the chosen epoch's validation logits.
4. Refit: from the pre-trained weights, as many epochs as were chosen, on everything that matured before the
   test period. The test period is never read here: the snapshot does not hold it.

Memory of a rank: the model, its optimiser and one row group, whatever the size of the data.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lam_spark.dataset.layout import SPLIT_IDS, Layout
from lam_spark.dataset.loader import BlockFiles, block_batches, count_blocks, files_of_rank
from lam_spark.dataset.packing import Block
from lam_spark.errors import ModelError
from lam_spark.metrics import auc, fit_logistic_calibration, log_loss
from lam_spark.model.artifact import Calibration, as_batch, save_artifact
from lam_spark.model.transformer import LargeActionModel, ModelSize, Normaliser
from lam_spark.training.distributed import World, sum_gradients
from lam_spark.training.objective import Loss, Period, in_splits, loss_of

Float = npt.NDArray[np.float64]
Progress = Callable[[dict[str, Any]], None]
_SECONDS_BETWEEN_REPORTS = 2.0
# What `_Pass.teaches` looks at.
_TEACHING_COLUMNS = ("segment", "is_new", "event_time", "query_split")


@dataclass(frozen=True)
class TrainingSpec:
    """Everything a rank needs; saved as JSON for the worker processes.

    Attributes:
        all_urls, queried_urls: Parquet files of one pinned version of the snapshot.
        validation_start, test_start: microseconds UTC.
        numeric_mean, numeric_std: of each numeric field's signed log, before `validation_start`.
        target: whose validation log loss chooses.
        folder: where the artifact and the progress go.
        facts: kept in the model's card.
    """

    layout: Layout
    size: ModelSize
    settings: dict[str, Any]
    all_urls: tuple[str, ...]
    queried_urls: tuple[str, ...]
    validation_start: int
    test_start: int
    numeric_mean: tuple[float, ...]
    numeric_std: tuple[float, ...]
    target: str
    folder: str
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def load(cls, path: Path) -> TrainingSpec:
        """Inverse of `save`."""
        saved = json.loads(path.read_text())
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()}
        values["layout"] = Layout.from_json(saved["layout"])
        values["size"] = ModelSize(**saved["size"])
        return cls(**values)


@dataclass(frozen=True)
class _Pass:
    """One kind of pass over the data."""

    phase: str
    files: BlockFiles
    period: Period
    epochs: int
    learning_rate: float
    with_answers: bool
    next_weight: float

    def teaches(self, block: Block) -> npt.NDArray[np.bool_]:
        """(blocks,): whether there is anything to learn in it; the others need not be computed."""
        time, period = block["event_time"], self.period
        found = np.zeros(len(time), np.bool_)
        if self.with_answers:
            found |= np.isin(block["query_split"], [SPLIT_IDS[name] for name in period.splits]).any(axis=1)
        if self.next_weight > 0:
            new = (block["segment"] > 0) & (block["is_new"] > 0)
            found |= (new & (time >= period.start) & (time < period.end)).any(axis=1)
        return found


class Trainer:
    """The loop of one rank."""

    def __init__(self, spec: TrainingSpec, world: World, progress: Progress) -> None:
        self.spec, self.world, self.progress = spec, world, progress
        self.settings = spec.settings
        self.all_files = files_of_rank(spec.all_urls, world.rank, world.size)
        self.queried_files = files_of_rank(spec.queried_urls, world.rank, world.size)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.settings["seed"])
        self.model = LargeActionModel(spec.layout, spec.size, self._normaliser()).to(self.device)
        world.share_weights(self.model)
        if self.settings["compile"]:
            self.model.compile()
        torch.manual_seed(self.settings["seed"] + 1 + world.rank)  # each rank drops out its own units
        self.tokens = 0

    def fit(self) -> str:
        """All four steps; returns the artifact's digest (the same on every rank)."""
        spec, settings = self.spec, self.settings
        started = time.monotonic()
        early = Period(0, spec.validation_start, ("train",))
        late = Period(spec.validation_start, spec.test_start, ("validation",))
        whole = Period(0, spec.test_start, ("train", "straddling", "validation"))
        self._judge_next("pre-training", 0, late)
        for epoch in self._epochs(
            _Pass(
                "pre-training",
                self.all_files,
                early,
                settings["pretrain_epochs"],
                settings["learning_rate"],
                with_answers=False,
                next_weight=1.0,
            )
        ):
            self._judge_next("pre-training", epoch, late)
        pretrained = _copy_weights(self.model)
        fine = _Pass(
            "fine-tuning",
            self.queried_files,
            early,
            settings["finetune_epochs"],
            settings["finetune_learning_rate"],
            with_answers=True,
            next_weight=settings["next_event_weight"],
        )
        chosen, best, calibration, validation = 0, math.inf, Calibration(1.0, 0.0), {}
        for epoch in self._epochs(fine):
            logits, labels = self._answers(late)
            loss = log_loss(logits, labels)
            if not math.isfinite(loss):
                raise ModelError(
                    f"the validation loss is not finite after fine-tuning epoch {epoch}: nothing can be chosen. Look "
                    f"for extreme numbers in the events of the validation period, files {self.queried_files.urls}"
                )
            judged = {"validation loss": loss, "validation AUC": auc(logits, labels)}
            self._report(fine.phase, epoch, judged)
            if loss < best:
                chosen, best, validation = epoch, loss, judged
                calibration = Calibration(*fit_logistic_calibration(logits, labels))
            elif epoch - chosen >= settings["patience"]:
                break
        self.model.load_state_dict(pretrained)
        refit = dataclasses.replace(fine, phase="refit", period=whole)
        for epoch in self._epochs(refit, stop_after=chosen):
            self._report(refit.phase, epoch, {})
        return self._save(calibration, chosen, validation, time.monotonic() - started)

    def _save(self, calibration: Calibration, chosen: int, validation: dict[str, Any], seconds: float) -> str:
        tokens = int(self.world.sum(torch.tensor([float(self.tokens)], dtype=torch.float64))[0])
        parameters = sum(p.numel() for p in self.model.parameters())
        facts = {
            **self.spec.facts,
            "parameters": parameters,
            "tokens": tokens,
            "ranks": self.world.size,
            "seconds": round(seconds, 1),
            "core_seconds": round(seconds * self.world.size * self.settings["threads_per_rank"], 1),
            "chosen_epoch": chosen,
            "seed": self.settings["seed"],
            **{name.replace(" ", "_"): value for name, value in validation.items()},
        }
        digest = ""
        if self.world.rank == 0:
            facts = json.loads(json.dumps(facts, default=str))
            calibrations = {
                name: calibration for name in self.spec.layout.targets if name == self.spec.target
            }
            digest = save_artifact(Path(self.spec.folder), self.model, calibrations, facts)
            self.progress({"event": "done", "digest": digest, "facts": facts})
        return digest

    def _epochs(self, work: _Pass, stop_after: int | None = None) -> Iterator[int]:
        """Train; yields the number of each finished epoch, from 1."""
        batch_blocks = self.settings["batch_blocks"]
        blocks = count_blocks(work.files, self.spec.layout, work.teaches, _TEACHING_COLUMNS)
        steps = self.world.largest(math.ceil(blocks / batch_blocks))  # one count for all ranks
        if not steps:
            raise ModelError(
                f"{work.phase}: there is nothing to learn from before "
                f"{dt.datetime.fromtimestamp(work.period.end / 1e6, dt.UTC):%Y-%m-%d %H:%M} (UTC), neither a next "
                f"event nor an answered question of {', '.join(work.period.splits)}. Move the dates of split"
            )
        total = max(1, steps * work.epochs)
        optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=work.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=self.settings["weight_decay"],
        )
        warmup = max(1, min(100, total // 10))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: (
                min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * step / total)))
            ),
        )
        for epoch in range(1, (work.epochs if stop_after is None else stop_after) + 1):
            self.model.train()
            batches = block_batches(
                work.files,
                self.spec.layout,
                batch_blocks,
                seed=self.settings["seed"],
                epoch=epoch,
                wanted=work.teaches,
            )
            meter = _Meter(self, work.phase, epoch, steps)
            for step in range(1, steps + 1):
                block = next(batches, None)
                loss = self._step(optimiser, block, work, (epoch, step))
                schedule.step()
                meter.add(loss, block)
            meter.finish()
            yield epoch

    def _step(
        self, optimiser: torch.optim.Optimizer, block: Block | None, work: _Pass, place: tuple[int, int]
    ) -> float:
        """One step of all ranks; a rank whose files are read through takes part with nothing."""
        optimiser.zero_grad(set_to_none=True)
        part: Loss | None = None
        counts = torch.zeros(2)
        if block is not None:
            batch = as_batch(block, self.device)
            with self._precision():
                part = loss_of(
                    self.model,
                    batch,
                    work.period,
                    with_next=work.next_weight > 0,
                    with_answers=work.with_answers,
                )
            counts = torch.stack([part.next_count, part.answer_count]).detach().float().cpu()
        counts = self.world.sum(counts).clamp_min(1.0)
        value = 0.0
        if part is not None:
            loss = work.next_weight * part.next_sum / counts[0].item() + part.answer_sum / counts[1].item()
            value = float(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        sum_gradients(self.world, self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip_norm"])
        if not (math.isfinite(value) and bool(torch.isfinite(norm))):
            raise ModelError(
                f"the loss is not finite in {work.phase}, epoch {place[0]}, step {place[1]}, rank "
                f"{self.world.rank} (loss {value}, gradient norm {float(norm)}), files {work.files.urls}. "
                "Lower training.learning_rate, or look for extreme numbers in the events"
            )
        optimiser.step()
        return value

    @torch.no_grad()
    def _judge_next(self, phase: str, epoch: int, period: Period) -> None:
        """Next-moment loss on the validation period, over all ranks."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for block in block_batches(
            self.all_files,
            self.spec.layout,
            self.settings["batch_blocks"],
            seed=None,
            wanted=lambda block: block["event_time"].max(axis=1) >= period.start,
        ):
            batch = as_batch(block, self.device)
            with self._precision():
                part = loss_of(self.model, batch, period, with_next=True, with_answers=False)
            sums += torch.stack([part.next_sum, part.next_count]).double().cpu()
        sums = self.world.sum(sums)
        self._report(phase, epoch, {"validation loss": float(sums[0] / sums[1].clamp_min(1))})

    @torch.no_grad()
    def _answers(self, period: Period) -> tuple[Float, Float]:
        """Logits and labels of the target's queries in the period, from all ranks."""
        self.model.eval()
        rows: list[Float] = [np.zeros((0, 2))]
        target = self.spec.target
        splits = [SPLIT_IDS[name] for name in period.splits]
        for block in block_batches(
            self.queried_files,
            self.spec.layout,
            self.settings["batch_blocks"],
            seed=None,
            wanted=lambda block: np.isin(block["query_split"], splits).any(axis=1),
        ):
            batch = as_batch(block, self.device)
            with self._precision():
                logits = self.model(batch).query_logits[target].float()
            label = batch[f"label_{target}"]
            chosen = in_splits(batch, period.splits) & ~label.isnan()
            rows.append(torch.stack([logits[chosen], label[chosen]], dim=1).double().cpu().numpy())
        both = self.world.gather(np.concatenate(rows))
        if len(np.unique(both[:, 1])) < 2:
            raise ModelError(
                f"the validation period has {len(both)} examples of {target!r} and not both classes: nothing can "
                "be chosen or calibrated. Move split.validation_start"
            )
        return both[:, 0], both[:, 1]

    def _precision(self) -> torch.autocast:
        """Weights, losses and the optimiser stay in float32; with `bfloat16`, matrix products do not."""
        wanted = self.settings["precision"] == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def _normaliser(self) -> Normaliser:
        """Means and deviations of the aggregates over the training period's queries, over all ranks."""
        width = len(self.spec.layout.aggregate_names)
        sums = np.zeros((2, width))
        count = 0
        for block in block_batches(self.queried_files, self.spec.layout, 64, seed=None):
            rows = block["aggregates"][block["query_split"] == SPLIT_IDS["train"]].astype(np.float64)
            sums += np.stack([rows.sum(0), (rows**2).sum(0)])
            count += len(rows)
        total = self.world.sum(torch.from_numpy(np.append(sums.ravel(), count))).numpy()
        mean, square = (total[:-1] / max(1.0, total[-1])).reshape(2, width)
        std = np.sqrt(np.maximum(square - mean**2, 0.0))
        return Normaliser(
            self.spec.numeric_mean,
            self.spec.numeric_std,
            tuple(mean.tolist()),
            tuple(np.where(std > 1e-4, std, 1.0).tolist()),
        )

    def _report(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        if self.world.rank == 0:
            self.progress({"event": "epoch", "phase": phase, "epoch": epoch, "tokens": self.tokens, **values})


class _Meter:
    """Tells people and MLflow how an epoch goes: loss, events a second, seconds left."""

    def __init__(self, trainer: Trainer, phase: str, epoch: int, steps: int) -> None:
        self.trainer, self.phase, self.epoch, self.steps = trainer, phase, epoch, steps
        self.started = self.reported = time.monotonic()
        self.losses: list[float] = []
        self.tokens = 0

    def add(self, loss: float, block: Block | None) -> None:
        self.losses.append(loss)
        if block is not None:
            used = int((block["segment"] > 0).sum())
            self.tokens += used
            self.trainer.tokens += used
        if self.trainer.world.rank == 0 and time.monotonic() - self.reported > _SECONDS_BETWEEN_REPORTS:
            self._tell("step")

    def finish(self) -> None:
        """Report the epoch's mean loss over all ranks."""
        mean = self.trainer.world.sum(torch.tensor([sum(self.losses)], dtype=torch.float64))
        self.losses = [float(mean[0]) / max(1, self.steps)]
        if self.trainer.world.rank == 0:
            self._tell("epoch end", loss=self.losses[0])

    def _tell(self, event: str, **values: float) -> None:
        self.reported = time.monotonic()
        elapsed = max(1e-9, self.reported - self.started)
        done = len(self.losses)
        recent = self.losses[-50:]
        self.trainer.progress(
            {
                "event": event,
                "phase": self.phase,
                "epoch": self.epoch,
                "step": done,
                "steps": self.steps,
                "loss": sum(recent) / len(recent) * self.trainer.world.size,
                "tokens_per_second": self.tokens * self.trainer.world.size / elapsed,
                "seconds_left": elapsed / done * (self.steps - done),
                **values,
            }
        )


def _copy_weights(model: LargeActionModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
