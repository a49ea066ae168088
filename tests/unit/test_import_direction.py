"""Which part of the package may know which: read from the imports, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lam_spark"
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


def nodes(module: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"), module))


def imports(module: str) -> set[str]:
    """Dotted names of all that a module imports, wherever in it; names of `from` imports included."""
    found: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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
    pulled = [
        f"{module}:{node.lineno} {node.func.attr}"
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("toPandas", "collect")
    ]
    assert pulled == []
