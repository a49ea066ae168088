"""Stage `fetch`: puts the raw files of a data set in place, where the configuration names a function."""

from __future__ import annotations

import importlib

from lam_spark.errors import ConfigError
from lam_spark.runtime.context import Run, StageResult, stage


@stage
def run(run: Run) -> StageResult:
    """Call the configured function with the raw folder.

    Raises:
        ConfigError: the function cannot be imported or refuses its arguments.
    """
    fetch = run.config.fetch
    if fetch is None:
        return StageResult("nothing to fetch: the inputs are read where they are")
    module, _, name = fetch.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"fetch.function {fetch.function!r} cannot be imported: {error}") from error
    try:
        rows: dict[str, int] = function(run.config.workspace / "raw", **fetch.arguments)
    except TypeError as error:
        raise ConfigError(f"fetch.arguments do not fit {fetch.function}: {error}") from error
    return StageResult(f"{sum(rows.values()):,} raw rows in {len(rows)} files", counts=rows)
