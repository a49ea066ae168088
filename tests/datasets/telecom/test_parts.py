"""Files and counts of one part do not depend on the batch size."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lam_spark.datasets.telecom import parts
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS
from lam_spark.datasets.telecom.parameters import SyntheticDataSet


def test_rows_of_a_very_long_history_are_written_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set = SyntheticDataSet(100, 1, 0.05)
    whole = parts.write_part(data_set, 0, tmp_path / "raw", tmp_path / "truth")
    monkeypatch.setattr(parts, "_BATCH", 50)
    split = parts.write_part(data_set, 0, tmp_path / "split" / "raw", tmp_path / "split" / "truth")
    feeds = [*CHANNELS, *LINKS]
    assert [split[name, "resolved"] for name in feeds] == [whole[name, "resolved"] for name in feeds]
    for name in ("customers", "queries"):
        truth = pq.read_table(tmp_path / "truth" / name)
        assert pq.read_table(tmp_path / "split" / "truth" / name).equals(truth)
    lines = [
        line
        for path in (tmp_path / "split" / "raw" / "app").iterdir()
        for line in path.read_bytes().splitlines()
    ]
    assert len(lines) == split["app", "rows_in"]
    assert len(set(lines)) == split["app", "rows_in"] - split["app", "duplicates"]
