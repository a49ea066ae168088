"""docs/configuration.md lists every key with its default, and every reserved field name."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from lam_spark.config import Config, Section, duration_text
from lam_spark.storage.tables.reserved import RESERVED_COLUMNS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, with its default as a tuple of one; None where it has none."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        inner = [a for a in (kind, *get_args(kind)) if isinstance(a, type) and issubclass(a, Section)]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.{'NAME.' if get_origin(kind) is dict else ''}")
        else:
            default = field.get_default(call_default_factory=True)
            if isinstance(default, dt.timedelta):
                default = duration_text(default)
            yield f"{prefix}{name}", None if default is PydanticUndefined else (default,)


def test_every_key_is_listed_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| .+? \| (?:`(.*?)`)? \| .+ \|$", PAGE, flags=re.MULTILINE)
    listed = {key: [json.loads(default)] if default else None for key, default in rows}
    known = {key: default and json.loads(json.dumps(default, default=str)) for key, default in keys()}
    assert {key: listed[key] for key in known} == known
    # Keys of whole sections are listed too.
    assert all(any(key.startswith(f"{other}.") for key in known) for other in set(listed) - set(known))


def test_every_reserved_field_name_is_listed() -> None:
    (names,) = re.findall(r"have one of these names:\n(.*?)\.$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\w+", names) == sorted(RESERVED_COLUMNS)
