"""The average of a model's weights over the last steps of a pass (polynomial decay: Shamir and Zhang 2013, 1212.1824).

While the learning rate is high, the weights of a single step are off in some direction or other, and so is what a
validation after an epoch says of them. The average over about the last tenth of the steps taken is not: epochs can be
told apart by it, and a pass may stop before its rate has come down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lam_spark.training.checkpoint import Weights

# A step's weight in the average is this over so many and the steps before it.
_SPAN = 10


class WeightAverage:
    """Memory: the model's parameters once more.

    Attributes:
        weights: name of a parameter -> its average so far; empty before the first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.weights: Weights = {}

    @torch.no_grad()
    def follow(self, done: int) -> None:
        """Take in what a step made of the weights; `done` steps of the pass were before it."""
        share = _SPAN / (_SPAN + done)
        for name, parameter in self._model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, share)
            else:
                self.weights[name] = parameter.detach().clone()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The model with its average weights; afterwards with those of the last step."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """The model's weights and their average change places."""
        for name, parameter in self._model.named_parameters():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)
