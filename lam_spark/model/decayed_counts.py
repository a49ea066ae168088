"""Exponentially decayed counts of all events before a query, by field value and by hour of the day.

Attention captures which event came when and after which. It needs many examples to learn how often an event recurs
over weeks or months; models on hand-made counts have that from the start. The model computes these counts from the
events of the block. Where a window does not start at the customer's first event, the block carries the counts at the
window's start (`training_data.decayed_counts`).

Shapes: B blocks, T event slots, Q query slots, F categorical fields, H half-lives, R counters, C initial counters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lam_spark.training_data.layout import HOURS_OF_DAY, MICROS_PER_DAY, Layout


def counter_slices(layout: Layout) -> dict[str, slice]:
    """Categorical field -> its counters, one per counted id in use, in id order (`Layout.decayed_count_ids`)."""
    sizes = layout.ids_in_use
    slices, start = {}, 0
    for name, max_ids in layout.decayed_count_ids.items():
        slices[name] = slice(start, start + min(sizes[name], max_ids))
        start = slices[name].stop
    return slices


def num_counters(layout: Layout) -> int:
    """R: the counters of all fields, followed by those of the hours of the day."""
    return HOURS_OF_DAY + sum(int(part.stop - part.start) for part in counter_slices(layout).values())


class DecayedCounts(nn.Module):
    """Computes decayed counts at each query; has no trainable parameters.

    Args:
        layout: fields, shapes and half-lives.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._slices, self._num_counters = counter_slices(layout), num_counters(layout)
        self.half_life_days: Tensor
        half_lives = torch.tensor(layout.half_life_days, dtype=torch.float32)
        self.register_buffer("half_life_days", half_lives, persistent=False)
        self._initial_index: Tensor
        self.register_buffer("_initial_index", torch.tensor(_initial_index(layout)), persistent=False)

    def forward(self, batch: Mapping[str, Tensor], visible_BQT: Tensor) -> Tensor:
        """(B, Q, H, R): log of one plus the decayed counts of the visible events."""
        age_BQT = (batch["query_time"][:, :, None] - batch["known_at"][:, None]).float() / MICROS_PER_DAY
        weight_BQHT = torch.exp2(-age_BQT.clamp_min(0)[:, :, None] / self.half_life_days[:, None])
        weight_BQHT = weight_BQHT * visible_BQT[:, :, None]
        # One matrix product per block: broadcasting over half-lives would copy the indicators for each of them.
        counts = weight_BQHT.flatten(1, 2) @ self._indicators(batch)
        counts_BQHR = counts.view(*weight_BQHT.shape[:3], self._num_counters)
        return (counts_BQHR + self._initial_counts(batch)).log1p()

    def _initial_counts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, Q, H, R): counts of the events before a query's window, decayed to the query's time."""
        age_BQ = (batch["query_time"] - batch["initial_time"]).float() / MICROS_PER_DAY
        applies_BQ = (batch["query_window"] > 0) & (batch["query_window"] == batch["initial_window"])
        decay_BQH = torch.exp2(-age_BQ.clamp_min(0)[..., None] / self.half_life_days) * applies_BQ[..., None]
        counts_BHC = batch["initial_counts"].view(len(decay_BQH), len(self.half_life_days), -1)
        counts_BHR = counts_BHC[..., self._initial_index]
        decayed: Tensor = decay_BQH[..., None] * counts_BHR[:, None]
        return decayed

    def _indicators(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T, R): 1 at the counters of each event's ids and hour, else 0."""
        counters = []
        for name, part in self._slices.items():
            counter = batch[f"event_{name}"].long() + part.start
            counters.append(torch.where(counter < part.stop, counter, self._num_counters))
        hour = batch["hour_of_week"].long() % HOURS_OF_DAY
        counters.append(hour + self._num_counters - HOURS_OF_DAY)
        counter_BTF = torch.stack(counters, dim=-1)
        # The extra last column collects the ids that are not counted.
        indicators = torch.zeros(*counter_BTF.shape[:2], self._num_counters + 1, device=counter_BTF.device)
        return indicators.scatter_(2, counter_BTF, 1.0)[..., : self._num_counters]


def _initial_index(layout: Layout) -> list[int]:
    """(R,): position of each counter among the initial counts, which reserve room for ids not in use yet."""
    index: list[int] = []
    slices = counter_slices(layout)
    for name, reserved in layout.initial_count_slices.items():
        in_use = int(slices[name].stop - slices[name].start)
        index += range(reserved.start, reserved.start + in_use)
    return [*index, *range(layout.num_initial_counters - HOURS_OF_DAY, layout.num_initial_counters)]
