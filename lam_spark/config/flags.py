"""The flags of the command line: a wrong one is a configuration error, with the right ones beside it."""

from __future__ import annotations

import argparse
from typing import Any

from lam_spark.errors import ConfigError


class FlagParser(argparse.ArgumentParser):
    """Raises `ConfigError` where argparse would end the process.

    Args:
        program: what the user typed.
        flags: all of them, for the message.
    """

    def __init__(self, program: str, flags: str) -> None:
        super().__init__(prog=program, allow_abbrev=False)
        self._flags = flags

    def error(self, message: str) -> Any:
        """Raise what argparse found."""
        raise ConfigError(f"{message} (flags: {self._flags})")
