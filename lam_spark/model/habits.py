"""What a customer is used to: faded counts of all that a query sees, by value and by hour of the day.

Attention answers what came when and after what; how often something happens over weeks or months it has to learn from
many examples, and trees on hand-made counts know it from the start. These counts are made inside the model, from the
events of the block alone, so that no column of the snapshot is needed for them.

Shapes: B blocks, T event slots, Q query slots, H half-lives, R counted rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lam_spark.dataset.layout import MICROS_PER_DAY, Layout
from lam_spark.tokens import FIRST_VALUE

HOURS_OF_DAY = 24
# Ids follow the frequency of their values: of a field with more, the commonest are counted.
_MOST_IDS = 64


def field_rows(layout: Layout) -> dict[str, slice]:
    """Categorical field -> the rows that count its ids, from 0 on; all that a `next` target asks for are among them.

    Who somebody is, is no habit: those fields are left out, unless a target asks for their values.
    """
    most = dict.fromkeys((name for name in layout.categorical if name not in layout.who), _MOST_IDS)
    for target in layout.targets:
        if target.kind == "next":
            most[target.field] = max(most.get(target.field, 0), FIRST_VALUE + target.values)
    rows, first = {}, 0
    for name, ids in zip(layout.categorical, layout.sizes, strict=True):
        if name in most:
            rows[name] = slice(first, first + min(ids, most[name]))
            first = rows[name].stop
    return rows


def counted_rows(layout: Layout) -> int:
    """R: the rows of all fields, then those of the hours of the day."""
    return HOURS_OF_DAY + sum(int(rows.stop - rows.start) for rows in field_rows(layout).values())


class Habits(nn.Module):
    """Nothing in here is learned.

    Args:
        layout: fields and shapes.
        half_life_days: an event counts as one, after so many days as a half.
    """

    def __init__(self, layout: Layout, half_life_days: Sequence[float]) -> None:
        super().__init__()
        self._rows, self._end = field_rows(layout), counted_rows(layout)
        self.half_life_days: Tensor
        self.register_buffer(
            "half_life_days", torch.tensor(half_life_days, dtype=torch.float32), persistent=False
        )

    def forward(self, batch: Mapping[str, Tensor], seen_BQT: Tensor) -> Tensor:
        """(B, Q, H, R): log of one plus the faded counts."""
        ago_BQT = (batch["query_time"][:, :, None] - batch["event_time"][:, None]).float() / MICROS_PER_DAY
        fade_BQHT = torch.exp2(-ago_BQT.clamp_min(0)[:, :, None] / self.half_life_days[:, None])
        fade_BQHT = fade_BQHT * seen_BQT[:, :, None]
        # One product a block: with the half-lives beside the blocks, what happened would be copied for each of them.
        counted = fade_BQHT.flatten(1, 2) @ self._happened(batch)
        return counted.log1p().view(*fade_BQHT.shape[:3], self._end)

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
