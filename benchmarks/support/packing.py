"""Events a second of forward and backward: packed blocks, padded rows, and padded rows sorted by length.

The histories are those of the synthetic telecom data that training reads: events before the test period, the latest
`model.context_events` of each customer, the calls as queries. Packed: as the snapshot packs. Padded: one customer a
row, as long as the longest of its batch. Bucketed: padded, with customers of like length together. Only real events
count. Three contexts: the configuration's, the default, and one that cuts one history in a thousand.
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

from benchmarks.common import TELECOM_CONF
from benchmarks.support.blocks import make_customer
from benchmarks.support.steps import stack_blocks, step_loss, untrained_model
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
BATCH_ROWS = 32
# Only one customer in a thousand has more events.
NEARLY_WHOLE = 2048
# About as many ids as a field of the telecom data has.
_IDS = 24
_START = int(np.datetime64(START, "us").astype(np.int64))
# Event times and call times of a customer: microseconds UTC, ascending.
History = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
# Layout of a batch's rows, and the batch.
ShapedBatch = tuple[Layout, dict[str, torch.Tensor]]


def telecom_layout(config: Config) -> Layout:
    """Fields and shapes of the telecom configuration."""
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


def draw_histories(config: Config, count: int) -> list[History]:
    """Times of events and calls before the test period, as the telecom generator draws them."""
    assert config.fetch is not None
    data_set = SyntheticDataSet(count, int(config.fetch.arguments["seed"]), dirty_share=0.0)
    end = config.micros(config.periods.test_start)
    histories: list[History] = []
    for number in range(-(-count // CHUNK_SIZE)):
        chunk = draw_chunk(data_set, number)
        rows = [rows for feed, rows in draw_rows(chunk) if feed in CHANNELS.values()]
        owner = np.concatenate([part.owner for part in rows]).astype(np.int64)
        at = _START + np.concatenate([part.at for part in rows]).astype(np.int64) * 1_000_000
        order = np.lexsort((at, owner))
        borders = np.searchsorted(owner[order], np.arange(len(chunk.traits.number) + 1))
        for customer, (first, last) in enumerate(itertools.pairwise(borders)):
            times = at[order[first:last]]
            treated = chunk.queries.at[customer][chunk.queries.treated[customer]]
            calls = _START + treated.astype(np.int64) * 1_000_000
            histories.append((times[times < end], calls[calls < end]))
    return histories


def prepare_all(layout: Layout, histories: Sequence[History]) -> list[PreparedCustomer]:
    """Customers with the latest events that a context holds; field values are random, which costs the same."""
    rng, prepared = np.random.default_rng(0), []
    for times, calls in histories:
        splits = np.full(len(calls), SPLIT_IDS["train"], np.int32)
        customer = make_customer(layout, rng, times[-layout.block_events :], calls, splits)
        prepared.append(prepare(layout, customer))
    return prepared


def packed_batches(layout: Layout, customers: Sequence[PreparedCustomer]) -> list[ShapedBatch]:
    """As many batches of blocks as there are of padded rows, so that a step sees as many events."""
    packer, blocks = Packer(layout), list[Block]()
    for prepared in customers:
        for window in prepared.windows:
            blocks += packer.add_window(prepared, window, with_loss=True)
    blocks += packer.flush()
    size = -(-len(blocks) // -(-len(customers) // BATCH_ROWS))
    return [_batch(layout, blocks[first : first + size]) for first in range(0, len(blocks), size)]


def padded_batches(layout: Layout, customers: Sequence[PreparedCustomer]) -> list[ShapedBatch]:
    """Batches of one customer a row, with no more query slots than a customer of the batch needs."""
    batches = []
    for first in range(0, len(customers), BATCH_ROWS):
        windows = [
            (prepared, window)
            for prepared in customers[first : first + BATCH_ROWS]
            for window in prepared.windows
        ]
        shape = dataclasses.replace(
            layout,
            block_events=max(window.end - window.start for _, window in windows),
            queries_per_block=max(1, *(len(window.queries) for _, window in windows)),
        )
        rows = [empty_block(shape) for _ in windows]
        for row, (prepared, window) in zip(rows, windows, strict=True):
            write_window(shape, row, (0, 0, 1), prepared, window, with_loss=True)
        batches.append(_batch(shape, rows))
    return batches


def _batch(layout: Layout, rows: Sequence[Block]) -> ShapedBatch:
    return layout, as_batch(stack_blocks(layout, rows))


def _events(batches: Sequence[ShapedBatch]) -> int:
    return sum(int((batch["window"] > 0).sum()) for _, batch in batches)


def _slots(batches: Sequence[ShapedBatch]) -> int:
    """Event and query slots, full or empty: what the model computes."""
    return sum(batch["window"].numel() + batch["query_window"].numel() for _, batch in batches)


def _seconds(model: LargeActionModel, batches: Sequence[ShapedBatch]) -> float:
    """Forward and backward of every batch."""
    started = time.perf_counter()
    for layout, batch in batches:
        model.layout = layout  # no weight depends on the length of a row
        model.zero_grad(set_to_none=True)
        step_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def packing(count: int, turns: int) -> dict[str, float]:
    """Figures at the configuration's context, and with a suffix `_at_N` at the longer ones."""
    config = load_config(TELECOM_CONF)
    layout = telecom_layout(config)
    histories = draw_histories(config, count)
    figures = _compare(config, layout, histories, turns)
    for events in (ModelConfig.model_fields["context_events"].default, NEARLY_WHOLE):
        queries = layout.queries_per_block * events // layout.block_events
        longer = dataclasses.replace(layout, block_events=events, queries_per_block=queries)
        longer_figures = _compare(config, longer, histories, turns)
        figures |= {f"{key}_at_{events}": value for key, value in longer_figures.items()}
    return figures


def _compare(config: Config, layout: Layout, histories: Sequence[History], turns: int) -> dict[str, float]:
    """The three layouts in turns: the same customers, events, queries and model."""
    customers = prepare_all(layout, histories)
    by_length = sorted(customers, key=lambda prepared: len(prepared.customer.events["known_at"]))
    batches = {
        "packed": packed_batches(layout, customers),
        "padded": padded_batches(layout, customers),
        "bucketed": padded_batches(layout, by_length),
    }
    events = _events(batches["packed"])
    assert all(_events(own) == events for own in batches.values()), "expected the same events in each"
    size = ModelSize(config.model.d_model, config.model.n_layers, config.model.n_heads, 0.0)
    model = untrained_model(layout, size)
    for own in batches.values():
        _seconds(model, own[:2])
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(turns):
        for name, own in batches.items():
            seconds[name].append(_seconds(model, own))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{events / len(histories):.1f} events a customer, at most {layout.block_events}")
    for name, own in batches.items():
        speed, share = events / median[name], events / _slots(own)
        print(f"{name}: {speed:,.0f} events/s, {share:.0%} of the slots are events", flush=True)
    return {
        "packed_events_per_second": events / median["packed"],
        "packed_vs_padded": median["padded"] / median["packed"],
        "packed_vs_bucketed": median["bucketed"] / median["packed"],
        "packed_slots_used": events / _slots(batches["packed"]),
        "padded_slots_used": events / _slots(batches["padded"]),
        "bucketed_slots_used": events / _slots(batches["bucketed"]),
    }
