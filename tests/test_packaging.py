"""The wheel that `make wheel` builds contains only the package with its data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BUILD = ["-m", "build", "--wheel", "--no-isolation"]


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    completed = subprocess.run(
        [sys.executable, *BUILD, "--outdir", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (wheel,) = folder.glob("lam_spark-*.whl")
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_these_tests_use_the_command_of_make_wheel() -> None:
    assert f"$(BIN)/python {' '.join(BUILD)}\n" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_the_wheel_contains_all_modules_and_data_files(wheel_files: set[str]) -> None:
    """The report needs its template, and without the log settings Spark prints to the terminal."""
    data = {
        "lam_spark/py.typed",
        "lam_spark/report/report.css",
        "lam_spark/report/report.html.j2",
        "lam_spark/runtime/log4j2.properties",
    }
    assert data <= wheel_files
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "lam_spark").rglob("*.py")}
    assert {name for name in wheel_files if name.startswith("lam_spark/")} == modules | data


def test_the_wheel_contains_no_tests_and_no_tools(wheel_files: set[str]) -> None:
    folders = {name.split("/")[0] for name in wheel_files}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"lam_spark"}


def test_the_wheel_declares_the_command(wheel_files: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel_files)
