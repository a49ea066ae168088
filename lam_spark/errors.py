"""Every error that lam_spark raises on purpose: one root class, one exit code per kind.

A message says what was expected, what arrived and what to do next.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from lam_spark.foreign_errors import describe
from lam_spark.masking import masked


class LamSparkError(Exception):
    """Root of all errors raised on purpose; any other exception is a defect."""

    exit_code = 1


class ConfigError(LamSparkError):
    """The configuration, a flag or an input that it names is missing or wrong."""

    exit_code = 2


class DataQualityError(LamSparkError):
    """The data broke a quality gate: nothing was published, the last good tables are unchanged."""

    exit_code = 3


class ConsentError(LamSparkError):
    """The consent ledger is empty or unreadable, or no customer is eligible."""

    exit_code = 4


class ModelError(LamSparkError):
    """A model is missing, damaged, or does not fit the data."""

    exit_code = 5


class ConcurrentRunError(LamSparkError):
    """Another run holds the workspace, or changed a table first."""

    exit_code = 6


class AuditError(LamSparkError):
    """The audit chain is broken, or an entry was written by another version."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Hint for an unknown name: the nearest known name, else `otherwise`, else all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"expected one of {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """First line of an error's text without secrets; Spark appends query plans and stack traces after it."""
    lines = str(error).strip().splitlines()
    return masked(lines[0]) if lines else type(error).__name__


def without_values(error: BaseException) -> str:
    """Text of an error that may be stored: our own messages in full; of others classes, conditions and advice.

    The text of a Spark or Python error may quote a row (`The value 'C-1234' cannot be cast`). See
    `foreign_errors.describe` for what is shown of it.
    """
    if isinstance(error, LamSparkError):
        return masked(f"{type(error).__name__}: {error}")
    return masked(describe(error))


def values_may_be_shown() -> bool:
    """Whether the user asked to see the text of foreign errors on stderr; they are never stored."""
    return os.environ.get("LAM_SPARK_SHOW_VALUES") == "1"
