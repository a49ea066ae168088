"""Command-line flags: a wrong flag is a configuration error that lists the right ones."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lam_spark.errors import ConfigError


class FlagParser(argparse.ArgumentParser):
    """Raises `ConfigError` where argparse would end the process.

    Args:
        program: What the user typed.
        flags: All flags, for the message.
    """

    def __init__(self, program: str, flags: str) -> None:
        super().__init__(prog=program, allow_abbrev=False)
        self._flags = flags

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message."""
        raise ConfigError(f"{message} (flags: {self._flags})")
