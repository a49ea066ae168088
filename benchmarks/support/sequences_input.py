"""Writes the input of `benchmarks/scale/sequences.py`: four channels of events in Parquet, from a seed."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

CHANNELS = ("app", "web", "shop", "call_centre")
FIRST_DAY, DAYS = np.datetime64("2023-01-01", "us"), 730
MICROS_PER_DAY = 86_400_000_000
_ACTIONS, _ITEMS, _PLACES = 12, 20_000, 300
_CHUNK = 500_000
# Share of all events that belong to the customer with the longest history: one million of twenty.
_LONGEST_SHARE = 0.05


@dataclass(frozen=True)
class Size:
    """Size of the input.

    Attributes:
        customers: number of customers.
        events: events of each channel.
    """

    customers: int
    events: int

    @property
    def total(self) -> int:
        """Events of all channels."""
        return self.events * len(CHANNELS)


def write_input(folder: Path, size: Size, seed: int = 4) -> None:
    """Write `channel_*.parquet` and `allowed.parquet` (the 90 % of customers who opted in)."""
    folder.mkdir(parents=True)
    keys = customer_keys(size.customers, seed)
    opted_in = np.random.default_rng(seed).random(size.customers) < 0.9
    opted_in[0] = True  # the customer with the longest history
    pq.write_table(pa.table({"customer_key": keys.filter(pa.array(opted_in))}), folder / "allowed.parquet")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [pool.submit(_write_channel, folder, name, size, seed) for name in CHANNELS]
        for job in jobs:
            job.result()


def customer_keys(customers: int, seed: int) -> pa.StringArray:
    """Pseudonyms of 32 hex characters."""
    return hex_text(np.random.default_rng([seed, 1]).integers(0, 256, (customers, 16), np.uint8))


def hex_text(values: npt.NDArray[np.uint8]) -> pa.StringArray:
    """Rows of bytes as hex text."""
    digits = np.array([f"{byte:02x}" for byte in range(256)], "S2").view(np.uint16)
    rows, width = values.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * (2 * width)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digits[values].tobytes()))


def draw_events(
    rng: np.random.Generator,
    keys: pa.StringArray,
    customers: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
) -> pa.Table:
    """Events of `customers` (indices into `keys`) at `times` (microseconds UTC), with random fields."""
    count = len(customers)

    def draw_field(kind: str, values: int) -> pa.Array:
        names = pa.array([f"{kind} {number}" for number in range(values)])
        indices = np.minimum((values * rng.random(count) ** 2).astype(np.int64), values - 1)
        return names.take(pa.array(indices))

    seconds = rng.exponential(120, count).round()
    ids = rng.integers(0, 256, (count, 16), np.uint8)
    return pa.table(
        {
            "customer_key": keys.take(pa.array(customers)),
            "event_id": hex_text(ids),
            "event_order": pa.array((ids.view(">u8")[:, 0] >> np.uint64(4)).astype(np.int64)),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "known_at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "action": draw_field("action", _ACTIONS),
            "item": draw_field("item", _ITEMS),
            "place": draw_field("place", _PLACES),
            "amount": rng.gamma(2.0, 20.0, count).round(2),
            "seconds": pa.array(seconds, mask=rng.random(count) < 0.3),
        }
    )


def _write_channel(folder: Path, channel: str, size: Size, seed: int) -> None:
    """Write one channel; rows are roughly ordered by time, since each chunk covers one slice of the two years."""
    rng = np.random.default_rng([seed, 2, CHANNELS.index(channel)])
    keys = customer_keys(size.customers, seed)
    weights = (np.arange(size.customers) + 10.0) ** -0.7
    weights *= (1 - _LONGEST_SHARE) / weights.sum()
    weights[0] += _LONGEST_SHARE
    edges = np.concatenate([[0.0], np.cumsum(weights)])
    edges[-1] = 1.0
    chunks = max(1, size.events // _CHUNK)
    writer = None
    for chunk in range(chunks):
        count = size.events // chunks
        customers = np.searchsorted(edges, rng.random(count), side="right") - 1
        position = (chunk + rng.random(count)) / chunks
        times = FIRST_DAY.astype(np.int64) + (position * DAYS * MICROS_PER_DAY).astype(np.int64)
        table = draw_events(rng, keys, customers, times)
        if writer is None:
            writer = pq.ParquetWriter(folder / f"channel_{channel}.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
