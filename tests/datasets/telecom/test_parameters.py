"""The data set is cut into chunks and parts without gaps or overlaps."""

from __future__ import annotations

import pytest

from lam_spark.datasets.telecom.parameters import SyntheticDataSet, largest_customer_events


@pytest.mark.parametrize("customers", [100, 501, 1_000, 10_000, 123_456, 10_000_000])
def test_every_customer_is_in_one_chunk_of_one_part(customers: int) -> None:
    data_set = SyntheticDataSet(customers, 1, 0.05)
    chunks = [chunk for part in range(data_set.parts) for chunk in data_set.chunks(part)]
    assert chunks == list(range(-(-customers // 500)))
    assert len(data_set.chunks(0)) <= 20


def test_the_longest_history_has_at_most_one_million_events() -> None:
    assert largest_customer_events(10_000_000) == largest_customer_events(1_000_000) == 1_000_000
