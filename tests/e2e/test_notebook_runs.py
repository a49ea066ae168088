"""The cells of the notebook run as a script on the workspace of the full run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.runs import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runs import Finished


def test_the_notebook_runs_on_a_finished_run(finished: Finished, tmp_path: Path) -> None:
    notebook = json.loads((REPOSITORY / "notebooks" / "complete_journey.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells), encoding="utf-8")
    completed = subprocess.run(
        [sys.executable, str(script)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "LAM_SPARK_CONF": str(finished.data.conf),
            "LAM_SPARK_ROOT": str(finished.root),
            "MPLBACKEND": "Agg",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    lines = completed.stdout.splitlines()
    assert lines[0] == "small_shop as of 2023-12-20"
    assert any(line.startswith("AUC 0.") for line in lines)
