"""The README says what is there: stages, flags, files and commands."""

import re
from pathlib import Path

import pytest

from lam_spark.cli import ON_REQUEST, STAGES
from lam_spark.config.load import load_config
from lam_spark.storage.tables.registry import TABLES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_stages_is_the_list_of_stages() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert rows == [*STAGES, *ON_REQUEST]


def test_every_stage_has_a_job_for_spark_submit_and_there_is_no_other() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == {*STAGES, *ON_REQUEST, "run"}
    for stage in (*STAGES, *ON_REQUEST, "run"):
        job = (ROOT / "jobs" / f"{stage}.py").read_text(encoding="utf-8")
        assert f'run_stage("{stage}", sys.argv[1:])' in job


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("#") and not (ROOT / link).exists()] == []
    headings = {
        "#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    }
    assert {link for link in links if link.startswith("#")} <= headings


@pytest.mark.parametrize("target", ["demo", "test", "setup", "wheel"])
def test_the_make_targets_it_names_exist(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


@pytest.mark.parametrize("conf", sorted(path.name for path in (ROOT / "conf").glob("*.yaml")))
def test_every_shipped_configuration_is_valid(conf: str) -> None:
    config = load_config(ROOT / "conf" / conf)
    assert config.name == conf.removesuffix(".yaml")


def test_the_tables_it_names_are_declared() -> None:
    rows = "".join(line for line in README.splitlines() if re.match(r"\| `\w+` \|", line))
    written = set(re.findall(r"`([a-z_]+)`", rows)) - {*STAGES, *ON_REQUEST}
    assert written <= set(TABLES)


def test_the_lowest_exit_codes_are_as_documented() -> None:
    from lam_spark import errors

    codes = {
        "ConfigError": 2,
        "DataQualityError": 3,
        "ConsentError": 4,
        "ModelError": 5,
        "ConcurrentRunError": 6,
        "LamSparkError": 1,
    }
    assert {name: getattr(errors, name).exit_code for name in codes} == codes
    assert "2 configuration, 3 data quality, 4 consent, 5 model, 6 another run" in " ".join(README.split())
