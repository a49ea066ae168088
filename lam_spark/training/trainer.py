"""Training loop of one process: pre-training, fine-tuning, calibration and refit. No Spark.

1. Pre-training: predict next timestamp groups before the validation period.
2. Fine-tuning: all targets on labelled queries of the training period, with next timestamp groups as a side task.
   After each epoch the average of the last steps' weights is validated; the targets' losses select the best epoch.
   Targets with too few validation queries (`TrainingSpec.validated_targets`) do not count; if none counts, the last
   epoch is taken.
3. Calibration on the best epoch's validation logits; a target with too few keeps its logits.
4. Refit: from the pre-trained weights, the selected number of epochs on everything that matured before the test
   period; the average weights are saved. The snapshot holds nothing of the test period.

A checkpoint is written every `training.checkpoint_minutes`; a training that is started again resumes from the last one
and ends with the same weights.

Memory of a process: the model, its optimiser, one row group and the validation sums, whatever the size of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lam_spark.errors import ModelError
from lam_spark.model.artifact import Calibration, as_batch, save_artifact
from lam_spark.model.transformer import Batch, LargeActionModel, Normaliser
from lam_spark.training.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    Weights,
    load_optimiser,
    optimiser_tensors,
    resume_checkpoint,
    write_checkpoint,
)
from lam_spark.training.contrastive import contrastive_loss, count_anchors, cut_histories
from lam_spark.training.cost import block_flops
from lam_spark.training.losses import loss_counts, losses
from lam_spark.training.normalisation import query_statistics
from lam_spark.training.not_finite import not_finite_message
from lam_spark.training.optimisation import (
    autocast,
    create_optimiser,
    learning_rate_factor,
    learning_rate_scale,
    step_seed,
)
from lam_spark.training.phases import Phase, blocks_per_step, phases_of, steps_per_epoch
from lam_spark.training.process_group import ProcessGroup, sum_gradients
from lam_spark.training.progress import Meter, Progress
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training.summary import TrainingSummary
from lam_spark.training.validate import ValidationRunner, metric_values, require_finite_losses
from lam_spark.training.value_embeddings import load_value_embeddings
from lam_spark.training.weight_average import WeightAverage
from lam_spark.training_data.loader import block_batches, files_of_rank
from lam_spark.training_data.packing import Block


class Trainer:
    """Training loop of one process.

    Args:
        spec: the training.
        group: the process group; all processes call the same methods.
        progress: receives the progress records of the first process.

    Attributes:
        model: the model.
        state: the training state.
        all_files, queried_files: block files of this process.
        phases: pre-training, fine-tuning and refit.
        validation: validates the model.
    """

    def __init__(self, spec: TrainingSpec, group: ProcessGroup, progress: Progress) -> None:
        self._started = self._last_save = time.monotonic()
        self.spec, self.group, self.progress = spec, group, progress
        self.settings = spec.settings
        self.all_files = files_of_rank(spec.all_urls, group.rank, group.size)
        self.queried_files = files_of_rank(spec.queried_urls, group.rank, group.size)
        self.phases = phases_of(spec, self.all_files, self.queried_files)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self._initial_model()
        self.validation = ValidationRunner(spec, self.model, group, self.device)
        self.state = TrainingState()
        # In the layout's order.
        self._target_weights = torch.tensor(spec.target_weights, device=self.device)
        self._learning_rate_scale = learning_rate_scale(self.settings, group.size)
        self._pretrained: Weights = {}
        self._average = WeightAverage(self.model)
        self._optimiser_state: Weights = {}

    def _initial_model(self) -> LargeActionModel:
        """Model on the device, with the same initial weights on every process."""
        spec, settings = self.spec, self.settings
        torch.manual_seed(settings.seed)
        queries = query_statistics(self.queried_files, spec.layout, self.group, spec.size.numeric_bins)
        normaliser = Normaliser(
            spec.numeric_mean, spec.numeric_std, spec.numeric_edges, queries.mean, queries.std, queries.edges
        )
        model = LargeActionModel(spec.layout, spec.size, normaliser)
        model.initialise_targets(queries.constants)
        model.set_value_embeddings(load_value_embeddings(Path(spec.folder), spec.value_embeddings_digest))
        self.group.share_weights(model)
        model.to(self.device)
        model.activation_checkpointing = settings.activation_checkpointing
        if settings.compile:
            model.compile()
        return model

    def fit(self) -> str:
        """Run all phases, from the last checkpoint of this training if there is one.

        Returns:
            The artifact's digest on the first process, which writes it; an empty string on the others.

        Raises:
            ModelError: there is nothing to train on or to validate with, or a loss is not finite.
        """
        self._resume()
        state = self.state
        pre_training, fine_tuning, refit = self.phases
        if not state.phase:
            # Refuses an unusable validation period now, not after hours of pre-training.
            self.validation.target_metrics(state)
            state.enter(pre_training.name)
            self._validate_next(0)
        if state.phase == pre_training.name:
            for epoch in self._epochs(pre_training):
                self._validate_next(epoch)
            # On the CPU, where memory is cheaper: only the refit needs it.
            self._pretrained = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
            }
            state.enter(fine_tuning.name)
        if state.phase == fine_tuning.name:
            for epoch in self._epochs(fine_tuning):
                with self._average.applied():
                    self._validate_targets(epoch)
                if epoch - state.best_epoch >= self.settings.patience:
                    break
            self.model.load_state_dict(self._pretrained)
            self._pretrained = {}
            state.enter(refit.name)
        for epoch in self._epochs(refit, stop_after=state.best_epoch):
            self._report(epoch, {})
        self._average.swap()
        return self._finish()

    def _finish(self) -> str:
        """Save the artifact and delete the checkpoints."""
        state = self._global_state()
        if self.group.rank != 0:
            return ""
        summary = self._summary(state).to_json()
        facts = json.loads(json.dumps({**self.spec.facts, "training": summary}, default=str))
        # A target without enough validation queries is not calibrated.
        calibration = {
            target.name: Calibration(*state.calibration.get(target.name, (1.0, 0.0)))
            for target in self.spec.layout.targets
        }
        digest = save_artifact(Path(self.spec.folder), self.model, calibration, facts)
        self.progress({"event": "done", "digest": digest, "summary": summary})
        shutil.rmtree(self._checkpoint_folder, ignore_errors=True)
        return digest

    def _summary(self, state: TrainingState) -> TrainingSummary:
        gpu = self.device.type == "cuda"
        seconds = state.seconds * self.group.size
        return TrainingSummary(
            parameters=sum(p.numel() for p in self.model.parameters()),
            tokens=state.tokens,
            flops=state.flops,
            world_size=self.group.size,
            seconds=round(state.seconds, 1),
            gpu_seconds=round(seconds, 1) if gpu else None,
            core_seconds=None if gpu else round(seconds * self.settings.threads_per_rank, 1),
            best_epoch=state.best_epoch,
            seed=self.settings.seed,
            validation=state.validation,
        )

    def _epochs(self, phase: Phase, stop_after: int | None = None) -> Iterator[int]:
        """Train from the current state on; yields the number of each finished epoch, from 1.

        Args:
            phase: the phase.
            stop_after: last epoch, if it is not the last one of the learning-rate schedule.
        """
        if not phase.epochs:
            return
        state = self.state
        steps = steps_per_epoch(phase, self.spec, self.group)
        optimiser = create_optimiser(self.model, phase, self.settings)
        load_optimiser(optimiser, self._optimiser_state)
        self._optimiser_state = {}
        while state.epoch <= (phase.epochs if stop_after is None else stop_after):
            self._train_epoch(optimiser, phase, steps)
            yield state.epoch
            state.begin_epoch(state.epoch + 1)

    def _train_epoch(self, optimiser: torch.optim.Optimizer, phase: Phase, steps: int) -> None:
        """Train the rest of the current epoch."""
        state = self.state
        self.model.train()
        batches = block_batches(
            phase.files,
            self.spec.layout,
            blocks_per_step(self.settings),
            seed=self.settings.seed,
            epoch=state.epoch,
            block_filter=phase.has_targets,
        )
        flops = block_flops(self.spec.layout, self.spec.size, phase.with_targets)
        meter = Meter(self.group, self.progress, state, steps)
        # After a resume, finished batches are read again but not computed.
        remaining = itertools.islice(batches, state.step, None)
        while state.step < steps:
            block = next(remaining, None)
            step = (state.epoch - 1) * steps + state.step
            factor = learning_rate_factor(step, steps * phase.epochs)
            for group in optimiser.param_groups:
                group["lr"] = phase.learning_rate * self._learning_rate_scale * factor
            loss, save_due = self._step(optimiser, block, phase)
            if phase.with_targets:
                self._average.update(step)
            if block is None:
                meter.add(loss, 0, 0.0)
            else:
                meter.add(loss, int((block["window"] > 0).sum()), len(block["window"]) * flops)
            if save_due:
                self._save(optimiser)
        meter.finish()

    def _step(
        self, optimiser: torch.optim.Optimizer, block: Block | None, phase: Phase
    ) -> tuple[float, bool]:
        """Run one step of all processes; a process without blocks left takes part with zero gradients.

        Returns:
            This process's share of the loss, and whether a checkpoint is due by the first process's clock.

        Raises:
            ModelError: the loss or a gradient is not finite.
        """
        state = self.state
        torch.manual_seed(step_seed(self.settings.seed, self.group.rank, phase.name, state.epoch, state.step))
        optimiser.zero_grad(set_to_none=True)
        loss, save_due = self._backward(self._batches(block, phase), phase)
        parameters = [weight for group in optimiser.param_groups for weight in group["params"]]
        local_gradients = sum_gradients(self.group, parameters, self.settings.fp16_gradient_compression)
        norm = get_total_norm([p.grad for p in parameters])
        finite = bool(torch.isfinite(norm))
        if not (finite and math.isfinite(loss)):
            # All processes have the same norm, but only this one knows its own loss.
            raise ModelError(
                not_finite_message(
                    self.spec, self.group, phase, state, block, loss, local_gradients, collective=not finite
                )
            )
        clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        optimiser.step()
        return loss, save_due

    def _batches(self, block: Block | None, phase: Phase) -> list[Batch]:
        """A step's micro-batches on the device."""
        if block is None:
            return []
        size = self.settings.micro_batch_size
        batches = [
            as_batch({name: values[first : first + size] for name, values in block.items()}, self.device)
            for first in range(0, len(block["window"]), size)
        ]
        if phase.contrastive_weight:
            batches = [cut_histories(batch, phase.period.end) for batch in batches]
        return batches

    def _backward(self, batches: list[Batch], phase: Phase) -> tuple[float, bool]:
        """Accumulate this process's gradients; returns its share of the loss, and whether a checkpoint is due."""
        targets = self.spec.layout.targets
        counts = torch.zeros(3 + len(targets))
        since = time.monotonic() - self._last_save
        counts[0] = self.group.rank == 0 and since >= 60 * self.settings.checkpoint_minutes
        for batch in batches:
            counts[1] += count_anchors(batch) if phase.contrastive_weight else 0.0
            counts[2:] += loss_counts(batch, phase.period, targets, phase.with_targets)
        # The counts are summed over the processes while the model computes.
        total_counts = functools.cache(self.group.begin_sum(counts))
        value = 0.0
        for batch in batches:
            with autocast(self.device, self.settings):
                predictions = self.model(batch, phase.with_targets)
                part = losses(
                    self.model,
                    batch,
                    predictions,
                    phase.period,
                    with_next=phase.next_weight > 0,
                    with_targets=phase.with_targets,
                )
            # Weights of one slice, timestamp group and example among those of all processes.
            shares = 1.0 / total_counts()[1:].clamp_min(1.0).to(self.device)
            target_part = (part.target_sums * shares[2:] * self._target_weights).sum()
            loss = phase.next_weight * part.next_sum * shares[1] + target_part
            if phase.contrastive_weight:
                loss = loss + phase.contrastive_weight * shares[0] * contrastive_loss(batch, predictions)
            value += float(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        return value, bool(total_counts()[0])

    @property
    def _checkpoint_folder(self) -> Path:
        return Path(self.spec.folder) / CHECKPOINTS

    def _save(self, optimiser: torch.optim.Optimizer) -> None:
        """Write a checkpoint on the first process; collective. A failure is reported, and training continues."""
        state = self._global_state()
        self._last_save = time.monotonic()
        if self.group.rank != 0:
            return
        checkpoint = Checkpoint(
            self.spec.fingerprint(),
            state,
            self.model.state_dict(),
            self._pretrained,
            self._average.weights,
            optimiser_tensors(optimiser),
        )
        try:
            write_checkpoint(self._checkpoint_folder, checkpoint)
        except OSError as error:
            self.progress({"event": "checkpoint failed", "phase": state.phase, "error": str(error)})

    def _resume(self) -> None:
        """Load the last checkpoint, if there is one."""
        checkpoint = resume_checkpoint(
            self._checkpoint_folder, self.spec.fingerprint(), self.group, self.progress
        )
        if checkpoint is None:
            return
        self.state = checkpoint.state
        self.model.load_state_dict(checkpoint.model)
        self._pretrained, self._optimiser_state = checkpoint.pretrained, checkpoint.optimiser
        self._average.weights = {name: tensor.to(self.device) for name, tensor in checkpoint.average.items()}

    def _global_state(self) -> TrainingState:
        """Training state with the costs of all processes and of earlier runs; collective."""
        local_costs = [self.state.tokens, self.state.flops, self.state.loss_sum]
        tokens, flops, loss_sum = self.group.sum(torch.tensor(local_costs, dtype=torch.float64)).tolist()
        seconds = self.state.seconds + time.monotonic() - self._started
        return dataclasses.replace(
            self.state, tokens=int(tokens), flops=flops, loss_sum=loss_sum, seconds=seconds
        )

    def _validate_next(self, epoch: int) -> None:
        """Validate after an epoch of pre-training (0: before the first)."""
        loss = self.validation.next_group_loss(self.state)
        self._report(epoch, {} if loss is None else {"loss": loss})

    def _validate_targets(self, epoch: int) -> None:
        """Validate after an epoch of fine-tuning, and keep the epoch's results if it is the best so far."""
        metrics = self.validation.target_metrics(self.state)
        require_finite_losses(metrics, epoch, self.queried_files.urls)
        values = metric_values(metrics, self.spec.target)
        self._report(epoch, values)
        state = self.state
        names = [target.name for target in self.spec.layout.targets]
        weights = dict(zip(names, self._target_weights.tolist(), strict=True))
        excess = sum(weights[name] * of_target.excess for name, of_target in metrics.items())
        if not metrics:
            state.best_epoch = epoch  # nothing can be compared: the last epoch is taken
        elif excess < state.best_loss:
            state.best_epoch, state.best_loss, state.validation = epoch, excess, values
            state.calibration = {
                target: (of_target.calibration.slope, of_target.calibration.intercept)
                for target, of_target in metrics.items()
            }

    def _report(self, epoch: int, metrics: dict[str, float]) -> None:
        """Report a finished epoch with its validation metrics; collective."""
        state = self._global_state()
        if self.group.rank == 0:
            values = {f"validation {name}": value for name, value in metrics.items()}
            self.progress(
                {"event": "epoch", "phase": state.phase, "epoch": epoch, "tokens": state.tokens, **values}
            )
