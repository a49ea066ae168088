"""Customers, queries and events that several test modules share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lam_spark.datasets.telecom.behaviour import draw_events
from lam_spark.datasets.telecom.customers import Queries, Traits, draw_queries, draw_traits

LARGE, SMALL = 40_000, 3_000


@pytest.fixture(scope="package")
def traits() -> Traits:
    return draw_traits(np.random.default_rng(5), 0, LARGE)


@pytest.fixture(scope="package")
def queries(traits: Traits) -> Queries:
    return draw_queries(np.random.default_rng(6), traits)


@pytest.fixture(scope="package")
def sample() -> tuple[Traits, Queries]:
    """The customers of `events`."""
    traits = draw_traits(np.random.default_rng(7), 0, SMALL)
    return traits, draw_queries(np.random.default_rng(8), traits)


@pytest.fixture(scope="package")
def events(sample: tuple[Traits, Queries]) -> dict[str, pd.DataFrame]:
    unshared = np.ones(SMALL, dtype=bool)
    return draw_events(np.random.default_rng(9), *sample, largest=5_000, has_own_device=unshared)
