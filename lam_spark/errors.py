"""Every error that lam_spark raises on purpose: one root, one exit code a kind.

A message says what was expected, what arrived, and what to do next.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint of an error about an unknown name: the nearest known one, else `otherwise`, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"expected one of {', '.join(names)}"


class LamSparkError(Exception):
    """Root of all errors raised on purpose; anything else is a defect."""

    exit_code = 1


def without_values(error: BaseException) -> str:
    """What may be written down of an error: our own text, but only kind and condition of anybody else's.

    The text of a Spark or Python error may quote a row (`The value 'C-1234' cannot be cast`).
    """
    if isinstance(error, LamSparkError):
        return f"{type(error).__name__}: {error}"
    condition = getattr(error, "getCondition", lambda: None)()
    return type(error).__name__ + (f" [{condition}]" if condition else "")


def values_may_be_shown() -> bool:
    """Whether somebody wants to read the text of anybody else's error: on stderr, never written down."""
    return os.environ.get("LAM_SPARK_SHOW_VALUES") == "1"


class ConfigError(LamSparkError):
    """The configuration, a flag or an input it names is missing or wrong."""

    exit_code = 2


class DataQualityError(LamSparkError):
    """The data broke a gate: nothing was published, the last good tables stand."""

    exit_code = 3


class ConsentError(LamSparkError):
    """The consent ledger is empty or unreadable, or leaves nobody eligible."""

    exit_code = 4


class ModelError(LamSparkError):
    """A model is missing, damaged, or does not fit the data it is asked to read."""

    exit_code = 5


class ConcurrentRunError(LamSparkError):
    """Another run holds the workspace or won the race for a table."""

    exit_code = 6
