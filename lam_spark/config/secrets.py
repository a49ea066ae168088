"""Secrets in the configuration: refused as values, read from the environment variables that it names instead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lam_spark.errors import ConfigError
from lam_spark.masking import secret_names


def refuse_secrets(values: Any, key: str, remedy: str) -> None:
    """Check that values of the configuration hold no secret; the message names them and does not show them.

    Args:
        values: A text, or mappings and lists of texts.
        key: Key of the section that holds them.
        remedy: What to do instead.

    Raises:
        ValueError: A value is a secret by its name or by its form.
    """
    found = list(dict.fromkeys(secret_names(values)))
    if found:
        raise ValueError(
            f"expected no secret in {key}, got {', '.join(found)}; the configuration is copied into the audit: {remedy}"
        )


def read_secrets(key: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Values of the environment variables that a section `secrets` names, by its keys.

    Raises:
        ConfigError: A variable is not set.
    """
    for name, variable in variables.items():
        if variable not in os.environ:
            raise ConfigError(f"{key}.{name}: expected the environment variable {variable}, it is not set")
    return {name: os.environ[variable] for name, variable in variables.items()}
