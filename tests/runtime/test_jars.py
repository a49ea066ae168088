"""The session starts with the cached jars and the packages of the configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lam_spark.config import SparkConfig
from lam_spark.runtime import session

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import fetch_jars

WITH_MYSQL = SparkConfig(settings={"spark.jars.packages": "com.mysql:mysql-connector-j:9.4.0"})


def test_the_session_finds_the_jars_that_the_setup_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder, jars in fetch_jars.SHA256.items():
        for name in jars:
            jar = fetch_jars.jars_dir() / folder / name
            jar.parent.mkdir(parents=True, exist_ok=True)
            jar.touch()
    assert len(session.cached_jars()) == sum(map(len, fetch_jars.SHA256.values())) == 3
    assert set(fetch_jars.PACKAGES.values()) == {session.DELTA_PACKAGE, session.POSTGRESQL_PACKAGE}


def test_packages_of_the_configuration_are_added_to_the_cached_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "cached_jars", lambda: [tmp_path / "a.jar", tmp_path / "b.jar"])
    assert session.jar_settings(WITH_MYSQL) == {
        "spark.jars": f"{tmp_path}/a.jar,{tmp_path}/b.jar",
        "spark.jars.packages": "com.mysql:mysql-connector-j:9.4.0",
    }


def test_without_cached_jars_spark_downloads_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cached_jars", lambda: [])
    own_packages = f"{session.DELTA_PACKAGE},{session.POSTGRESQL_PACKAGE}"
    assert session.jar_settings(SparkConfig()) == {"spark.jars.packages": own_packages}
    assert session.jar_settings(WITH_MYSQL) == {
        "spark.jars.packages": f"{own_packages},com.mysql:mysql-connector-j:9.4.0"
    }
