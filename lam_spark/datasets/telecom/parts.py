"""One part of the world: its customers' raw rows in the files of every feed, its truth, and what there is to count.

One chunk of customers is in memory at a time, and of its raw rows one batch.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np

from lam_spark.datasets.telecom import defects
from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, STATEMENTS, Feed, read_back, write_times
from lam_spark.datasets.telecom.files import FeedFile, TruthFile
from lam_spark.datasets.telecom.identities import NOBODY, member, spell, unlinked
from lam_spark.datasets.telecom.parameters import DAY, World
from lam_spark.datasets.telecom.rows import Chunk, Rows, draw_chunk, draw_rows
from lam_spark.datasets.telecom.truth import count_cells, customer_rows, query_rows

# Rows come in two deliveries, one of each half of the year; some of the first half's are late.
DELIVERIES = ("2024-h1", "2024-h2")
_SECOND_HALF = 182 * DAY
_LATE = 0.02
_BATCH = 100_000  # rows

Counts = Counter[tuple[str, str]]
Files = dict[str, list[FeedFile]]


def write_part(world: World, part: int, raw: Path, truth: Path) -> Counts:
    """Write the files of one part, and count.

    Returns:
        (feed, what) -> rows; of the feed `queries`, selected queries a cell (`truth.count_cells`).
    """
    counts: Counts = Counter()
    with contextlib.ExitStack() as stack:
        files = {
            feed.name: [
                stack.enter_context(FeedFile(feed, raw / feed.name / f"{name}-{part:05d}.{feed.suffix}"))
                for name in DELIVERIES
            ]
            for feed in (*CHANNELS.values(), *LINKS.values(), STATEMENTS)
        }
        customers, queries = (
            stack.enter_context(TruthFile(truth / name / f"part-{part:05d}.parquet"))
            for name in ("customers", "queries")
        )
        for number in world.chunks(part):
            chunk = draw_chunk(world, number)
            writer = _ChunkWriter(chunk, files, counts)
            for feed, rows in draw_rows(chunk):
                writer.write(feed, rows)
            customers.write(customer_rows(chunk.traits, chunk.ids, chunk.consent, writer.attributed))
            queries.write(query_rows(chunk.traits, chunk.queries))
            counts.update(count_cells(chunk.traits, chunk.queries))
    return counts


class _ChunkWriter:
    """Writes a chunk's rows as raw rows, dirty ones among them, and counts.

    Attributes:
        attributed: channel -> (n,) the events that are each customer's by the rules.
    """

    def __init__(self, chunk: Chunk, files: Files, counts: Counts) -> None:
        self.attributed: dict[str, Array] = {}
        self._chunk = chunk
        self._files = files
        self._counts = counts
        self._rng = chunk.random("dirt")
        self._keys = 0

    def write(self, feed: Feed, rows: Rows) -> None:
        """Write the rows of a feed into its two deliveries."""
        if feed.name in CHANNELS:
            found = rows.found[rows.found != NOBODY]
            self.attributed[feed.name] = np.bincount(found, minlength=len(self._chunk.traits.number))
        for start in range(0, len(rows.owner), _BATCH):
            self._write_batch(feed, rows.part(slice(start, start + _BATCH)))

    def _write_batch(self, feed: Feed, rows: Rows) -> None:
        rng, count, first = self._rng, len(rows.owner), self._chunk.first
        held = dict(rows.values) | {"time": write_times(feed.clock, rows.at), "key": self._new_keys(count)}
        held["id"] = member(first + rows.owner) if rows.number is None else spell(feed.kind, rows.number)
        if feed.whole:
            held["number"] = held["number"].astype(np.int64).astype(object)
        columns = {name: held[holds] for name, holds in feed.columns.items()}
        share = 0.0 if feed is STATEMENTS else self._chunk.world.dirty_share

        def never_linked(positions: Array) -> Array:
            return spell(feed.kind, unlinked(first, rows.owner[positions]))

        soiled = defects.soil(rng, feed, columns, share, never_linked, self._new_keys)

        second = (rows.at >= _SECOND_HALF) | (rng.random(count) < _LATE)
        delivery = second[soiled.made_after] ^ (soiled.kind == defects.AGAIN_ELSEWHERE)
        order = rng.permutation(len(delivery))
        for i, file in enumerate(self._files[feed.name]):
            chosen = order[delivery[order] == bool(i)]
            file.write({name: values[chosen] for name, values in soiled.columns.items()}, soiled.cut[chosen])
        self._count(feed, rows, soiled.kind)

    def _new_keys(self, count: int) -> Array:
        start, chunk = self._keys, self._chunk.chunk
        self._keys += count
        return np.array([f"{chunk:05d}-{i:07d}" for i in range(start, start + count)], dtype=object)

    def _count(self, feed: Feed, rows: Rows, kind: Array) -> None:
        resolved = int((rows.found != NOBODY).sum())
        counted: Counter[str] = Counter(
            rows_in=len(kind),
            resolved=resolved,
            unresolved=len(rows.owner) - resolved,
            hour_shown_twice=int((read_back(feed, rows.at) != rows.at).sum()),
        )
        for name, number in Counter(kind[len(rows.owner) :].tolist()).items():
            outcome = defects.outcome(feed, name)
            counted.update({outcome: number, f"dirt: {name}": number})
            if outcome == defects.QUARANTINED:
                counted[f"refused: {defects.reason(feed, name)}"] += number
        self._counts.update({(feed.name, name): number for name, number in counted.items()})
