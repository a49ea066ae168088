"""Injected defects have the declared kinds and shares, and each dirty row has exactly one defect."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lam_spark.datasets.telecom import defects
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, Feed, format_times
from lam_spark.datasets.telecom.parameters import DAY

FEEDS = [*CHANNELS.values(), *LINKS.values()]


def with_defects(feed: Feed, share: float, rows: int = 20_000) -> defects.RowsWithDefects:
    """Equal true rows of a feed with injected defects."""
    by_role: dict[str, object] = {
        "key": "k",
        "id": "customer",
        feed.integer_column: 5,
        feed.float_column: 5.0,
    }
    row = {name: by_role.get(name, by_role.get(role, "text")) for name, role in feed.columns.items()}
    if feed.column_of("time"):
        row[feed.column_of("time")] = format_times(feed.clock, np.array([DAY]))[0]
    columns = {name: np.full(rows, value, dtype=object) for name, value in row.items()}
    return defects.inject_defects(
        np.random.default_rng(1),
        feed,
        columns,
        share,
        never_linked=lambda positions: np.full(len(positions), "never", dtype=object),
        new_keys=lambda count: np.array([f"new {i}" for i in range(count)], dtype=object),
    )


def raw_row(rows: defects.RowsWithDefects, i: int) -> tuple[object, ...]:
    """A raw row as text, where all new keys are equal."""
    texts = (str(column[i]) for column in rows.columns.values())
    return (*("new" if text.startswith("new ") else text for text in texts), bool(rows.truncated[i]))


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_defects_have_the_declared_kinds_and_the_requested_share(feed: Feed) -> None:
    rows = with_defects(feed, 0.1)
    counts = Counter(rows.defect)
    assert 1 - counts[defects.NO_DEFECT] / len(rows.defect) == pytest.approx(0.1, abs=0.01)
    assert set(counts) == {defects.NO_DEFECT, *defects.defect_shares(feed)}
    assert (with_defects(feed, 0.0).defect == defects.NO_DEFECT).all()


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_a_dirty_row_has_one_defect_and_no_two_kinds_give_equal_rows(feed: Feed) -> None:
    rows = with_defects(feed, 0.1)
    by_kind = {
        kind: {raw_row(rows, i) for i in np.flatnonzero(rows.defect == kind)} for kind in set(rows.defect)
    }
    true = by_kind.pop(defects.NO_DEFECT)
    assert len(true) == 1
    assert by_kind.pop(defects.DUPLICATE) == by_kind.pop(defects.DUPLICATE_IN_OTHER_FILE) == true
    for kind, dirty in by_kind.items():
        others = set().union(*(rows for other, rows in by_kind.items() if other != kind), true)
        assert not dirty & others
        for values in dirty:
            pairs = zip(values, next(iter(true)), strict=True)
            differing = [a for a, b in pairs if a != b and a != "new"]
            assert len(differing) == 1, (kind, values)
        status = defects.row_status(feed, kind)
        assert status in (defects.QUARANTINED, defects.UNRESOLVED)
        assert bool(defects.quarantine_reason(feed, kind)) == (status == defects.QUARANTINED)
