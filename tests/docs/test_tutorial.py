"""The blocks of the tutorial are run as they are written, in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lam_spark.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
# A block that begins with the name of a file is saved under that name.
FILES = {match[1]: text for _, text in BLOCKS if (match := re.match(r"# (\w+\.(?:py|yaml))\b", text))}
ADDITIONS = [text for kind, text in BLOCKS if kind == "yaml" and text not in FILES.values()]
MARK = "@@ the next block"


@dataclass(frozen=True)
class Tutorial:
    """A finished run of the page.

    Attributes:
        folder: The working folder.
        summaries: The last line of each `lam-spark`, parsed.
        printed: Output of each block, shell and Python, in the order of the page.
    """

    folder: Path
    summaries: list[dict[str, Any]]
    printed: list[str]


@pytest.fixture(scope="module")
def tutorial(secret: str, tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    folder = tmp_path_factory.mktemp("tutorial")
    script = []
    for kind, text in BLOCKS:
        if kind == "bash":
            script += [text, f"echo '{MARK}'"]
        elif kind == "python" and text not in FILES.values():
            script += [f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK", f"echo '{MARK}'"]
    for name, text in FILES.items():
        (folder / name).write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, "PATH": path, "LAM_SPARK_LOG": "json"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run_id"')]
    return Tutorial(folder, summaries, done.stdout.split(f"{MARK}\n"))


def line_count(path: Path) -> int:
    """Number of lines without the header."""
    return len(path.read_text().splitlines()) - 1


@pytest.mark.e2e
@pytest.mark.long
def test_a_log_becomes_a_contact_list(tutorial: Tutorial) -> None:
    summary = tutorial.summaries[0]
    counts = summary["stages"]
    lines = line_count(tutorial.folder / "purchases" / "2024.csv")
    assert (counts["ingest"]["rows_in"], counts["ingest"]["quarantined"]) == (lines, 1)
    assert counts["ingest"]["events"] + counts["ingest"]["duplicates"] == lines - 1
    with (tutorial.folder / "out/delivery/contact_list_2024-12-30.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == counts["deliver"]["delivered"] > 300
    assert Path(summary["report"]).is_file()


@pytest.mark.e2e
@pytest.mark.long
def test_pseudonyms_are_mapped_back_to_customers(tutorial: Tutorial) -> None:
    (printed,) = (text for text in tutorial.printed if text.startswith("1 C"))
    customers = [line.split()[1] for line in printed.splitlines()]
    assert len(customers) == tutorial.summaries[0]["stages"]["deliver"]["delivered"]
    assert "C0007" not in customers  # opted out


@pytest.mark.e2e
@pytest.mark.long
def test_a_rejected_row_is_shown_with_its_reason(tutorial: Tutorial) -> None:
    (printed,) = (text for text in tutorial.printed if "reason" in text)
    assert re.search(
        r"\|shop +\|line does not parse under the declared columns\|C0001,2024-02-31,1,9.99\|", printed
    )


@pytest.mark.e2e
@pytest.mark.long
def test_the_next_run_reads_only_new_files(tutorial: Tutorial) -> None:
    first, second = tutorial.summaries
    new = line_count(tutorial.folder / "purchases" / "2024-12-30.csv")
    counts = second["stages"]["ingest"]
    assert 0 < new == counts["rows_in"] == counts["events"] < first["stages"]["ingest"]["rows_in"]


def test_the_configuration_is_the_shipped_one_and_short() -> None:
    assert FILES["purchase_log.yaml"] == (ROOT / "conf" / "purchase_log.yaml").read_text(encoding="utf-8")
    assert len(FILES["purchase_log.yaml"].splitlines()) <= 45


@pytest.mark.parametrize("addition", ADDITIONS)
def test_each_addition_is_a_valid_configuration(addition: str) -> None:
    content = yaml.safe_load(FILES["purchase_log.yaml"])
    for name, section in yaml.safe_load(addition).items():
        content[name] = content.get(name, {}) | section
    Config.model_validate(content)
