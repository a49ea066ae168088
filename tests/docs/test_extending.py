"""The worked example of docs/extending.md, applied to a copy of the repository as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# (path, kind, text) of each block that has a file name above it.
BLOCKS = re.findall(r"^`([\w/.]+)`\n\n```(python|diff)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
EXAMPLE = [
    "tests/event_counts",
    "tests/test_import_order.py",
    "tests/test_docs.py",
    "tests/docs/test_architecture.py",
]
# Files that `make docs` changes.
GENERATED = {"README.md", "docs/tables.md", "jobs/count_events.py"}


def edited(text: str, diff: str, name: str) -> str:
    """Apply a diff without line numbers; its context must occur exactly once."""
    lines = diff.splitlines(keepends=True)
    assert {line[0] for line in lines} <= {" ", "+", "-"}, name
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"{name}: the context of the edit occurs {text.count(before)} times"
    return text.replace(before, after)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def python(folder: Path, *arguments: str) -> None:
    """Run the copy's code with this interpreter, without the settings of the tests that run now."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files."""
    folder = tmp_path_factory.mktemp("extending") / "repository"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # not deleted in the working tree
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.long
def test_the_example_works_as_it_is_written(repository: Path) -> None:
    before = contents(repository)
    for name, kind, text in BLOCKS:
        path = repository / name
        assert path.exists() == (kind == "diff"), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(edited(path.read_text(encoding="utf-8"), text, name) if kind == "diff" else text)
    python(repository, "tools/docs.py")
    after = contents(repository)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {name for name, _, _ in BLOCKS} | GENERATED
    assert set(before) <= set(after)
    python(repository, "-m", "ruff", "check", "--no-cache", ".")
    python(repository, "-m", "ruff", "format", "--no-cache", "--check", ".")
    python(repository, "-m", "pytest", "-q", "-p", "no:cacheprovider", *EXAMPLE)


def test_every_edit_fits_the_present_code() -> None:
    edits = [(name, text) for name, kind, text in BLOCKS if kind == "diff"]
    assert len(edits) == 5
    for name, text in edits:
        assert edited((ROOT / name).read_text(encoding="utf-8"), text, name)
