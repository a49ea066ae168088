"""Base class, value types and helpers that the sections of the configuration share."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lam_spark.errors import did_you_mean

Role = Literal["who", "when", "where", "what", "how"]
Kind = Literal["categorical", "numeric", "reference"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


def _as_text(value: Any) -> Any:
    """Convert a YAML number or boolean to text as Spark writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


# Text that may look like a number: it needs no quotes in the file.
Text = Annotated[str, BeforeValidator(_as_text)]


def _variable_name(value: str) -> str:
    if not re.fullmatch(
        r"[A-Za-z_][A-Za-z0-9_]*", value
    ):  # the value may be the secret itself: it is not shown
        raise ValueError("expected the name of an environment variable: letters, digits and _")
    return value


# Name of an environment variable that holds a secret.
Variable = Annotated[str, AfterValidator(_variable_name)]


def _permission_bits(value: Any) -> Any:
    """Permission bits as text; YAML reads 0640 as an octal number."""
    text = f"{value:04o}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch("06[0246]{2}", text):
        raise ValueError(
            "expected permission bits of a file such as 0600 or 0640: read and write for the owner, no execution, got "
            f"{value!r}"
        )
    return text


# Permission bits of a file, octal: 0600, 0640, 0660.
FileMode = Annotated[str, BeforeValidator(_permission_bits)]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, and values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def differs_from_default(self, key: str) -> bool:
        """Whether the key has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def known_zone(value: str) -> str:
    """Validate the name of a time zone.

    Raises:
        ValueError: The name is not in the IANA time zone database.
    """
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"expected an IANA time zone such as Europe/Lisbon, got {value!r}") from error
    return value


def undeclared(name: str, known: Iterable[str]) -> str:
    """Error text for a name that the file does not declare."""
    return f"{name!r} is not declared: {did_you_mean(name, known)}"
