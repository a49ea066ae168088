"""Fields, sizes and targets of the model, and the columns of a packed block.

A block has `block_events` event slots and `queries_per_block` query slots, shared by the windows of several customers.
The layout is plain data and is saved as JSON with the weights. No Spark and no torch in this module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, Self

from lam_spark.sequences.tokens import FIRST_VALUE

MICROS_PER_DAY = 86_400_000_000
HOURS_OF_WEEK = 168
HOURS_OF_DAY = 24

# Ids are ordered by frequency: only the most frequent ids of a large field have decayed counts.
_MAX_COUNTED_IDS = 64

# Part of the packing digest: raise it when a column of the blocks is added or changes its meaning.
_PACKING_FORMAT = 2

# Splits of a query in a block; 0 marks an empty slot.
SPLIT_IDS = {"train": 1, "validation": 2, "straddling": 3, "test": 4, "score": 5}


@dataclass(frozen=True)
class Target:
    """A quantity that the model predicts for each query.

    Attributes:
        name: name of the target in the configuration.
        kind: `binary`, whether an outcome occurs; `value`, an amount of 0 or more; `next`, which values of `field`
            occur.
        field: the categorical field of a `next` target.
        values: number of the field's values that a `next` target predicts, starting at token id `FIRST_VALUE`.
    """

    name: str
    kind: Literal["binary", "value", "next"] = "binary"
    field: str = ""
    values: int = 1

    @property
    def outputs(self) -> int:
        """Numbers per prediction: one logit; logit, mean and log standard deviation; or one logit per value."""
        return 3 if self.kind == "value" else self.values


@dataclass(frozen=True)
class Layout:
    """Fields and shapes that sequences, blocks and model share.

    Attributes:
        categorical: names of the categorical fields.
        sizes: ids in use of each categorical field (rows of its embedding).
        numeric: names of the numeric fields.
        count_by: categorical field whose values (`counted_ids`) the aggregates count.
        counted_ids: token ids that the aggregates count.
        window_days: time windows of the aggregates, in days before the query.
        block_events: event slots of a block; also the maximum number of events that a query sees.
        queries_per_block: query slots of a block.
        targets: targets, in the order of the label columns.
        value_embedding_dims: dimension of each categorical field's value embeddings, 0 for a field without; an empty
            tuple means no field has any.
        who_fields: fields that describe the customer (role `who`). A value holds until a later event sets another, so
            a query without a value gets the last one (`packing.prepare`).
        half_life_days: half-lives of the decayed counts, in days.
    """

    categorical: tuple[str, ...]
    sizes: tuple[int, ...]
    numeric: tuple[str, ...]
    count_by: str
    counted_ids: tuple[int, ...]
    window_days: tuple[int, ...]
    block_events: int
    queries_per_block: int
    targets: tuple[Target, ...]
    value_embedding_dims: tuple[int, ...] = ()
    who_fields: tuple[str, ...] = ()
    half_life_days: tuple[float, ...] = (3.0, 14.0, 60.0, 240.0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        fields["targets"] = tuple(Target(**target) for target in values["targets"])
        return cls(**fields)

    @property
    def ids_in_use(self) -> dict[str, int]:
        """Categorical field -> its entry of `sizes`."""
        return dict(zip(self.categorical, self.sizes, strict=True))

    @property
    def packing_digest(self) -> str:
        """Digest of everything that determines the content of a block.

        It excludes the number of ids in use, the value embeddings and the order of the targets (label columns are
        found by name).
        """
        parts = self.to_json() | {"format": _PACKING_FORMAT}
        del parts["sizes"], parts["value_embedding_dims"]
        parts["targets"] = sorted(parts["targets"], key=itemgetter("name"))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lookback(self) -> int:
        """Microseconds before a query that count where a customer's history is truncated (`first_counted_event`)."""
        return max(self.window_days, default=0) * MICROS_PER_DAY

    @property
    def value_embedding_shapes(self) -> dict[str, tuple[int, int]]:
        """Categorical field -> (ids, dimension) of its value embeddings, for the fields that have them."""
        dims = self.value_embedding_dims or (0,) * len(self.categorical)
        shapes = zip(self.sizes, dims, strict=True)
        return {name: shape for name, shape in zip(self.categorical, shapes, strict=True) if shape[1]}

    @property
    def aggregate_names(self) -> tuple[str, ...]:
        """Names of a query's aggregates, in the order in which `aggregates` computes them."""
        windows = self.window_days
        return (
            "events_before",
            "history_days",
            *(f"days_since_{self.count_by}_{value}" for value in self.counted_ids),
            *(f"{self.count_by}_{value}_events_{w}d" for w in windows for value in self.counted_ids),
            *(f"{self.count_by}_{value}_groups_{w}d" for w in windows for value in self.counted_ids),
            *(f"{name}_sum_{w}d" for w in windows for name in self.numeric),
            *(f"same_{name}_before" for name in self.categorical),
        )

    @property
    def decayed_count_ids(self) -> dict[str, int]:
        """Categorical field -> maximum number of ids with decayed counts; includes all values of a `next` target.

        Fields that describe the customer are excluded unless a target predicts their values. The numbers do not depend
        on the ids in use, so a growing vocabulary does not change the blocks.
        """
        max_ids = dict.fromkeys(
            (name for name in self.categorical if name not in self.who_fields), _MAX_COUNTED_IDS
        )
        for target in self.targets:
            if target.kind == "next":
                max_ids[target.field] = max(max_ids.get(target.field, 0), FIRST_VALUE + target.values)
        return {name: max_ids[name] for name in self.categorical if name in max_ids}

    @property
    def initial_count_slices(self) -> dict[str, slice]:
        """Categorical field -> slice of its `decayed_count_ids` within the initial counts."""
        ends = itertools.accumulate(self.decayed_count_ids.values())
        return {
            name: slice(end - max_ids, end)
            for (name, max_ids), end in zip(self.decayed_count_ids.items(), ends, strict=True)
        }

    @property
    def num_initial_counters(self) -> int:
        """Initial counts per half-life: those of `initial_count_slices`, then those of the hours of the day."""
        return sum(self.decayed_count_ids.values()) + HOURS_OF_DAY

    @property
    def event_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (NumPy dtype, length) of a block's event slots."""
        length = self.block_events
        return {
            "window": ("int32", length),  # number of the window in the block, from 1; 0 = empty slot
            "customer_index": ("int32", length),  # distinguishes customers; carries no other information
            "known_at": ("int64", length),  # microseconds UTC, the clock of the model
            "log_delay_hours": ("float32", length),  # log of 1 + hours from event_time to known_at
            "hour_of_week": ("int32", length),  # of event_time
            "is_new": ("int32", length),  # 0 if an earlier, overlapping window trains on the event
            **{f"event_{name}": ("int32", length) for name in self.categorical},
            **{f"event_{name}": ("float32", length) for name in self.numeric},  # NaN = missing
        }

    @property
    def query_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (NumPy dtype, length) of a block's query slots."""
        length = self.queries_per_block
        return {
            "query_window": ("int32", length),
            "query_index": ("int32", length),  # the query sees its window's events in slots below this one
            "query_time": ("int64", length),  # microseconds UTC
            "query_hour_of_week": ("int32", length),
            "query_split": ("int32", length),
            "query_row": ("int32", length),  # row number that the caller assigned; -1 = empty slot
            **{f"query_{name}": ("int32", length) for name in self.categorical},
            **{f"query_{name}": ("float32", length) for name in self.numeric},
            **{f"label_{target.name}": ("float32", length) for target in self.targets},  # NaN = no label
            **{name: ("float32", length * values) for name, values in self.values_per_query.items()},
        }

    @property
    def values_per_query(self) -> dict[str, int]:
        """Query column with several numbers per query -> how many: `aggregates` and the labels of `next` targets."""
        labels = {f"label_{target.name}": target.values for target in self.targets if target.kind == "next"}
        return {**labels, "aggregates": len(self.aggregate_names)}

    @property
    def initial_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (NumPy dtype, length): decayed counts at the start of a window that is not a customer's first.

        A block holds at most one such window, because it fills more than half of the block.
        """
        return {
            "initial_window": ("int32", 1),  # number of that window; 0 = none
            "initial_time": ("int64", 1),  # time of the counts, microseconds UTC
            "initial_counts": ("float32", len(self.half_life_days) * self.num_initial_counters),
        }

    @property
    def columns(self) -> dict[str, tuple[str, int]]:
        """All columns of a block."""
        return self.event_columns | self.query_columns | self.initial_columns
