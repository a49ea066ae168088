"""Stage `fetch`: puts the raw files of a data set in place, where the configuration names a function."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from lam_spark.config.secrets import read_secrets
from lam_spark.errors import ConfigError, first_line
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult


@dataclass(frozen=True)
class FetchResult(StageResult):
    """Raw rows by file; empty where the configuration names no function."""

    rows_by_file: dict[str, int]

    @property
    def message(self) -> str:
        """One line for people."""
        if not self.rows_by_file:
            return "nothing to fetch: the inputs are read where they are"
        return f"{sum(self.rows_by_file.values()):,} raw rows in {len(self.rows_by_file)} files"

    @property
    def counts(self) -> Mapping[str, int]:
        """Raw rows by file."""
        return self.rows_by_file


@stage
def fetch(ctx: RunContext) -> FetchResult:
    """Call the configured function with the raw folder.

    Raises:
        ConfigError: The function cannot be imported or refuses its arguments, or a secret is not in the environment.
    """
    settings = ctx.config.fetch
    if settings is None:
        return FetchResult({})
    module, _, name = settings.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"fetch.function {settings.function!r} cannot be imported: {first_line(error)}"
        ) from error
    secrets = read_secrets("fetch.secrets", settings.secrets)
    try:
        rows: dict[str, int] = function(ctx.config.workspace / "raw", **settings.arguments, **secrets)
    except TypeError as error:
        raise ConfigError(f"fetch.arguments do not fit {settings.function}: {first_line(error)}") from error
    return FetchResult(rows)
