"""Fixtures of the tests of incremental updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lam_spark.sequences import incremental
from tests.sequences.nightly import NightlyShop, open_shop, run_night


@pytest.fixture(scope="module")
def always_update() -> Iterator[None]:
    """Never rebuild because most customers change: most of these few do in every night."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "_MAX_REBUILT_SHARE", 10)
        yield


@pytest.fixture(scope="module")
def opened(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> NightlyShop:
    """The shop of the anchor after its first night."""
    shop = open_shop(spark, tmp_path_factory.mktemp("opened") / "shop")
    run_night(shop)
    return shop


@pytest.fixture
def shop(opened: NightlyShop, tmp_path: Path) -> NightlyShop:
    """A copy of that shop, to continue with."""
    return opened.copied(tmp_path / "shop")
