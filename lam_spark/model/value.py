"""Answers of `value` targets: a zero-inflated log-normal distribution (Wang et al. 2019, arXiv 1912.07753).

An answer is (..., 3): the logit of more than nothing, and the mean and log deviation of the log of how much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the log: a customer whose spread is wider than a factor of e^e is not known at all.
# Beyond these nothing pulls it back: a training has to begin within.
LEAST_LOG_STD, MOST_LOG_STD = -3.0, 1.0


def _parts(answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logit, mean, log_std = answer.unbind(-1)
    return logit, mean, log_std.clamp(LEAST_LOG_STD, MOST_LOG_STD)


def value_loss(answer: Tensor, label: Tensor) -> Tensor:
    """(..., 3), (...) amounts of 0 or more -> (...) negative log-likelihood (nats; of the log where there is any)."""
    logit, mean, log_std = _parts(answer)
    any_at_all = label > 0
    log_label = torch.where(any_at_all, label, 1.0).log()
    surprise = (log_label - mean) / log_std.exp()
    spread = 0.5 * surprise.square() + log_std
    return (
        F.binary_cross_entropy_with_logits(logit, any_at_all.float(), reduction="none") + spread * any_at_all
    )


def expected_value(answer: Tensor) -> Tensor:
    """(..., 3) -> (...) mean of the distribution: what many such customers come to, added up."""
    logit, mean, log_std = _parts(answer)
    return logit.sigmoid() * (mean + 0.5 * (2 * log_std).exp()).exp()


def median_value(answer: Tensor) -> Tensor:
    """(..., 3) -> (...) median of the distribution: the guess with the least absolute error."""
    logit, mean, log_std = _parts(answer)
    return _median(logit.sigmoid(), mean, log_std)


def median_error(answer: Tensor, label: Tensor) -> Tensor:
    """(..., 3), (...) amounts -> (...) how far the median is off.

    The chance of anything at all is taken as it is: near a half the median runs to nothing, and so would the gradient
    to infinity.
    """
    logit, mean, log_std = _parts(answer)
    return (_median(logit.detach().sigmoid(), mean, log_std) - label).abs()


def _median(chance: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    # The amount that half of all, those with nothing included, stay below.
    above = torch.special.ndtri((1 - 0.5 / chance.clamp_min(0.5)).clamp(1e-6, 1 - 1e-6))
    return torch.where(chance > 0.5, (mean + log_std.exp() * above).exp(), 0.0)
