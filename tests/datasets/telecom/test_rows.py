"""Identity resolution of the true rows of one chunk."""

from __future__ import annotations

import numpy as np
import pytest

from lam_spark.datasets.telecom.feeds import CHANNELS
from lam_spark.datasets.telecom.identities import KIOSK, UNASSIGNED
from lam_spark.datasets.telecom.parameters import SyntheticDataSet
from lam_spark.datasets.telecom.rows import Rows, draw_chunk, draw_rows


@pytest.fixture(scope="module")
def rows() -> dict[str, Rows]:
    """The true rows of the second chunk, by feed."""
    chunk = draw_chunk(SyntheticDataSet(1_000, 3, 0.05), 1)
    return {feed.name: feed_rows for feed, feed_rows in draw_rows(chunk)}


@pytest.mark.parametrize(("id_kind", "min_share"), [("phone", 0.98), ("card", 0.99), ("address", 1.0)])
def test_transferable_ids_resolve_to_their_owner_or_stay_unassigned(
    rows: dict[str, Rows], id_kind: str, min_share: float
) -> None:
    channel = next(feed.name for feed in CHANNELS.values() if feed.id_kind == id_kind)
    resolved, owner = rows[channel].resolved, rows[channel].owner
    assert (resolved == UNASSIGNED).mean() < 0.03
    assert ((resolved == owner) | (resolved == UNASSIGNED)).all()
    assert (resolved == owner).mean() >= min_share - 0.02


def test_comparisons_of_plans_resolve_to_their_owner(rows: dict[str, Rows]) -> None:
    for name in ("app", "web"):
        compares = np.isin(rows[name].values["action"], ["compare_plans"])
        assert (rows[name].resolved == rows[name].owner)[compares].mean() > 0.98


def test_kiosk_events_stay_unassigned_and_shared_devices_cause_wrong_assignments(
    rows: dict[str, Rows],
) -> None:
    app = rows["app"]
    assert app.id_number is not None
    on_kiosk = app.id_number == KIOSK
    assert on_kiosk.any()
    assert (app.resolved[on_kiosk] == UNASSIGNED).all()
    wrong = (app.resolved != app.owner) & (app.resolved != UNASSIGNED)
    assert 0.001 < wrong.mean() < 0.05
    assert len(set(app.id_number[wrong])) < len(set(app.id_number)) / 10
