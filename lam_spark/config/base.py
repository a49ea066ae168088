"""Base class, value types and helpers that the sections of the configuration share."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

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

_MINUTES = {"m": 1, "h": 60, "d": 24 * 60}


def _as_duration(value: Any) -> dt.timedelta:
    """Read a duration such as `90m`, `6h` or `2d`; a plain 0 needs no unit."""
    if isinstance(value, dt.timedelta):
        return value
    match = re.fullmatch(r"(\d{1,6})([mhd])", "0h" if str(value) == "0" else str(value))
    if match is None:
        raise ValueError(
            f"expected a duration in minutes, hours or days such as 90m, 6h or 2d, got {value!r}"
        )
    return dt.timedelta(minutes=int(match[1]) * _MINUTES[match[2]])


def duration_text(value: dt.timedelta) -> str:
    """A duration of whole minutes in its largest unit that fits, such as `36h`; inverse of reading it."""
    minutes = value // dt.timedelta(minutes=1)
    if not minutes:
        return "0h"
    unit = next(unit for unit in ("d", "h", "m") if minutes % _MINUTES[unit] == 0)
    return f"{minutes // _MINUTES[unit]}{unit}"


# A duration of whole minutes, written as `90m`, `6h` or `2d`.
Duration = Annotated[dt.timedelta, BeforeValidator(_as_duration), PlainSerializer(duration_text)]
NO_DELAY = dt.timedelta(0)


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
