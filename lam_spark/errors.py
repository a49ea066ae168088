"""Every error that lam_spark raises on purpose: one root class, one exit code per kind.

A message says what was expected, what arrived and what to do next. A signal that ends the run is no error of that
kind, but has an exit code too.
"""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Iterable

from lam_spark.masking import masked

# All exit codes. A run that a signal ends has 128 plus the signal's number, as shells report it.
EXIT_CODES = {
    0: "done",
    1: "unexpected",
    2: "configuration",
    3: "data quality",
    4: "consent",
    5: "model",
    6: "another run holds the workspace",
    129: "terminal closed (SIGHUP)",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}


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


class Interrupted(KeyboardInterrupt):
    """A signal ended the run. Code that expects Ctrl-C, also of other libraries, treats it like Ctrl-C.

    Args:
        number: The signal.

    Attributes:
        exit_code: Exit code of the run.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def exit_code_of(error: BaseException) -> int:
    """Exit code of a run that ends with this error."""
    if isinstance(error, LamSparkError | Interrupted):
        return error.exit_code
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


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
    """Text of an error that may be stored: our own messages in full, of others only class and error condition.

    The text of a Spark or Python error may quote a row (`The value 'C-1234' cannot be cast`).
    """
    if isinstance(error, LamSparkError):
        return masked(f"{type(error).__name__}: {error}")
    if isinstance(error, Interrupted):
        return str(error)
    condition = getattr(error, "getCondition", lambda: None)()
    return type(error).__name__ + (f" [{condition}]" if condition else "")


def values_may_be_shown() -> bool:
    """Whether the user asked to see the text of foreign errors on stderr; they are never stored."""
    return os.environ.get("LAM_SPARK_SHOW_VALUES") == "1"
