"""Writers of raw feed files (JSON lines, CSV, Parquet) and of ground-truth files, with reproducible bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lam_spark.datasets.telecom.customers import Array
from lam_spark.datasets.telecom.feeds import Feed

Columns = dict[str, Array]
_ROWS_PER_GROUP = 100_000


class FeedFile:
    """One file of a feed, written in batches of rows; it gets its final name only when complete."""

    def __init__(self, feed: Feed, path: Path) -> None:
        self._feed = feed
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Attempts of the same task write the same bytes, so any complete one may win.
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._groups: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._lines: IO[bytes] | None = None
        if feed.format == "parquet":
            self._writer = pq.ParquetWriter(self._draft, feed.schema, compression="zstd")
        else:
            self._lines = self._draft.open("wb")
            if feed.format == "csv":
                self._lines.write((feed.separator.join(feed.columns) + "\n").encode())

    def write(self, columns: Columns, truncated: Array) -> None:
        """Append rows; only the first half of a line is written where `truncated` is true."""
        if self._lines is not None:
            lines = (_json_lines if self._feed.format == "json" else _csv_lines)(self._feed, columns)
            for i in np.flatnonzero(truncated):
                lines[i] = lines[i][: len(lines[i]) // 2]
            if lines:
                self._lines.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
            return
        self._groups.append(_table(self._feed, columns))
        if sum(group.num_rows for group in self._groups) >= _ROWS_PER_GROUP:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Finish and rename the file; after an error, delete the draft."""
        if self._writer is not None:
            if error is None:
                self._flush()
            self._writer.close()
        if self._lines is not None:
            self._lines.close()
        if error is None:
            self._draft.replace(self._path)
        else:
            self._draft.unlink()

    def _flush(self) -> None:
        if self._groups and self._writer is not None:
            table = pa.concat_tables(self._groups).combine_chunks()
            self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self._groups = []


class GroundTruthFile:
    """One Parquet file of the ground truth, collected in memory and written on exit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._tables: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        """Append rows; the ground truth of one part fits into memory."""
        self._tables.append(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Write and rename the file, unless an error occurred."""
        if error is None:
            pq.write_table(pa.concat_tables(self._tables), self._draft, compression="zstd")
            self._draft.replace(self._path)


def _json_lines(feed: Feed, columns: Columns) -> list[str]:
    line = "{" + ", ".join(f'"{name}": %s' for name in feed.columns) + "}"
    values = [
        # The generated texts need no escaping.
        ["null" if v is None else f'"{v}"' if type(v) is str else str(v) for v in columns[name].tolist()]
        for name in feed.columns
    ]
    return [line % row for row in zip(*values, strict=True)]


def _csv_lines(feed: Feed, columns: Columns) -> list[str]:
    values = [["" if v is None else str(v) for v in columns[name].tolist()] for name in feed.columns]
    return [feed.separator.join(row) for row in zip(*values, strict=True)]


def _table(feed: Feed, columns: Columns) -> pa.Table:
    arrays = []
    for field in feed.schema:
        values = columns[field.name].tolist()
        if pa.types.is_string(field.type):
            # Text of another encoding must be stored as its original bytes.
            encoded = [None if v is None else v.encode("utf-8", "surrogateescape") for v in values]
            arrays.append(pa.array(encoded, pa.binary()).view(pa.string()))
        elif pa.types.is_date(field.type):
            arrays.append(pa.array(values, pa.int32()).cast(field.type))
        elif pa.types.is_timestamp(field.type):
            arrays.append(pa.array(values, pa.int64()).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=feed.schema)
