"""Events a second of forward and backward: histories packed into blocks, and one customer a row, padded.

The histories are those of the telecom world that training reads: what happened before the test period, the latest
`model.context_events` of each customer, with the calls as questions. Packed is as the snapshot packs. Padded is what
one writes without a packer: customers as they come, as long as the longest of their batch, no more question slots
than anyone there needs. Bucketed is the same with customers of like length together. Only real events count.

Three times: as `conf/telecom.yaml` cuts histories; at the context that a configuration has which says nothing of it,
where few are cut; and at one where one customer in a thousand is.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from blocks import customer
from common import REPOSITORY
from steps import loss, stacked, untrained

from lam_spark.config import Config, ModelConfig
from lam_spark.config.load import load_config
from lam_spark.datasets.telecom.feeds import CHANNELS
from lam_spark.datasets.telecom.parameters import CHUNK_SIZE, START, SyntheticDataSet
from lam_spark.datasets.telecom.rows import draw_chunk, draw_rows
from lam_spark.model.artifact import as_batch
from lam_spark.model.transformer import LargeActionModel, ModelSize
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.packing import (
    Block,
    Packer,
    PreparedCustomer,
    empty_block,
    prepare,
    write_window,
)

# Customers a batch.
ROWS = 32
# Events that all but one customer in a thousand stay below.
NEARLY_WHOLE = 2048
# About as many ids as a field of that world has.
_IDS = 24
_START = int(np.datetime64(START, "us").astype(np.int64))
# When a customer did something, and when they were called: microseconds UTC, ascending.
Drawn = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
# The layout of its rows, and the batch.
Shaped = tuple[Layout, dict[str, torch.Tensor]]


def layout_of(config: Config) -> Layout:
    """The telecom world's fields and shapes."""
    fields = {
        kind: [n for n, f in config.fields.items() if f.kind == kind] for kind in ("categorical", "numeric")
    }
    return Layout(
        categorical=tuple(fields["categorical"]),
        sizes=(_IDS,) * len(fields["categorical"]),
        numeric=tuple(fields["numeric"]),
        count_by=config.model.count_by,
        counted_ids=tuple(range(3, _IDS)),
        window_days=config.model.window_days,
        block_events=config.model.context_events,
        queries_per_block=config.snapshot.queries_per_block,
        targets=(Target("reply"),),
    )


def drawn(config: Config, count: int) -> list[Drawn]:
    """Customers' times and calls before the test period, as the telecom world draws them."""
    assert config.fetch is not None
    data_set = SyntheticDataSet(count, int(config.fetch.arguments["seed"]), 0.0)
    end = config.micros(config.split.test_start)
    people: list[Drawn] = []
    for number in range(-(-count // CHUNK_SIZE)):
        chunk = draw_chunk(data_set, number)
        rows = [rows for feed, rows in draw_rows(chunk) if feed in CHANNELS.values()]
        owner = np.concatenate([part.owner for part in rows]).astype(np.int64)
        at = _START + np.concatenate([part.at for part in rows]).astype(np.int64) * 1_000_000
        order = np.lexsort((at, owner))
        borders = np.searchsorted(owner[order], np.arange(len(chunk.traits.number) + 1))
        for one, (first, last) in enumerate(itertools.pairwise(borders)):
            times = at[order[first:last]]
            asked = _START + chunk.queries.at[one][chunk.queries.treated[one]].astype(np.int64) * 1_000_000
            people.append((times[times < end], asked[asked < end]))
    return people


def histories(layout: Layout, people: Sequence[Drawn]) -> list[PreparedCustomer]:
    """The latest events that a context holds; what was done is made up, it costs the same."""
    rng, made = np.random.default_rng(0), []
    for times, asked in people:
        splits = np.full(len(asked), SPLIT_IDS["train"], np.int32)
        made.append(prepare(layout, customer(layout, rng, times[-layout.block_events :], asked, splits)))
    return made


def packed(layout: Layout, made: Sequence[PreparedCustomer]) -> list[Shaped]:
    """As many batches of blocks as there are of padded rows, so that a step learns from as much."""
    packer, blocks = Packer(layout), list[Block]()
    for prepared in made:
        for window in prepared.windows:
            blocks += packer.add_window(prepared, window, with_loss=True)
    blocks += packer.flush()
    size = -(-len(blocks) // -(-len(made) // ROWS))
    return [_shaped(layout, blocks[first : first + size]) for first in range(0, len(blocks), size)]


def padded(layout: Layout, made: Sequence[PreparedCustomer]) -> list[Shaped]:
    """Batches of one customer a row."""
    batches = []
    for first in range(0, len(made), ROWS):
        chosen = [
            (prepared, window) for prepared in made[first : first + ROWS] for window in prepared.windows
        ]
        shape = dataclasses.replace(
            layout,
            block_events=max(window.end - window.start for _, window in chosen),
            queries_per_block=max(1, *(len(window.queries) for _, window in chosen)),
        )
        rows = [empty_block(shape) for _ in chosen]
        for row, (prepared, window) in zip(rows, chosen, strict=True):
            write_window(shape, row, (0, 0, 1), prepared, window, with_loss=True)
        batches.append(_shaped(shape, rows))
    return batches


def _shaped(layout: Layout, rows: Sequence[Block]) -> Shaped:
    return layout, as_batch(stacked(layout, rows))


def _events(batches: Sequence[Shaped]) -> int:
    return sum(int((batch["window"] > 0).sum()) for _, batch in batches)


def _slots(batches: Sequence[Shaped]) -> int:
    """Of events and questions, full or empty: what the model computes."""
    return sum(batch["window"].numel() + batch["query_window"].numel() for _, batch in batches)


def _seconds(model: LargeActionModel, batches: Sequence[Shaped]) -> float:
    """Forward and backward of every batch."""
    started = time.perf_counter()
    for layout, batch in batches:
        model.layout = layout  # no weight depends on the length of a row
        model.zero_grad(set_to_none=True)
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def packing(count: int, turns: int) -> dict[str, float]:
    """Figures at the configuration's context, and with its length in their names at longer ones."""
    config = load_config(REPOSITORY / "conf/telecom.yaml")
    layout = layout_of(config)
    people = drawn(config, count)
    figures = _packing(config, layout, people, turns)
    for events in (ModelConfig.model_fields["context_events"].default, NEARLY_WHOLE):
        queries = layout.queries_per_block * events // layout.block_events
        longer = dataclasses.replace(layout, block_events=events, queries_per_block=queries)
        found = _packing(config, longer, people, turns)
        figures |= {f"{key}_at_{events}": value for key, value in found.items()}
    return figures


def _packing(config: Config, layout: Layout, people: Sequence[Drawn], turns: int) -> dict[str, float]:
    """Packed beside padded and bucketed, in turns: the same customers, events, questions and model."""
    made = histories(layout, people)
    by_length = sorted(made, key=lambda prepared: len(prepared.customer.events["event_time"]))
    ways = {
        "packed": packed(layout, made),
        "padded": padded(layout, made),
        "bucketed": padded(layout, by_length),
    }
    events = _events(ways["packed"])
    assert all(_events(batches) == events for batches in ways.values()), "the same events"
    model = untrained(
        layout, ModelSize(config.model.d_model, config.model.n_layers, config.model.n_heads, 0.0)
    )
    for batches in ways.values():
        _seconds(model, batches[:2])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, batches in ways.items():
            seconds[way].append(_seconds(model, batches))
    median = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"{events / len(people):.1f} events a customer of at most {layout.block_events}")
    for way, batches in ways.items():
        speed, share = events / median[way], events / _slots(batches)
        print(f"{way}: {speed:,.0f} events/s, {share:.0%} of the slots are events", flush=True)
    return {
        "packed_events_a_second": events / median["packed"],
        "packed_vs_padded": median["padded"] / median["packed"],
        "packed_vs_bucketed": median["bucketed"] / median["packed"],
        "packed_slots_used": events / _slots(ways["packed"]),
        "padded_slots_used": events / _slots(ways["padded"]),
        "bucketed_slots_used": events / _slots(ways["bucketed"]),
    }
