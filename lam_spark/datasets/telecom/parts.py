"""One part of the data set: raw files of its customers, their ground truth, and the expected counts.

Memory: one chunk of customers and one batch of its raw rows at a time.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np

from lam_spark.datasets.telecom import defects
from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.feeds import (
    CHANNELS,
    LINKS,
    STATEMENTS,
    Feed,
    format_times,
    ingested_times,
)
from lam_spark.datasets.telecom.files import FeedFile, GroundTruthFile
from lam_spark.datasets.telecom.ground_truth import count_cells, customer_rows, query_rows
from lam_spark.datasets.telecom.identities import UNASSIGNED, format_ids, member_numbers, never_linked_ids
from lam_spark.datasets.telecom.parameters import DAY, SyntheticDataSet
from lam_spark.datasets.telecom.rows import Chunk, Rows, draw_chunk, draw_rows

# Rows arrive in two files, one per half-year; some rows of the first half arrive late.
FILE_NAMES = ("2024-h1", "2024-h2")
_SECOND_HALF = 182 * DAY
_LATE_SHARE = 0.02
_BATCH = 100_000  # rows

Counts = Counter[tuple[str, str]]
Files = dict[str, list[FeedFile]]


def write_part(data_set: SyntheticDataSet, part: int, raw: Path, truth: Path) -> Counts:
    """Write the files of one part and count its rows.

    Returns:
        (feed, count name) -> rows. Under the feed name `queries`: selected queries per cell
        (`ground_truth.count_cells`).
    """
    counts: Counts = Counter()
    with contextlib.ExitStack() as stack:
        files = {
            feed.name: [
                stack.enter_context(FeedFile(feed, raw / feed.name / f"{name}-{part:05d}.{feed.suffix}"))
                for name in FILE_NAMES
            ]
            for feed in (*CHANNELS.values(), *LINKS.values(), STATEMENTS)
        }
        customers, queries = (
            stack.enter_context(GroundTruthFile(truth / name / f"part-{part:05d}.parquet"))
            for name in ("customers", "queries")
        )
        for number in data_set.chunks(part):
            chunk = draw_chunk(data_set, number)
            writer = _ChunkWriter(chunk, files, counts)
            for feed, rows in draw_rows(chunk):
                writer.write(feed, rows)
            customers.write(customer_rows(chunk.traits, chunk.ids, chunk.consent, writer.resolved_events))
            queries.write(query_rows(chunk.traits, chunk.queries))
            counts.update(count_cells(chunk.traits, chunk.queries))
    return counts


class _ChunkWriter:
    """Writes a chunk's rows with injected defects, and counts them.

    Attributes:
        resolved_events: channel -> (n,) events that identity resolution assigns to each customer.
    """

    def __init__(self, chunk: Chunk, files: Files, counts: Counts) -> None:
        self.resolved_events: dict[str, Array] = {}
        self._chunk = chunk
        self._files = files
        self._counts = counts
        self._rng = chunk.random("defects")
        self._keys = 0

    def write(self, feed: Feed, rows: Rows) -> None:
        """Write the rows of a feed into its two files."""
        if feed.name in CHANNELS:
            resolved = rows.resolved[rows.resolved != UNASSIGNED]
            self.resolved_events[feed.name] = np.bincount(resolved, minlength=len(self._chunk.traits.number))
        for start in range(0, len(rows.owner), _BATCH):
            self._write_batch(feed, rows.part(slice(start, start + _BATCH)))

    def _write_batch(self, feed: Feed, rows: Rows) -> None:
        rng, count, first = self._rng, len(rows.owner), self._chunk.first
        values = dict(rows.values) | {
            "time": format_times(feed.clock, rows.at),
            "key": self._new_keys(count),
        }
        values["id"] = (
            member_numbers(first + rows.owner)
            if rows.id_number is None
            else format_ids(feed.id_kind, rows.id_number)
        )
        if feed.integer_column:
            values["number"] = values["number"].astype(np.int64).astype(object)
        columns = {name: values[role] for name, role in feed.columns.items()}
        share = 0.0 if feed is STATEMENTS else self._chunk.data_set.dirty_share

        def never_linked(positions: Array) -> Array:
            return format_ids(feed.id_kind, never_linked_ids(first, rows.owner[positions]))

        raw = defects.inject_defects(rng, feed, columns, share, never_linked, self._new_keys)

        second = (rows.at >= _SECOND_HALF) | (rng.random(count) < _LATE_SHARE)
        in_second_file = second[raw.source_row] ^ (raw.defect == defects.DUPLICATE_IN_OTHER_FILE)
        order = rng.permutation(len(in_second_file))
        for i, file in enumerate(self._files[feed.name]):
            chosen = order[in_second_file[order] == bool(i)]
            file.write({name: column[chosen] for name, column in raw.columns.items()}, raw.truncated[chosen])
        self._count(feed, rows, raw.defect)

    def _new_keys(self, count: int) -> Array:
        start, chunk = self._keys, self._chunk.chunk
        self._keys += count
        return np.array([f"{chunk:05d}-{i:07d}" for i in range(start, start + count)], dtype=object)

    def _count(self, feed: Feed, rows: Rows, defect: Array) -> None:
        resolved = int((rows.resolved != UNASSIGNED).sum())
        counts: Counter[str] = Counter(
            rows_in=len(defect),
            resolved=resolved,
            unresolved=len(rows.owner) - resolved,
            ambiguous_local_times=int((ingested_times(feed, rows.at) != rows.at).sum()),
        )
        for name, number in Counter(defect[len(rows.owner) :].tolist()).items():
            status = defects.row_status(feed, name)
            counts.update({status: number, f"defect: {name}": number})
            if status == defects.QUARANTINED:
                counts[f"reason: {defects.quarantine_reason(feed, name)}"] += number
        self._counts.update({(feed.name, name): number for name, number in counts.items()})
