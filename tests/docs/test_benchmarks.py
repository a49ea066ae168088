"""Every benchmark script documents its command, and the index lists every script."""

import ast
from pathlib import Path

import pytest

from benchmarks.smoke import FOLDER, scripts

README = (FOLDER / "README.md").read_text(encoding="utf-8")


def path_of(script: str) -> Path:
    return FOLDER.joinpath(*script.split(".")).with_suffix(".py")


@pytest.mark.parametrize("script", scripts())
def test_every_script_starts_with_its_command_and_its_smoke_option(script: str) -> None:
    docstring = ast.get_docstring(ast.parse(path_of(script).read_text(encoding="utf-8")))
    assert docstring is not None
    assert f"python -m benchmarks.{script} [--smoke]" in docstring


@pytest.mark.parametrize("script", scripts())
def test_the_index_lists_every_script(script: str) -> None:
    assert f"| `{script}` |" in README


def test_no_benchmark_file_is_longer_than_500_lines() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 500} == {}
