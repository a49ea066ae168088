"""The session starts with the jars that the set-up keeps, and with those that a configuration adds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lam_spark.config import SparkConfig
from lam_spark.runtime import session

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import fetch_jars

MORE = SparkConfig(settings={"spark.jars.packages": "com.mysql:mysql-connector-j:9.4.0"})


def test_the_set_up_keeps_what_the_session_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder, jars in fetch_jars.SHA256.items():
        for name in jars:
            jar = fetch_jars.jars_dir() / folder / name
            jar.parent.mkdir(parents=True, exist_ok=True)
            jar.touch()
    assert len(session.cached_jars()) == sum(map(len, fetch_jars.SHA256.values())) == 3
    assert set(fetch_jars.PACKAGES.values()) == {session.DELTA_PACKAGE, session.POSTGRESQL_PACKAGE}


def test_packages_of_the_configuration_come_beside_the_cached_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "cached_jars", lambda: [tmp_path / "a.jar", tmp_path / "b.jar"])
    assert session.jar_settings(MORE) == {
        "spark.jars": f"{tmp_path}/a.jar,{tmp_path}/b.jar",
        "spark.jars.packages": "com.mysql:mysql-connector-j:9.4.0",
    }


def test_without_cached_jars_spark_fetches_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cached_jars", lambda: [])
    ours = f"{session.DELTA_PACKAGE},{session.POSTGRESQL_PACKAGE}"
    assert session.jar_settings(SparkConfig()) == {"spark.jars.packages": ours}
    assert session.jar_settings(MORE) == {"spark.jars.packages": f"{ours},com.mysql:mysql-connector-j:9.4.0"}
