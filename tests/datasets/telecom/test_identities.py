"""Ids are unique, and links resolve them to customers by the rules of `identity`."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lam_spark.datasets.telecom.identities import (
    ID_KINDS,
    KIOSK,
    LOOKBACK_DAYS,
    MAX_CUSTOMERS_PER_ID,
    RAW_ID_PATTERN,
    UNASSIGNED,
    Links,
    format_ids,
    member_numbers,
)
from lam_spark.datasets.telecom.parameters import DAY


def links(*statements: tuple[int, int, int]) -> Links:
    """Links from statements (id, customer, day)."""
    number, owner, day = np.array(statements).T
    return Links(number, owner, day * DAY)


def resolve(links: Links, number: int, day: float) -> int:
    return int(links.resolve(np.array([number]), np.array([int(day * DAY)]))[0])


def test_the_latest_link_decides() -> None:
    statements = links((7, 1, 10), (7, 2, 20))
    assert [resolve(statements, 7, day) for day in (10, 19.9, 20, 300)] == [1, 1, 2, 2]


def test_the_first_link_applies_to_earlier_events_within_the_lookback() -> None:
    statements = links((7, 1, 100), (7, 2, 120))
    assert resolve(statements, 7, 100 - LOOKBACK_DAYS) == 1
    assert resolve(statements, 7, 99.9 - LOOKBACK_DAYS) == UNASSIGNED


def test_an_id_with_two_owners_at_one_instant_is_unassigned_until_the_next_link() -> None:
    statements = links((7, 1, 10), (7, 1, 20), (7, 2, 20), (7, 1, 30))
    assert [resolve(statements, 7, day) for day in (15, 25, 35)] == [1, UNASSIGNED, 1]


def test_an_id_of_too_many_customers_is_unassigned() -> None:
    few, many = range(MAX_CUSTOMERS_PER_ID), range(MAX_CUSTOMERS_PER_ID + 1)
    assert resolve(links(*((7, owner, owner) for owner in few)), 7, 50) == MAX_CUSTOMERS_PER_ID - 1
    assert resolve(links(*((7, owner, owner) for owner in many)), 7, 50) == UNASSIGNED
    assert resolve(links((KIOSK, 1, 1)), KIOSK, 2) == UNASSIGNED


def test_an_id_without_links_is_unassigned() -> None:
    assert [resolve(links((7, 1, 10)), number, 15) for number in (6, 8)] == [UNASSIGNED, UNASSIGNED]
    empty = np.zeros(0, dtype=np.int64)
    assert resolve(Links(empty, empty, empty), 7, 1) == UNASSIGNED


@given(
    statements=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 90)), min_size=1, max_size=25
    ),
    event=st.tuples(st.integers(0, 3), st.integers(0, 120)),
)
def test_links_resolve_like_a_plain_implementation_of_the_rules(
    statements: list[tuple[int, int, int]], event: tuple[int, int]
) -> None:
    number, day = event
    own = [(at, owner) for linked, owner, at in set(statements) if linked == number]
    earlier = [at for at, _ in own if at <= day]
    first = min((at for at, _ in own), default=None)
    deciding = (
        max(earlier) if earlier else first if first is not None and first - day <= LOOKBACK_DAYS else None
    )
    owners = {owner for at, owner in own if at == deciding}
    too_many = len({owner for _, owner in own}) > MAX_CUSTOMERS_PER_ID
    expected = owners.pop() if len(owners) == 1 and not too_many else UNASSIGNED
    assert resolve(links(*set(statements)), number, day) == expected


@pytest.mark.parametrize("id_kind", ID_KINDS)
def test_formatted_ids_are_unique_and_match_the_raw_id_pattern(id_kind: str) -> None:
    numbers = np.concatenate([np.arange(0, 50_000), np.arange(KIOSK - 50_000, KIOSK)])
    texts = format_ids(id_kind, numbers)
    assert len(set(texts)) == len(numbers)
    pattern = re.compile(RAW_ID_PATTERN)
    assert all(pattern.search(text) for text in texts[:1_000])
    assert pattern.search(member_numbers(np.array([12]))[0])
