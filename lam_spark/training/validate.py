"""Validation during a training: the model's losses and metrics on the validation period, over all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lam_spark.errors import ModelError
from lam_spark.model.artifact import as_batch
from lam_spark.model.transformer import LargeActionModel
from lam_spark.training.cost import forward_flops
from lam_spark.training.losses import in_splits, labelled_predictions, loss_of
from lam_spark.training.optimisation import autocast
from lam_spark.training.phases import validation_period
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training.validation import ValidationMetrics, Validator
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.loader import block_batches, files_of_rank, sample_files


class ValidationRunner:
    """Validates a model. All methods are collective, and add their FLOPs to the training state.

    Args:
        spec: the training. About `settings.validation_blocks` blocks are read, a fixed sample of the files.
        model: the model.
        group: the process group.
        device: device of the model.
    """

    def __init__(
        self, spec: TrainingSpec, model: LargeActionModel, group: ProcessGroup, device: torch.device
    ) -> None:
        self._spec, self._model, self._group, self._device = spec, model, group, device
        self._period = validation_period(spec)
        self._all_files, self._queried_files = (
            files_of_rank(
                sample_files(urls, spec.settings.validation_blocks, group.size), group.rank, group.size
            )
            for urls in (spec.all_urls, spec.queried_urls)
        )

    @torch.no_grad()
    def next_group_loss(self, state: TrainingState) -> float | None:
        """Mean loss of the next timestamp group; None if the period has no next timestamp groups."""
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        layout, settings = self._spec.layout, self._spec.settings
        flops = forward_flops(layout, self._spec.size, with_targets=False)
        for block in block_batches(
            self._all_files,
            layout,
            settings.micro_batch_size,
            seed=None,
            block_filter=lambda block: block["known_at"].max(axis=1) >= self._period.start,
        ):
            batch = as_batch(block, self._device)
            state.flops += len(block["window"]) * flops
            with autocast(self._device, settings):
                part = loss_of(self._model, batch, self._period, with_next=True, with_targets=False)
            sums += torch.stack([part.next_sum, part.next_count]).double().cpu()
        loss, groups = self._group.sum(sums).tolist()
        return loss / groups if groups else None

    @torch.no_grad()
    def target_metrics(self, state: TrainingState) -> dict[str, ValidationMetrics]:
        """Metrics of each target of `TrainingSpec.validated_targets`; nothing is read without any.

        Raises:
            ModelError: a target has no examples in the period, or all have the same label.
        """
        self._model.eval()
        layout, settings, names = self._spec.layout, self._spec.settings, self._spec.validated_targets
        validators = [Validator(target) for target in layout.targets if names is None or target.name in names]
        if not validators:
            return {}
        splits = [SPLIT_IDS[name] for name in self._period.splits]
        flops = forward_flops(layout, self._spec.size)
        for block in block_batches(
            self._queried_files,
            layout,
            settings.micro_batch_size,
            seed=None,
            block_filter=lambda block: np.isin(block["query_split"], splits).any(axis=1),
        ):
            batch = as_batch(block, self._device)
            state.flops += len(block["window"]) * flops
            with autocast(self._device, settings):
                predictions = self._model(batch)
            allowed = in_splits(batch, self._period.splits)
            for validator in validators:
                validator.update(*labelled_predictions(validator.target, batch, predictions, allowed))
        return {validator.target.name: validator.compute(self._group) for validator in validators}


def require_finite_losses(metrics: dict[str, ValidationMetrics], epoch: int, urls: Sequence[str]) -> None:
    """Refuse an epoch whose validation loss is not finite.

    Args:
        metrics: target -> metrics.
        epoch: fine-tuning epoch.
        urls: files of this process.

    Raises:
        ModelError: the loss of a target is not finite.
    """
    for target, values in metrics.items():
        if not math.isfinite(values.loss):
            raise ModelError(
                f"the validation loss of {target!r} is not finite after fine-tuning epoch {epoch}: no epoch can be "
                f"selected. Look for extreme numbers in the events of the validation period, files {', '.join(urls)}"
            )


def metric_values(metrics: dict[str, ValidationMetrics], scored_target: str) -> dict[str, float]:
    """Name -> value of all metrics; the scored target's have plain names, others begin with the target."""
    values: dict[str, float] = {}
    for target, of_target in metrics.items():
        prefix = "" if target == scored_target else f"{target} "
        values[f"{prefix}loss"] = of_target.loss
        values |= {f"{prefix}{name}": value for name, value in of_target.measures.items()}
    return values
