"""Stage `fetch`: the configured function gets its arguments, secrets from the environment among them."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lam_spark.config import FetchConfig
from lam_spark.datasets.stage import FetchResult, fetch
from lam_spark.errors import ConfigError
from lam_spark.storage.dataframes import FrameCache

Fetch = Callable[..., FetchResult]
CONFIG = {"function": "fetched_by_a_test:fetch", "arguments": {"rows": 3}, "secrets": {"api_key": "SHOP_KEY"}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Runs the stage with a function that writes one file with its arguments."""

    def write_raw_files(folder: Path, rows: int, api_key: str) -> dict[str, int]:
        folder.mkdir(parents=True)
        (folder / "raw.csv").write_text(f"{rows} {api_key}")
        return {"raw.csv": rows}

    monkeypatch.setitem(sys.modules, "fetched_by_a_test", SimpleNamespace(fetch=write_raw_files))

    def run_with(**settings: Any) -> FetchResult:
        config = SimpleNamespace(
            fetch=FetchConfig(**(CONFIG | settings)), workspace=tmp_path / "shop", file_permissions=0o600
        )
        ctx: Any = SimpleNamespace(config=config, cache=FrameCache())
        return fetch(ctx)

    return run_with


def test_a_secret_comes_from_the_variable_that_the_configuration_names(
    run: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "hush")
    assert run().rows_by_file == {"raw.csv": 3}
    file = tmp_path / "shop" / "raw" / "raw.csv"
    assert file.read_text() == "3 hush"
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)


def test_a_variable_that_is_not_set_is_named(run: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"fetch.secrets.api_key: .* variable SHOP_KEY, it is not set"):
        run()


def test_arguments_that_do_not_fit_are_named(run: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "hush")
    with pytest.raises(ConfigError, match=r"fetch.arguments do not fit fetched_by_a_test:fetch: .*'row'"):
        run(arguments={"rows": 3, "row": 4})
