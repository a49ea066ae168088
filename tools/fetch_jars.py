"""Puts the jars that a session needs into the cache folder, where lam_spark/session.py looks for them.

Run by `make setup` with .venv's Python: `.venv/bin/python tools/fetch_jars.py`. They are Delta's and PostgreSQL's
JDBC driver. Spark's own `spark.jars.packages` fetches them, so that a mirror named in DEFAULT_ARTIFACT_REPOSITORY
is used; here their sha256 is checked and they are moved into place. Later runs need no network. What else Delta
needs (ANTLR, Jackson) comes with pyspark.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DELTA_VERSION = "4.0.1"
POSTGRESQL_VERSION = "42.7.14"
# Folder of the cache -> what is in it: a Maven package, and of its jars those that are kept, with their sha256.
PACKAGES = {
    f"delta-{DELTA_VERSION}": f"io.delta:delta-spark_2.13:{DELTA_VERSION}",
    f"postgresql-{POSTGRESQL_VERSION}": f"org.postgresql:postgresql:{POSTGRESQL_VERSION}",
}
SHA256 = {
    f"delta-{DELTA_VERSION}": {
        f"delta-spark_2.13-{DELTA_VERSION}.jar": "a1e76860b19fe1e6b205a4ea7a9099a2f9575d39bb71d49b3e679b299d0efb91",
        f"delta-storage-{DELTA_VERSION}.jar": "ecc42c5aaa51c423312d9e4e48aa4a12b34740bf2c37de0e8f279277ec3d12e4",
    },
    f"postgresql-{POSTGRESQL_VERSION}": {
        f"postgresql-{POSTGRESQL_VERSION}.jar": "73914527305a40cce504b0d3d90b23caf565136912d607ae8ae7c5895512332c",
    },
}


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lam_spark"


def jars_dir() -> Path:
    return cache_root() / "jars"


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def lacking(*, hashed: bool) -> list[str]:
    """The folders that lack a jar or, if `hashed`, hold a wrong one. (Only right ones are ever moved there.)"""
    return [
        folder
        for folder, jars in SHA256.items()
        if not all(
            digest(jars_dir() / folder / name) == sha256 if hashed else (jars_dir() / folder / name).is_file()
            for name, sha256 in jars.items()
        )
    ]


def resolve(packages: Sequence[str], ivy: Path) -> None:
    """Has Spark resolve the packages into `ivy`. Launching the JVM does it; no session is needed."""
    from pyspark.conf import SparkConf
    from pyspark.java_gateway import launch_gateway

    conf = SparkConf(loadDefaults=False)
    conf.set("spark.jars.packages", ",".join(packages))
    conf.set("spark.jars.excludes", "org.antlr:antlr4-runtime")  # pyspark has it
    conf.set("spark.jars.ivy", str(ivy))
    gateway = launch_gateway(conf)  # type: ignore[no-untyped-call]
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=60)


def fetch(folders: Sequence[str]) -> None:
    jars_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ivy-", dir=jars_dir()) as ivy:
        resolve([PACKAGES[folder] for folder in folders], Path(ivy))
        for folder in folders:
            (jars_dir() / folder).mkdir(exist_ok=True)
            group = PACKAGES[folder].partition(":")[0]
            for name, sha256 in SHA256[folder].items():
                fetched = Path(ivy) / "jars" / f"{group}_{name}"
                if (found := digest(fetched)) != sha256:
                    raise SystemExit(f"{name}: expected sha256 {sha256}, found {found or 'no such file'}")
                fetched.replace(jars_dir() / folder / name)


if __name__ == "__main__":
    if not (folders := lacking(hashed=True)):
        sys.exit(0)
    fetch(folders)
    print(f"{', '.join(folders)}: the jars are in {jars_dir()}")
