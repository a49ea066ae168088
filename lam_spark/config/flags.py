"""Command-line flags: an invalid flag is a configuration error that lists the valid flags."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lam_spark.errors import ConfigError


class FlagParser(argparse.ArgumentParser):
    """Parser that raises `ConfigError` where argparse would end the process.

    Args:
        program: Name of the program in messages.
        flags: All flags, listed in messages.
    """

    def __init__(self, program: str, flags: str) -> None:
        super().__init__(prog=program, allow_abbrev=False)
        self._flags = flags

    def error(self, message: str) -> NoReturn:
        """Raise the message of argparse as a `ConfigError`."""
        raise ConfigError(f"{message} (flags: {self._flags})")
