"""Zero-inflated log-normal distribution for `value` targets (Wang et al. 2019, arXiv 1912.07753).

A prediction has shape (..., 3): the logit of a positive amount, and the mean and log standard deviation of the log
amount.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Bounds of the log standard deviation. A spread beyond a factor of e^e carries no information. The gradient is zero
# outside the bounds, so training must start inside them.
MIN_LOG_STD, MAX_LOG_STD = -3.0, 1.0


def _parameters(prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (..., 3) into logit, mean and bounded log standard deviation, (...) each."""
    logit, mean, log_std = prediction.unbind(-1)
    return logit, mean, log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)


def value_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Negative log-likelihood in nats: (..., 3) predictions, (...) amounts of 0 or more -> (...).

    The density of a positive amount is that of its log.
    """
    logit, mean, log_std = _parameters(prediction)
    is_positive = label > 0
    log_label = torch.where(is_positive, label, 1.0).log()
    z_score = (log_label - mean) / log_std.exp()
    log_normal_loss = 0.5 * z_score.square() + log_std
    zero_loss = F.binary_cross_entropy_with_logits(logit, is_positive.float(), reduction="none")
    return zero_loss + log_normal_loss * is_positive


def expected_value(prediction: Tensor) -> Tensor:
    """Mean of the distribution, the estimate to use for sums over customers: (..., 3) -> (...)."""
    logit, mean, log_std = _parameters(prediction)
    return logit.sigmoid() * (mean + 0.5 * (2 * log_std).exp()).exp()


def median_value(prediction: Tensor) -> Tensor:
    """Median of the distribution, the estimate with the least absolute error: (..., 3) -> (...)."""
    logit, mean, log_std = _parameters(prediction)
    return _median(logit.sigmoid(), mean, log_std)


def median_error(prediction: Tensor, label: Tensor) -> Tensor:
    """Absolute error of the median: (..., 3) predictions, (...) amounts -> (...).

    The probability of a positive amount is detached: near one half the median tends to zero and its gradient to
    infinity.
    """
    logit, mean, log_std = _parameters(prediction)
    return (_median(logit.detach().sigmoid(), mean, log_std) - label).abs()


def _median(positive_probability: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    # The zeros fill the lower quantiles; `quantile` is the normal quantile that remains for the positive amounts.
    quantile = torch.special.ndtri((1 - 0.5 / positive_probability.clamp_min(0.5)).clamp(1e-6, 1 - 1e-6))
    return torch.where(positive_probability > 0.5, (mean + log_std.exp() * quantile).exp(), 0.0)
