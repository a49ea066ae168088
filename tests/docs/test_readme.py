"""README.md and the other documents name what exists: stages, tables, files, commands; and they are short."""

import re
from pathlib import Path

import pytest

from lam_spark import errors
from lam_spark.config.load import load_config
from lam_spark.stages import STAGES
from lam_spark.storage.tables.registry import TABLES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("benchmarks/journal/*.md"),
        *ROOT.glob("patches/*.md"),
    ]
)
LIMITS = {
    "README.md": 200,
    "CHANGELOG.md": 40,
    "docs/architecture.md": 150,
    "docs/tutorial.md": 320,
    "docs/operations.md": 330,
}


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_stage_table_lists_the_stages_in_order() -> None:
    assert re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE) == list(STAGES)


def test_every_stage_has_a_job_for_spark_submit_and_no_other_job_exists() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == {*STAGES, "run"}
    for stage in (*STAGES, "run"):
        job = (ROOT / "jobs" / f"{stage}.py").read_text(encoding="utf-8")
        assert f'sys.exit(run_job("{stage}"))' in job


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_linked_file_and_heading_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("target", ["demo", "test", "setup", "wheel"])
def test_the_make_targets_that_it_names_exist(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README


@pytest.mark.parametrize("conf", sorted(path.name for path in (ROOT / "conf").glob("*.yaml")))
def test_every_shipped_configuration_is_valid(conf: str) -> None:
    config = load_config(ROOT / "conf" / conf)
    assert config.name == conf.removesuffix(".yaml")


def test_the_tables_that_it_names_are_declared() -> None:
    rows = "".join(line for line in README.splitlines() if re.match(r"\| `\w+` \|", line))
    assert set(re.findall(r"`([a-z_]+)`", rows)) - set(STAGES) <= set(TABLES)


def test_the_exit_codes_are_the_documented_ones() -> None:
    codes = {
        "ConfigError": 2,
        "DataQualityError": 3,
        "ConsentError": 4,
        "ModelError": 5,
        "ConcurrentRunError": 6,
        "LamSparkError": 1,
    }
    assert {name: getattr(errors, name).exit_code for name in codes} == codes
    assert {*codes.values(), *(128 + number for number in (1, 2, 15)), 0} == errors.EXIT_CODES.keys()


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_exit_codes_are_listed_with_their_meanings(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert ", ".join(f"{code} {meaning}" for code, meaning in errors.EXIT_CODES.items()) in text


@pytest.mark.parametrize("page", LIMITS)
def test_each_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= LIMITS[page]


def test_the_documents_are_short() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    assert sum(len(page.read_bytes()) for page in pages) <= 120_000
