"""The shipped configuration, and the error that an invalid one raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
# Writes the shipped configuration with one change to its content; returns the file.
Write = Callable[[Callable[[dict[str, Any]], object]], Path]


def error_text(file: Path, *overrides: str) -> str:
    """Text of the error that loading the file raises, without its first line."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=overrides)
    return str(caught.value).removeprefix(f"{file} is not a valid configuration:\n")
