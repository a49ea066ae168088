"""Running average of a model's weights (polynomial-decay averaging: Shamir and Zhang 2013, arXiv 1212.1824).

At a high learning rate the weights of a single step are noisy, and so is their validation loss. The average over about
the last tenth of the steps is less noisy: epochs can be compared by it, and a phase may stop before its learning rate
has decayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lam_spark.training.checkpoint import Weights

# The weight of a step is `_SPAN / (_SPAN + steps before it)`.
_SPAN = 10


class WeightAverage:
    """Average of the parameters of a model. Memory: one more copy of the parameters.

    Attributes:
        weights: parameter name -> average; empty before the first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.weights: Weights = {}

    @torch.no_grad()
    def update(self, steps_before: int) -> None:
        """Add the model's present weights; `steps_before` counts the phase's steps before this one."""
        share = _SPAN / (_SPAN + steps_before)
        for name, parameter in self._model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, share)
            else:
                self.weights[name] = parameter.detach().clone()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its average weights inside the context, and its own weights again afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the model's weights with their average."""
        for name, parameter in self._model.named_parameters():
            model_weights = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(model_weights)
