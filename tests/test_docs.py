"""Generated documents and job files are up to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lam_spark.config import Config, Section
from tools import docs


def sections(section: type[Section] = Config) -> Iterator[type[Section]]:
    """The section and all sections below it."""
    yield section
    for field in section.model_fields.values():
        inner = docs.section_of(field.annotation)
        if inner is not None:
            yield from sections(inner)


def test_generated_files_are_up_to_date() -> None:
    assert list(docs.outdated()) == [], "run make docs"


def test_the_documents_are_short() -> None:
    assert len((docs.configuration() + docs.tables()).encode()) < 42_000


@pytest.mark.parametrize("section", dict.fromkeys(sections()))
def test_every_key_has_a_description_of_one_line(section: type[Section]) -> None:
    descriptions = {name: field.description or "" for name, field in section.model_fields.items()}
    assert [name for name, text in descriptions.items() if not text or "\n" in text] == []


def test_outdated_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("".join(docs._MARKS))
    for folder in ("docs", "jobs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "jobs" / "unknown.py").write_text("")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["docs.py", "--check"])
    assert docs.main() == 1
    assert {"README.md", "docs/tables.md", "jobs/run.py", "jobs/unknown.py"} <= set(docs.outdated())
    monkeypatch.setattr("sys.argv", ["docs.py"])
    assert docs.main() == 0
    assert docs.outdated() == {}
    assert not (tmp_path / "jobs" / "unknown.py").exists()


def test_a_readme_without_markers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# No table")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    with pytest.raises(
        ValueError, match=r"^expected the markers <!-- stages --> and <!-- /stages --> in README"
    ):
        docs.outdated()
