"""What a customer is used to: faded counts of all that happened before a query, by value and by hour of the day.

Attention answers what came when and after what; how often something happens over weeks or months it has to learn from
many examples, and trees on hand-made counts know it from the start. These counts are made inside the model from the
events of the block; of a history that began before the block, the counts until then come with it (`initial.py`).

Shapes: B blocks, T event slots, Q query slots, H half-lives, R counted rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lam_spark.training_data.layout import HOURS_OF_DAY, MICROS_PER_DAY, Layout


def field_rows(layout: Layout) -> dict[str, slice]:
    """Categorical field -> the rows that count its ids in use, from 0 on (`Layout.decayed_count_ids`)."""
    ids = dict(zip(layout.categorical, layout.sizes, strict=True))
    rows, first = {}, 0
    for name, most in layout.decayed_count_ids.items():
        rows[name] = slice(first, first + min(ids[name], most))
        first = rows[name].stop
    return rows


def counted_rows(layout: Layout) -> int:
    """R: the rows of all fields, then those of the hours of the day."""
    return HOURS_OF_DAY + sum(int(rows.stop - rows.start) for rows in field_rows(layout).values())


class DecayedCounts(nn.Module):
    """Nothing in here is learned.

    Args:
        layout: fields, shapes and half-lives.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._rows, self._end = field_rows(layout), counted_rows(layout)
        self.half_life_days: Tensor
        half_lives = torch.tensor(layout.half_life_days, dtype=torch.float32)
        self.register_buffer("half_life_days", half_lives, persistent=False)
        self._initial_index: Tensor
        self.register_buffer("_initial_index", torch.tensor(_initial_index(layout)), persistent=False)

    def forward(self, batch: Mapping[str, Tensor], seen_BQT: Tensor) -> Tensor:
        """(B, Q, H, R): log of one plus the faded counts."""
        ago_BQT = (batch["query_time"][:, :, None] - batch["event_time"][:, None]).float() / MICROS_PER_DAY
        fade_BQHT = torch.exp2(-ago_BQT.clamp_min(0)[:, :, None] / self.half_life_days[:, None])
        fade_BQHT = fade_BQHT * seen_BQT[:, :, None]
        # One product a block: with the half-lives beside the blocks, what happened would be copied for each of them.
        counted = fade_BQHT.flatten(1, 2) @ self._happened(batch)
        counted_BQHR = counted.view(*fade_BQHT.shape[:3], self._end)
        return (counted_BQHR + self._initial(batch)).log1p()

    def _initial(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, Q, H, R): what the events before a query's window count when it is asked."""
        ago_BQ = (batch["query_time"] - batch["initial_time"]).float() / MICROS_PER_DAY
        own_BQ = (batch["query_window"] > 0) & (batch["query_window"] == batch["initial_window"])
        fade_BQH = torch.exp2(-ago_BQ.clamp_min(0)[..., None] / self.half_life_days) * own_BQ[..., None]
        counts_BHC = batch["initial_counts"].view(len(fade_BQH), len(self.half_life_days), -1)
        counts_BHR = counts_BHC[..., self._initial_index]
        initial: Tensor = fade_BQH[..., None] * counts_BHR[:, None]
        return initial

    def _happened(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T, R): 1 at the id of each field and at the hour."""
        rows = []
        for name, counted in self._rows.items():
            row = batch[f"event_{name}"].long() + counted.start
            rows.append(torch.where(row < counted.stop, row, self._end))
        rows.append(batch["hour_of_week"].long() % HOURS_OF_DAY + self._end - HOURS_OF_DAY)
        at_BTF = torch.stack(rows, dim=-1)
        # One row more than are given: for what is not counted.
        happened = torch.zeros(*at_BTF.shape[:2], self._end + 1, device=at_BTF.device)
        return happened.scatter_(2, at_BTF, 1.0)[..., : self._end]


def _initial_index(layout: Layout) -> list[int]:
    """(R,): the place of each row among the initial counts, which have room for ids that are not in use yet."""
    places: list[int] = []
    rows = field_rows(layout)
    for name, place in layout.initial_count_slices.items():
        places += range(place.start, place.start + int(rows[name].stop - rows[name].start))
    return [*places, *range(layout.initial_count_rows - HOURS_OF_DAY, layout.initial_count_rows)]
