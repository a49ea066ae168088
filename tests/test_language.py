"""One language: names and words that the project does not use, and how large a file or a function may be."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Names that may not be defined, and the name to use.
NAMES = {
    "intake": "ingestion_state",
    "balances": "reconciliation",
    "fate": "row status",
    "note_of": "commit_metadata",
    "renew_note": "touch_metadata",
    "told_since": "has_change_feed_since",
    "together": "transaction",
    "undo": "roll_back",
    "amend": "update",
    "insert_new": "insert_missing",
    "letting_go": "cache.scope",
    "journal": "log",
    "Journal": "RunLog",
    "remade": "rebuilt",
    "disowned": "reassigned",
    "heavy": "customers with a very long history",
    "older_events": "truncated_events",
    "older_counts": "truncated_counts",
    "older_sums": "truncated_sums",
    "standing": "status, training state",
    "standings": "statuses",
    "planted": "ground-truth parameters",
    "dirt": "injected defects",
    "habit": "decayed count",
    "habits": "decayed_counts",
    "faded": "decayed",
    "carried": "initial counts",
    "moment": "timestamp group",
    "moments": "timestamp groups",
    "question": "query",
    "questions": "queries",
    "answer": "prediction",
    "answers": "predictions",
    "lessons": "loss_counts",
    "teaches": "has_targets",
    "asked": "labelled",
    "judge": "validate",
    "judged": "validated",
    "judging": "validation",
    "verdict": "metrics",
    "World": "ProcessGroup",
    "SingleWorld": "LocalGroup",
    "world": "process group, synthetic data set",
    "ranks": "world_size",
    "batch_blocks": "micro_batch_size",
    "accumulate": "gradient_accumulation_steps",
    "recompute": "activation_checkpointing",
    "compress_gradients": "fp16_gradient_compression",
    "clip_norm": "max_grad_norm",
    "heads": "n_heads",
    "layers": "n_layers",
    "segment": "window",
    "segments": "windows",
    "rule_says": "baseline_name",
    "rule_score": "baseline_score",
    "rule_events": "baseline_filter",
    "most_values": "top_k",
    "says": "description, message",
    "said": "message",
    "told": "row, record, message",
    "tell": "log",
    "did": "outcome_verb",
    "tenth": "decile",
    "tenths": "deciles",
    "lead": "difference",
    "peers": "baselines",
    "wants": "treatment_response",
    "telco": "telecom",
    "somebody": "customer",
    "nobody": "unassigned",
}
# Words that are never right, in code, comments, documents and messages.
WORDS = re.compile(
    r"(?<![A-Za-z])(habits?|lessons?|told|disowned|anew|intake|standings?|nobody|somebody|whoever|whosoever|"
    # "too few to judge: N" is what reports and results say about a small period.
    r"(?<!too few to )judge[ds]?|judging|verdicts?|telco)(?![A-Za-z])",
    re.IGNORECASE,
)
# Where a word is quoted or belongs to another program.
ALLOWED = {
    "tests/test_language.py": "this list",
    "tests/support/postgres.py": "the Unix user `nobody`",
    "requirements.lock": "hashes",
}
TEXTS = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".j2", ".ipynb", ".css", ".properties", "Makefile")


def tracked(*patterns: str) -> list[str]:
    """Tracked files, relative to the repository."""
    output = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [name for name in output.splitlines() if (ROOT / name).is_file()]


MODULES = tracked("*.py")


def defined_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module defines: functions, classes, parameters, variables, attributes, keyword fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("module", MODULES)
def test_names_are_those_of_the_field(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    wrong = [
        f"line {line}: {name} (use {NAMES[name.lstrip('_')]})"
        for name, line in defined_names(tree)
        if name.lstrip("_") in NAMES
    ]
    assert wrong == []


def test_words_are_plain_english() -> None:
    wrong = []
    for name in tracked():
        if name in ALLOWED or not name.endswith(TEXTS):
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1):
            if match := WORDS.search(line):
                wrong.append(f"{name}:{number}: {match[0]}")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_short_enough_to_read(module: str) -> None:
    most = 500
    if module.startswith("lam_spark/"):
        most = 450 if module == "lam_spark/model/transformer.py" else 400
    assert len((ROOT / module).read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("lam_spark/")])
def test_a_function_is_short_enough_to_read(module: str) -> None:
    long = []
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if lines > 60:
                long.append(f"{node.name}: {lines} lines")
    assert long == []
