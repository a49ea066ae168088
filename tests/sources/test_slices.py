"""Which versions of look-ups map which part of an input that a rebuild reads again."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

import pytest

from lam_spark.sources.increment import Part, SourceIncrement
from lam_spark.sources.slices import RecordedPart, slice_files, slice_ranges

START = dt.datetime(2023, 1, 1, tzinfo=dt.UTC)
NEWEST = {"shops": 3}


def recorded(name: str, night: int, shops: int, size: int = 1, modified: int | None = None) -> RecordedPart:
    return RecordedPart(Part(name, size, modified, START + dt.timedelta(days=night)), {"shops": shops})


def increment(parts: Iterable[Part]) -> SourceIncrement:
    return SourceIncrement("crm", "crm", tuple(parts), None, "mapping", is_first=True)


def ranges(slices: list[SourceIncrement]) -> list[tuple[str | None, str, int]]:
    """Above which and up to which watermark, with which version."""
    return [(each.after, each.parts[0].name, each.lookups["shops"]) for each in slices]


@pytest.mark.parametrize(
    ("earlier", "highest", "expected"),
    [
        ([], "9", [(None, "9", 3)]),
        (
            [recorded("5", 0, 1), recorded("7", 1, 2)],
            "9",
            [(None, "5", 1), ("5", "7", 2), ("7", "9", 3)],
        ),
        ([recorded("5", 0, 1), recorded("7", 1, 2)], "7", [(None, "5", 1), ("5", "7", 2)]),
        # More rows at the watermark of the night before: they are read once.
        ([recorded("5", 0, 1), recorded("5", 1, 2, size=2)], "7", [(None, "5", 1), ("5", "7", 3)]),
    ],
)
def test_a_database_is_mapped_in_the_ranges_of_its_nights(
    earlier: list[RecordedPart], highest: str, expected: list[tuple[str | None, str, int]]
) -> None:
    assert ranges(slice_ranges(increment([Part(highest, 1)]), earlier, NEWEST)) == expected


def test_the_last_watermark_keeps_its_night_and_the_present_number_of_rows() -> None:
    (only,) = slice_ranges(increment([Part("5", 4)]), [recorded("5", 0, 1)], NEWEST)
    assert only.parts == (Part("5", 4, None, START),)


def test_files_are_grouped_by_the_versions_that_mapped_them() -> None:
    files = [Part("a", 1, 10), Part("b", 1, 11), Part("c", 1, 12)]
    earlier = [recorded("a", 0, 1, modified=10), recorded("b", 1, 3, modified=11)]
    slices, reason = slice_files(increment(files), earlier, NEWEST)
    assert {tuple(part.name for part in each.parts): each.lookups["shops"] for each in slices} == {
        ("a",): 1,
        ("b", "c"): 3,
    }
    assert [part.ingested_at for each in slices for part in each.parts] == [
        START,
        START + dt.timedelta(days=1),
        None,
    ]
    assert reason == ""


def test_a_file_that_was_changed_is_named_only_if_its_rows_had_other_versions() -> None:
    earlier = [recorded("a", 0, 1, modified=10), recorded("b", 1, 3, modified=11)]
    files = [Part("a", 2, 20), Part("b", 2, 21)]
    (only,), reason = slice_files(increment(files), earlier, NEWEST)
    assert only == dataclasses.replace(increment(files), lookups=NEWEST)
    assert reason == "1 files were changed after they were first ingested"


def test_a_reader_without_files_has_one_slice_without_parts() -> None:
    assert slice_files(increment([]), [], NEWEST) == ([increment([])], "")
