"""The newcomer's page does what it says: its own blocks are run, as they stand, in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic_core import PydanticUndefined

from lam_spark.config import Config, Section
from lam_spark.storage.tables.registry import RESERVED_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bring-your-own-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
# A block that begins with the name of a file is saved under it.
FILES = {found[1]: text for _, text in BLOCKS if (found := re.match(r"# (\w+\.(?:py|yaml))\b", text))}
ADDITIONS = [text for kind, text in BLOCKS if kind == "yaml" and text not in FILES.values()]
MARK = "@@ the next block"


@dataclass(frozen=True)
class Newcomer:
    """Someone who has followed the page.

    Attributes:
        folder: where they work.
        summaries: the last line of each `lam-spark`.
        printed: what each block printed, shell and Python, in the order of the page.
    """

    folder: Path
    summaries: list[dict[str, Any]]
    printed: list[str]


@pytest.fixture(scope="module")
def newcomer(secret: str, tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    folder = tmp_path_factory.mktemp("newcomer")
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
    return Newcomer(folder, summaries, done.stdout.split(f"{MARK}\n"))


def lines_of(path: Path) -> int:
    """Lines without the header."""
    return len(path.read_text().splitlines()) - 1


@pytest.mark.e2e
@pytest.mark.long
def test_from_a_log_to_a_list(newcomer: Newcomer) -> None:
    summary = newcomer.summaries[0]
    counts = summary["stages"]
    lines = lines_of(newcomer.folder / "purchases" / "2024.csv")
    assert (counts["ingest"]["rows_in"], counts["ingest"]["quarantined"]) == (lines, 1)
    assert counts["ingest"]["events"] + counts["ingest"]["duplicates"] == lines - 1
    with (newcomer.folder / "out/delivery/contact_list_2024-12-30.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == counts["deliver"]["delivered"] > 300
    assert Path(summary["report"]).is_file()


@pytest.mark.e2e
@pytest.mark.long
def test_pseudonyms_become_customers_again(newcomer: Newcomer) -> None:
    (printed,) = (text for text in newcomer.printed if text.startswith("1 C"))
    customers = [line.split()[1] for line in printed.splitlines()]
    assert len(customers) == newcomer.summaries[0]["stages"]["deliver"]["delivered"]
    assert "C0007" not in customers  # opted out


@pytest.mark.e2e
@pytest.mark.long
def test_a_refused_row_is_shown_with_its_reason(newcomer: Newcomer) -> None:
    (printed,) = (text for text in newcomer.printed if "reason" in text)
    assert re.search(
        r"\|shop +\|line does not parse under the declared columns\|C0001,2024-02-31,1,9.99\|", printed
    )


@pytest.mark.e2e
@pytest.mark.long
def test_the_next_night_takes_only_what_is_new(newcomer: Newcomer) -> None:
    first, second = newcomer.summaries
    new = lines_of(newcomer.folder / "purchases" / "2024-12-30.csv")
    counts = second["stages"]["ingest"]
    assert 0 < new == counts["rows_in"] == counts["events"] < first["stages"]["ingest"]["rows_in"]


def test_its_configuration_is_the_shipped_one_and_short() -> None:
    assert FILES["purchase_log.yaml"] == (ROOT / "conf" / "purchase_log.yaml").read_text(encoding="utf-8")
    assert len(FILES["purchase_log.yaml"].splitlines()) <= 45


@pytest.mark.parametrize("addition", ADDITIONS)
def test_each_addition_fits_the_configuration(addition: str) -> None:
    content = yaml.safe_load(FILES["purchase_log.yaml"])
    for name, section in yaml.safe_load(addition).items():
        content[name] = content.get(name, {}) | section
    Config.model_validate(content)


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration with its default; None where it has none."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        inner = [a for a in (kind, *get_args(kind)) if isinstance(a, type) and issubclass(a, Section)]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.{'NAME.' if get_origin(kind) is dict else ''}")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", None if default is PydanticUndefined else (default,)


def test_the_table_says_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) ?\| .+ \|$", PAGE, flags=re.MULTILINE)
    written = {key: (yaml.safe_load(default),) if default else None for key, default in rows}
    known = {key: default and json.loads(json.dumps(default, default=str)) for key, default in keys()}
    assert {key: json.loads(json.dumps(value, default=str)) for key, value in written.items()} == known


def test_names_that_fields_may_not_have_are_all_told() -> None:
    (told,) = re.findall(r"^A field may not be called .*?: (.*?)\.$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\w+", told) == sorted(RESERVED_COLUMNS)
