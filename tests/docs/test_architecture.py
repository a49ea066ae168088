"""docs/architecture.md shows the package as it is: every folder and file, and the import order."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_import_order import ORDER

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def listed() -> list[str]:
    """Files of the tree, in its order: a line that begins with a path opens a folder, indented names follow."""
    (tree,) = re.findall(r"^```\n(lam_spark/ .*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    files, folder = [], ""
    for line in tree.splitlines():
        if heading := re.match(r"(lam_spark/[\w/]*) ", line):
            folder = heading[1]
        else:
            files += [
                f"{folder}{name}" for name in re.findall(r"(?:^  |; )([\w.]+\.\w+)(?=:| {2}|;|$)", line)
            ]
    return files


def test_the_tree_lists_every_file_of_the_package_once() -> None:
    package = ROOT / "lam_spark"
    present = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = {path.relative_to(ROOT).as_posix() for path in present}
    without_init = {name for name in names if not name.endswith(("/__init__.py", ".pyc"))}
    assert sorted(listed()) == sorted(without_init)


def test_the_import_order_is_the_tested_one() -> None:
    (order,) = re.findall(r"^```\n(masking.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"[\w/]+", order) == ORDER
