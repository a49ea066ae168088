"""Made-up blocks for the benchmarks of training, always the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lam_spark.dataset.layout import MICROS_PER_DAY, Layout
from lam_spark.dataset.packing import Block, Customer, Packer, prepare

DAYS = 300
_ASKED = np.array([100, 180, 220, 280], dtype=np.int64) * MICROS_PER_DAY
_SPLITS = np.array([1, 1, 2, 2], np.int32)


def customers(layout: Layout, rng: np.random.Generator) -> Iterator[Customer]:
    """Customers whose next `item` follows from the last one, and who reply to what they just looked at."""
    sizes = dict(zip(layout.categorical, layout.sizes, strict=True))
    while True:
        events = int(rng.integers(60, 500))
        times = np.sort(rng.integers(0, DAYS * MICROS_PER_DAY, events))
        fields = {name: rng.integers(3, size, events).astype(np.int32) for name, size in sizes.items()}
        fields["item"] = (3 + np.cumsum(rng.integers(1, 4, events)) % 40).astype(np.int32)
        before = np.searchsorted(times, _ASKED) - 1
        yield Customer(
            {
                "event_time": times,
                "hour_of_week": (times // 3_600_000_000 % 168).astype(np.int32),
                **fields,
                **{name: rng.gamma(2, 5, events).astype(np.float32) for name in layout.numeric},
            },
            {
                "query_time": _ASKED,
                "query_hour_of_week": np.zeros(4, np.int32),
                "query_split": _SPLITS,
                "query_row": np.full(4, -1, np.int32),
                **{f"query_{name}": np.full(4, 3, np.int32) for name in layout.categorical},
                **{f"query_{name}": np.full(4, np.nan, np.float32) for name in layout.numeric},
                "label_reply": (fields["item"][before.clip(0)] % 2).astype(np.float32),
            },
        )


def blocks(layout: Layout, count: int) -> list[Block]:
    """So many full blocks."""
    packer, made = Packer(layout), []
    for customer in customers(layout, np.random.default_rng(0)):
        prepared = prepare(layout, customer)
        for segment in prepared.segments:
            made += packer.place(prepared, segment, with_loss=True)
        if len(made) >= count:
            return made[:count]
    raise AssertionError  # there is no last customer
