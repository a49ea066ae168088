"""Fixtures of the configuration's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.shipped import SHIPPED, Write


@pytest.fixture
def write_changed(tmp_path: Path) -> Write:
    """Writes the shipped configuration with one change."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
        change(content)
        file = tmp_path / "changed.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    return write
