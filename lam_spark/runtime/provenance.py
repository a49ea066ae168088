"""Provenance of results: the code's git commit and the versions of the libraries."""

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
    """Version of each library that determines results, or `not installed`."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_commit() -> str:
    """Commit of the running code, with `+changes` if the tree differs from it; `none` outside a checkout."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return process.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "none"
    return commit + ("+changes" if git("status", "--porcelain", "--", ".") else "")
