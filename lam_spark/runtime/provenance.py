"""Which code made something: its commit, and the libraries beside it."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

_PACKAGES = (
    "pyspark",
    "delta-spark",
    "torch",
    "horovod",
    "petastorm",
    "mlflow",
    "pyarrow",
    "numpy",
    "pandas",
)


def package_versions() -> dict[str, str]:
    """Version of each library that decides what comes out, or that it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str:
    """Commit of the code that runs, with `+changes` where the tree differs; `none` outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "none"
    return commit + ("+changes" if git("status", "--porcelain", "--", ".") else "")
