"""Which part of the package may know which: read from the imports, nothing is run."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lam_spark"
# Each folder may import those before it, itself, and the modules at the top of the package.
ORDER = [
    "sources",
    "events",
    "consent",
    "sequences",
    "dataset",
    "model",
    "training",
    "scoring",
    "evaluation",
    "delivery",
    "audit",
    "report",
]
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


# By function, what may bring rows to the driver that are more than one, and why they are few.
BOUNDED = [
    "audit/record.py latest_entries",  # one at a time, one a stage is kept; an entry a stage and night
    "audit/record.py verify_chain",  # one at a time, none is kept
    "consent/eligibility.py count_standings",  # groups: purpose and standing
    "dataset/vectors.py _table",  # at most one a value of the vocabulary, or it raises
    "evaluation/histogram.py _rows",  # a limit just before
    "evaluation/others.py _of_values",  # groups: twenty values, and logits of two decimals between -21 and 21
    "evaluation/stage.py _intervals",  # a limit just before
    "events/ingest.py _reconciliation",  # groups: channel and outcome
    "events/staging.py judge",  # groups: reader and reason, of which each rule has one
    "report/stage.py _contact_list",  # groups: proposals, at most `scoring.max_proposals`
    "report/stage.py _contact_list",  # a limit just before
    "report/stage.py _events_by_channel",  # groups: channels
    "report/stage.py _refused",  # groups: reasons, of which each rule has one
    "report/stage.py _score_histogram",  # groups: bins
    "scoring/stage.py proposals",  # a limit just before
    "sequences/examples.py run",  # groups: target and split
    "sequences/increment.py _update",  # groups: three tasks
    "sequences/increment.py _with_learnt_values",  # names of fields
    "sequences/vocabulary.py top_ids",  # groups: fields
    "sources/ingestion_state.py _new_files",  # one a new file, whose names Spark's own listing holds in the driver, too
    "sources/ingestion_state.py taken_so_far",  # groups: readers
    "sources/readers.py _columns_present",  # names of fields in a sample of lines
    "sources/readers.py count_lines",  # groups: inputs
    "sources/telco/generate.py write_parts",  # groups: feed and what became of its rows
    "training/plan_command.py _passes_of_tables",  # groups: two kinds of blocks
]


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), module)


def nodes(module: str) -> Iterator[ast.AST]:
    return ast.walk(parsed(module))


def calls_of(methods: set[str]) -> list[str]:
    """Where a method of one of these names is called: module and innermost function, once a call."""

    def within(node: ast.AST, place: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Call)
                and isinstance(child.func, ast.Attribute)
                and child.func.attr in methods
            ):
                yield place
            inside = isinstance(child, ast.FunctionDef)
            yield from within(child, f"{place.split()[0]} {child.name}" if inside else place)

    return sorted(place for module in MODULES for place in within(parsed(module), module))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever in it; names of `from` imports included."""
    found: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def folders_imported(module: str) -> set[str]:
    """The package's own folders that a module imports from."""
    own = (name.split(".")[1] for name in imports(module) if name.startswith("lam_spark."))
    return {part for part in own if (PACKAGE / part).is_dir()}


def users_of(library: str) -> list[str]:
    return [m for m in MODULES if any(name.split(".")[0] == library for name in imports(m))]


def test_every_folder_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted({module.split("/")[0] for module in MODULES if "/" in module})


@pytest.mark.parametrize("module", [module for module in MODULES if "/" in module])
def test_a_folder_imports_only_what_comes_before_it(module: str) -> None:
    allowed = ORDER[: ORDER.index(module.split("/")[0]) + 1]
    assert folders_imported(module) <= set(allowed)


@pytest.mark.parametrize("module", [module for module in MODULES if "/" not in module and module != "cli.py"])
def test_a_module_at_the_top_imports_no_stage(module: str) -> None:
    assert folders_imported(module) == set()
    assert "lam_spark.cli" not in {name.rsplit(".", 1)[0] for name in imports(module)}


def test_no_stage_knows_the_command_line() -> None:
    assert [m for m in MODULES if any(name.startswith("lam_spark.cli") for name in imports(m))] == []


def test_the_model_knows_no_spark() -> None:
    assert [module for module in users_of("pyspark") if module.startswith("model/")] == []


def test_the_ranks_and_the_packer_know_no_spark() -> None:
    free = {f"training/{name}.py" for name in ("objective", "fit", "worker", "distributed")}
    free |= {f"dataset/{name}.py" for name in ("layout", "aggregates", "packing", "loader")}
    assert free <= set(MODULES)
    assert free & set(users_of("pyspark")) == set()


def test_the_data_stages_know_no_torch() -> None:
    folders = ("sources/", "events/", "consent/", "sequences/")
    assert [module for module in users_of("torch") if module.startswith(folders)] == []


def test_only_one_module_knows_horovod() -> None:
    assert users_of("horovod") == ["training/distributed.py"]


def test_only_one_module_builds_sessions() -> None:
    builders = [
        module
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "SparkSession.builder"
    ]
    assert builders == ["session.py"]


def test_no_table_is_pulled_into_the_driver() -> None:
    assert calls_of({"collect", "toPandas", "toArrow"}) == []
    assert calls_of({"toLocalIterator", "take", "head", "tail"}) == BOUNDED
