"""The wheel, as `make wheel` builds it: the package with its data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BUILD = ["-m", "build", "--wheel", "--no-isolation"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, *BUILD, "--outdir", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("lam_spark-*.whl")
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_it_is_built_as_make_wheel_does() -> None:
    assert f"$(BIN)/python {' '.join(BUILD)}\n" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_with_its_data(packed: set[str]) -> None:
    """Without the template there is no report, without the log's settings Spark fills the terminal."""
    data = {
        "lam_spark/py.typed",
        "lam_spark/report/report.css",
        "lam_spark/report/report.html.j2",
        "lam_spark/runtime/log4j2.properties",
    }
    assert data <= packed
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "lam_spark").rglob("*.py")}
    assert {name for name in packed if name.startswith("lam_spark/")} == modules | data


def test_the_wheel_holds_no_tests_and_no_tools(packed: set[str]) -> None:
    folders = {name.split("/")[0] for name in packed}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"lam_spark"}


def test_the_wheel_brings_the_command(packed: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in packed)
