"""What the model reads: the fields, their sizes, and the columns of a packed block.

A block is `block_events` event slots and `queries_per_block` query slots that several customers' windows
share. Plain data, saved as JSON beside the weights; no Spark and no torch in here.
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

# Ids follow the frequency of their values: of a field with more, decayed_counts are of the commonest.
_MOST_COUNTED_IDS = 64

# Splits of a query in a block. 0 marks an empty slot.
SPLIT_IDS = {"train": 1, "validation": 2, "straddling": 3, "test": 4, "score": 5}


@dataclass(frozen=True)
class Target:
    """A question that the model answers.

    Attributes:
        name: of the target in the configuration.
        kind: `binary`, does it happen; `value`, how much (0 or more); `next`, which values of `field` occur.
        field: of `next`: a categorical field.
        values: of `next`: how many of the field's values are asked for, from the first token id of a value on.
    """

    name: str
    kind: Literal["binary", "value", "next"] = "binary"
    field: str = ""
    values: int = 1

    @property
    def outputs(self) -> int:
        """Numbers that an answer consists of: a logit; a logit, a mean and a log deviation; a logit a value."""
        return 3 if self.kind == "value" else self.values


@dataclass(frozen=True)
class Layout:
    """Fields and shapes that sequences, blocks and model agree on.

    Attributes:
        categorical: field names; `sizes` gives each one's ids in use (rows of its embedding).
        numeric: field names.
        count_by: categorical field whose values (`counted_ids`) the aggregates count.
        window_days: windows of the aggregates, before the query.
        block_events: event slots of a block; also the most events that a query sees.
        queries_per_block: query slots of a block.
        targets: the questions, in the order of the label columns.
        value_embedding_dims: of the fixed vectors of each categorical field's values, 0 where it has none; empty: no field.
        half_life_days: of decayed_counts: an event counts as one, after so many days as a half.
        who: those of the fields that say who the customer is. What an event says of them holds until another says
            otherwise, so a query that does not say them is asked of what was last said (`packing.prepare`).
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
    who: tuple[str, ...] = ()
    half_life_days: tuple[float, ...] = (3.0, 14.0, 60.0, 240.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        tupled: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        tupled["targets"] = tuple(Target(**target) for target in values["targets"])
        return cls(**tupled)

    @property
    def ids_in_use(self) -> dict[str, int]:
        """`sizes` by the fields' names."""
        return dict(zip(self.categorical, self.sizes, strict=True))

    @property
    def packing(self) -> str:
        """Digest of what decides what a block holds.

        Not among it: how many ids are in use, vectors, and the targets' order (a label's column has its name).
        """
        parts = self.to_json()
        del parts["sizes"], parts["value_embedding_dims"]
        parts["targets"] = sorted(parts["targets"], key=itemgetter("name"))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def reach(self) -> int:
        """How far back (microseconds) an answer looks where a customer's oldest events are cut off (`first_known`)."""
        return max(self.window_days, default=0) * MICROS_PER_DAY

    @property
    def vectors(self) -> dict[str, tuple[int, int]]:
        """Categorical field -> (ids, width) of its values' fixed vectors, for the fields that have them."""
        widths = self.value_embedding_dims or (0,) * len(self.categorical)
        shapes = zip(self.sizes, widths, strict=True)
        return {name: shape for name, shape in zip(self.categorical, shapes, strict=True) if shape[1]}

    @property
    def aggregate_names(self) -> tuple[str, ...]:
        """Names of the aggregates of a query, in the order that `aggregates` computes them."""
        windows = self.window_days
        return (
            "events_before",
            "days_known",
            *(f"days_since_{self.count_by}_{value}" for value in self.counted_ids),
            *(f"{self.count_by}_{value}_events_{w}d" for w in windows for value in self.counted_ids),
            *(f"{self.count_by}_{value}_groups_{w}d" for w in windows for value in self.counted_ids),
            *(f"{name}_sum_{w}d" for w in windows for name in self.numeric),
            *(f"same_{name}_before" for name in self.categorical),
        )

    @property
    def decayed_count_ids(self) -> dict[str, int]:
        """Categorical field -> how many of its ids decayed_counts are of, at most; all that a `next` target asks for.

        Who somebody is, is no decayed count: those fields are left out, unless a target asks for their values. However many
        ids are in use: a vocabulary that grows leaves the blocks as they are.
        """
        most = dict.fromkeys((name for name in self.categorical if name not in self.who), _MOST_COUNTED_IDS)
        for target in self.targets:
            if target.kind == "next":
                most[target.field] = max(most.get(target.field, 0), FIRST_VALUE + target.values)
        return {name: most[name] for name in self.categorical if name in most}

    @property
    def initial_count_slices(self) -> dict[str, slice]:
        """Categorical field -> where the counts of its `decayed_count_ids` stand among the initial ones."""
        ends = itertools.accumulate(self.decayed_count_ids.values())
        return {
            name: slice(end - most, end)
            for (name, most), end in zip(self.decayed_count_ids.items(), ends, strict=True)
        }

    @property
    def initial_count_rows(self) -> int:
        """How many counts a half-life are initial over: `initial_count_slices`, then the hours of the day."""
        return sum(self.decayed_count_ids.values()) + HOURS_OF_DAY

    @property
    def event_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (numpy dtype, length): event slots of a block."""
        length = self.block_events
        return {
            "window": ("int32", length),  # 0 = empty slot, 1, 2, ... = a customer's window
            "owner": ("int32", length),  # tells customers apart, and says nothing else of them
            "event_time": ("int64", length),  # microseconds UTC
            "hour_of_week": ("int32", length),
            "is_new": ("int32", length),  # 0 where an overlapping earlier window already trained on it
            **{f"event_{name}": ("int32", length) for name in self.categorical},
            **{f"event_{name}": ("float32", length) for name in self.numeric},  # NaN = missing
        }

    @property
    def query_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (numpy dtype, length): query slots of a block."""
        length = self.queries_per_block
        return {
            "query_window": ("int32", length),
            "query_index": ("int32", length),  # sees the window's events at slots below this one
            "query_time": ("int64", length),
            "query_hour_of_week": ("int32", length),
            "query_split": ("int32", length),
            "query_row": ("int32", length),  # where the caller finds it again; -1 = empty slot
            **{f"query_{name}": ("int32", length) for name in self.categorical},
            **{f"query_{name}": ("float32", length) for name in self.numeric},
            **{f"label_{target.name}": ("float32", length) for target in self.targets},  # NaN = not asked
            **{name: ("float32", length * inner) for name, inner in self.wide.items()},
        }

    @property
    def wide(self) -> dict[str, int]:
        """Columns with several numbers a query -> how many."""
        nexts = {f"label_{target.name}": target.values for target in self.targets if target.kind == "next"}
        return {**nexts, "aggregates": len(self.aggregate_names)}

    @property
    def initial_columns(self) -> dict[str, tuple[str, int]]:
        """Column -> (numpy dtype, length): the decayed_counts from before a window that does not begin at the beginning.

        Of one window: such a one fills more than half a block.
        """
        return {
            "initial_window": ("int32", 1),  # 0 = there is none
            "initial_time": ("int64", 1),  # when the counts were as they are
            "initial_counts": ("float32", len(self.half_life_days) * self.initial_count_rows),
        }

    @property
    def columns(self) -> dict[str, tuple[str, int]]:
        """All columns of a block."""
        return self.event_columns | self.query_columns | self.initial_columns
