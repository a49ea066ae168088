"""Puts Delta's jars into the cache folder, where lam_spark/session.py looks for them.

Run by `make setup` with .venv's Python: `.venv/bin/python tools/fetch_jars.py`. Spark's own
`spark.jars.packages` fetches them, so that a mirror named in DEFAULT_ARTIFACT_REPOSITORY is used; here their
sha256 is checked and they are moved into place. Later runs need no network. What else Delta needs (ANTLR,
Jackson) comes with pyspark.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

DELTA_VERSION = "4.0.1"
PACKAGE = f"io.delta:delta-spark_2.13:{DELTA_VERSION}"
SPARK_JAR = f"delta-spark_2.13-{DELTA_VERSION}.jar"
STORAGE_JAR = f"delta-storage-{DELTA_VERSION}.jar"
SHA256 = {
    SPARK_JAR: "a1e76860b19fe1e6b205a4ea7a9099a2f9575d39bb71d49b3e679b299d0efb91",
    STORAGE_JAR: "ecc42c5aaa51c423312d9e4e48aa4a12b34740bf2c37de0e8f279277ec3d12e4",
}


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lam_spark"


def jars_dir() -> Path:
    return cache_root() / "jars" / f"delta-{DELTA_VERSION}"


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def all_present(*, hashed: bool) -> bool:
    """Whether every jar is there and, if `hashed`, right. (Only right ones are ever moved there.)"""
    folder = jars_dir()
    if not hashed:
        return all((folder / name).is_file() for name in SHA256)
    return all(digest(folder / name) == sha256 for name, sha256 in SHA256.items())


def resolve(ivy: Path) -> None:
    """Has Spark resolve the package into `ivy`. Launching the JVM does it; no session is needed."""
    from pyspark.conf import SparkConf
    from pyspark.java_gateway import launch_gateway

    conf = SparkConf(loadDefaults=False)
    conf.set("spark.jars.packages", PACKAGE)
    conf.set("spark.jars.excludes", "org.antlr:antlr4-runtime")  # pyspark has it
    conf.set("spark.jars.ivy", str(ivy))
    gateway = launch_gateway(conf)  # type: ignore[no-untyped-call]
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=60)


def fetch() -> None:
    folder = jars_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ivy-", dir=folder.parent) as ivy:
        resolve(Path(ivy))
        for name, sha256 in SHA256.items():
            fetched = Path(ivy) / "jars" / f"io.delta_{name}"
            if (found := digest(fetched)) != sha256:
                raise SystemExit(f"{name}: expected sha256 {sha256}, found {found or 'no such file'}")
            fetched.replace(folder / name)


if __name__ == "__main__":
    if all_present(hashed=True):
        sys.exit(0)
    fetch()
    print(f"Delta's jars are in {jars_dir()}")
