"""Which part of the package may import which: read from the imports, nothing is run."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lam_spark"
# Each part may import those before it and itself.
ORDER = [
    "masking",
    "foreign_errors",
    "errors",
    "storage",
    "config",
    "runtime",
    "datasets",
    "identity",
    "sources",
    "events",
    "consent",
    "sequences",
    "labels",
    "training_data",
    "model",
    "training",
    "scoring",
    "evaluation",
    "delivery",
    "report",
    "stages",
    "runtime/runner",
    "cli",
]
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
# These import nothing of the package and may be imported by all.
LEAVES = {"sequences/tokens.py", "stages.py"}


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), module)


def nodes(module: str) -> Iterator[ast.AST]:
    return ast.walk(parsed(module))


def part_of(module: str) -> str:
    """The entry of `ORDER` that a module belongs to."""
    name = module.removesuffix(".py")
    return name if name in ORDER else name.split("/")[0]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever in it; names of `from` imports included."""
    names: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def modules_imported(module: str) -> set[str]:
    """The package's own modules that a module imports."""
    own = set()
    for name in imports(module):
        if not name.startswith("lam_spark."):
            continue
        parts = name.split(".")[1:]
        for length in range(len(parts), 0, -1):
            path = "/".join(parts[:length])
            if f"{path}.py" in MODULES:
                own.add(f"{path}.py")
                break
            if f"{path}/__init__.py" in MODULES:
                own.add(f"{path}/__init__.py")
                break
    return own


def users_of(library: str) -> list[str]:
    return [m for m in MODULES if any(name.split(".")[0] == library for name in imports(m))]


def modules_with(pattern: str) -> list[str]:
    """Modules whose code, without comments and docstrings, matches a pattern."""

    def code(module: str) -> str:
        tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                value = body[0].value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    value.value = ""
        return ast.unparse(tree)

    return [module for module in MODULES if re.search(pattern, code(module))]


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part_of(module) for module in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_only_what_comes_before_it(module: str) -> None:
    allowed = ORDER[: ORDER.index(part_of(module)) + 1]
    late = {
        name
        for name in modules_imported(module)
        if name != "__init__.py" and name not in LEAVES and part_of(name) not in allowed
    }
    assert late == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    remaining = {module: modules_imported(module) - {module} for module in MODULES}
    while free := {module for module, needed in remaining.items() if not needed & remaining.keys()}:
        remaining = {module: needed for module, needed in remaining.items() if module not in free}
    assert remaining == {}


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_what_all_may_import_imports_nothing_itself(module: str) -> None:
    assert modules_imported(module) == set()


def test_the_package_has_at_most_eight_modules_at_its_top() -> None:
    assert len([module for module in MODULES if "/" not in module]) <= 8


def test_the_model_knows_no_spark() -> None:
    assert [module for module in users_of("pyspark") if module.startswith("model/")] == []


def test_training_processes_and_the_packer_know_no_spark() -> None:
    free = {f"training/{name}.py" for name in ("losses", "trainer", "launch/worker", "process_group")}
    free |= {f"training_data/{name}.py" for name in ("layout", "aggregates", "packing", "loader")}
    assert free <= set(MODULES)
    assert free & set(users_of("pyspark")) == set()


def test_the_configuration_knows_no_spark() -> None:
    assert [
        module
        for module in users_of("pyspark")
        if module.startswith(("config/", "errors", "foreign_errors", "stages"))
    ] == []


def test_the_data_stages_know_no_torch() -> None:
    folders = ("sources/", "events/", "consent/", "sequences/", "labels/", "identity/")
    assert [module for module in users_of("torch") if module.startswith(folders)] == []


def test_only_one_module_knows_horovod() -> None:
    assert users_of("horovod") == ["training/process_group.py"]


def test_only_one_module_builds_sessions() -> None:
    assert modules_with(r"SparkSession\.builder") == ["runtime/session.py"]


def test_only_one_module_reaches_into_the_jvm() -> None:
    assert modules_with(r"\b_jvm\b|\bsparkContext\b|_active_spark_context") == ["runtime/jvm.py"]


def test_only_one_module_reads_the_transaction_log() -> None:
    assert modules_with("_delta_log") == ["storage/tables/log.py"]


def test_only_the_folder_consent_decides_about_consent() -> None:
    """Nowhere else is the table read, or the constant of an opt-in or the column of the status used."""
    reads = r"""\.(read|read_if_exists|changes|files)\(\s*['"]consent['"]"""
    decisions = r"""\bOPT_IN\b|\bOPT_OUT\b|['"]opt_(in|out)['"]|\bconsent_status\b"""
    outside = [m for m in modules_with(f"{reads}|{decisions}") if not m.startswith("consent/")]
    assert outside == SYNTHETIC_LEDGERS
    # The status of an audit entry, of a run's summary and of a list's manifest is another one.
    of_status = [m for m in modules_with(r"""['"]status['"]""") if not m.startswith("consent/")]
    assert of_status == [
        "cli.py",
        "delivery/publication.py",
        "runtime/audit.py",
        "runtime/provenance.py",
        "storage/tables/registry.py",
    ]


def test_only_entries_of_stages_take_the_run_context() -> None:
    takers = []
    for module in MODULES:
        for node in nodes(module):
            if isinstance(node, ast.FunctionDef):
                annotations = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)]
                if any(a is not None and "RunContext" in ast.unparse(a) for a in annotations):
                    takers.append((module, node))
    outside = [
        f"{module} {node.name}"
        for module, node in takers
        if not module.startswith("runtime/")
        and not any(ast.unparse(decorator) == "stage" for decorator in node.decorator_list)
    ]
    assert outside == []


# They write raw statements, as a company's own system would; they decide nothing.
SYNTHETIC_LEDGERS = ["datasets/complete_journey.py", "datasets/telecom/consent.py"]
# Functions that may bring more than one row to the driver, and why these are few.
BOUNDED = [
    "consent/eligibility.py count_by_status",  # groups: purpose and status
    "consent/statements.py _names",  # a limit just before
    "datasets/telecom/generate.py write_parts",  # groups: feed and row status
    "evaluation/histogram.py _rows",  # a limit just before
    "evaluation/secondary_targets.py _measure_values",  # groups: twenty values, logits of two decimals
    "evaluation/stage.py _intervals",  # a limit just before
    "events/arrival.py arrival_delays",  # groups: channels
    "events/completeness.py active_days",  # groups: source and day of a year
    "events/reconciliation.py reconcile",  # groups: source and row status
    "events/staging.py count_staged",  # groups: reader and reason, of which each rule has one
    "labels/stage.py _count",  # groups: target and split
    "report/aggregates.py _score_histogram",  # groups: bins
    "report/aggregates.py count_rejected_rows",  # groups: reasons, of which each rule has one
    "report/aggregates.py count_rows_by_channel",  # groups: channels
    "report/aggregates.py read_contact_list",  # groups: proposals, at most `scoring.max_proposals`
    "report/aggregates.py read_contact_list",  # a limit just before
    "runtime/audit.py latest_entries",  # one at a time, one per stage is kept; an entry per stage and night
    "runtime/audit.py verify_chain",  # one at a time, none is kept
    "scoring/proposals.py read_proposals",  # a limit just before
    "sequences/incremental.py _with_added_values",  # names of fields
    "sequences/incremental.py update",  # groups: three tasks
    "sequences/vocabulary.py top_ids",  # groups: fields
    "sources/files.py _columns_present",  # names of fields in a sample of lines
    "sources/files.py new_files",  # one per new file, whose names Spark's own listing holds on the driver, too
    "sources/ingestion_state.py _states",  # groups: readers
    "sources/inputs.py count_lines",  # groups: inputs
    "sources/lookups.py _counts",  # groups: look-ups
    "sources/lookups.py recorded_versions",  # one per look-up, and one per night on which it changed
    "sources/slices.py _recorded_parts",  # one per ingested file, all of which a rebuild lists
    "training/cost_command.py _passes_of_tables",  # groups: two kinds of blocks
    "training_data/value_embeddings.py _table",  # at most one per value of the vocabulary, or it raises
]


def calls_of(methods: set[str]) -> list[str]:
    """Where a method of one of these names is called: module and innermost function, once per call."""

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


def test_no_table_is_pulled_into_the_driver() -> None:
    assert calls_of({"collect", "toPandas", "toArrow"}) == []
    assert calls_of({"toLocalIterator", "take", "head", "tail"}) == BOUNDED
