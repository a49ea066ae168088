"""Downloads the jars of Delta and PostgreSQL's JDBC driver into the cache folder of `lam_spark/runtime/session.py`.

`make setup` runs it: `.venv/bin/python tools/fetch_jars.py`. Spark's `spark.jars.packages` downloads the jars, so a
mirror in DEFAULT_ARTIFACT_REPOSITORY is used. Their sha256 is checked before they are moved into the cache. Later runs
need no network. The other dependencies of Delta (ANTLR, Jackson) come with pyspark.
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
# Folder of the cache -> its Maven package; `SHA256`: folder -> jars that are kept, with their sha256.
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
    """Cache folder that all checkouts share."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lam_spark"


def jars_dir() -> Path:
    """Folder of the jars in the cache."""
    return cache_root() / "jars"


def digest(path: Path) -> str | None:
    """sha256 of a file; None if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def incomplete_folders(*, hashed: bool) -> list[str]:
    """Folders in which a jar is missing or, with `hashed`, has another sha256."""
    return [
        folder
        for folder, jars in SHA256.items()
        if not all(
            digest(jars_dir() / folder / name) == sha256 if hashed else (jars_dir() / folder / name).is_file()
            for name, sha256 in jars.items()
        )
    ]


def resolve(packages: Sequence[str], ivy: Path) -> None:
    """Let Spark download the packages into the folder `ivy`: launching its JVM does so, without a session."""
    from pyspark.conf import SparkConf
    from pyspark.java_gateway import launch_gateway

    conf = SparkConf(loadDefaults=False)
    conf.set("spark.jars.packages", ",".join(packages))
    conf.set("spark.jars.excludes", "org.antlr:antlr4-runtime")  # part of pyspark
    conf.set("spark.jars.ivy", str(ivy))
    gateway = launch_gateway(conf)  # type: ignore[no-untyped-call]
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=60)


def fetch(folders: Sequence[str]) -> None:
    """Download the jars of these folders, check them and move them into the cache."""
    jars_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ivy-", dir=jars_dir()) as ivy:
        resolve([PACKAGES[folder] for folder in folders], Path(ivy))
        for folder in folders:
            (jars_dir() / folder).mkdir(exist_ok=True)
            group = PACKAGES[folder].partition(":")[0]
            for name, sha256 in SHA256[folder].items():
                jar = Path(ivy) / "jars" / f"{group}_{name}"
                if (actual := digest(jar)) != sha256:
                    raise SystemExit(f"{name}: expected sha256 {sha256}, found {actual or 'no such file'}")
                jar.replace(jars_dir() / folder / name)


if __name__ == "__main__":
    if not (folders := incomplete_folders(hashed=True)):
        sys.exit(0)
    fetch(folders)
    print(f"downloaded {', '.join(folders)} to {jars_dir()}")
