"""Reads a data set's YAML file into a `Config`: overrides, validation, and errors that name the key.

An unknown key is an error that suggests the nearest valid key. Callers see only `ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from lam_spark.config import Config, Section
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.masking import masked


def load_config(path: str | Path, as_of: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read, override and validate a configuration file.

    Args:
        path: YAML file.
        as_of: ISO date that replaces `as_of` of the file.
        overrides: `dotted.key=value` pairs; the value is parsed as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown or missing, or a value is invalid.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        hint = f"; {file.parent} contains {', '.join(siblings)}" if siblings else ""
        raise ConfigError(f"expected a configuration file at {file}, found none{hint}") from None
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
    ) as error:  # ValueError: encoding, or a date such as 2024-13-01
        raise ConfigError(f"expected a readable YAML file at {file}: {masked(str(error))}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"expected a mapping of keys in {file}, got {type(content).__name__}")
    for override in overrides:
        _override(content, override)
    if as_of is not None:
        content["as_of"] = as_of
    try:
        config = Config.model_validate(content)
        if as_of is None:
            config.require_periods()
    except ValidationError as error:
        raise ConfigError(_explain(error, file)) from error
    except ValueError as error:
        raise ConfigError(f"{file} is not a valid configuration:\n  - {error}") from error
    return _substitute(config)


def _substitute(config: Config) -> Config:
    """Replace `{root}` in the paths of inputs."""
    inputs = {
        name: spec.model_copy(update={"path": spec.path.replace("{root}", config.root)})
        for name, spec in config.inputs.items()
    }
    return config.model_copy(update={"inputs": inputs})


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        raise ConfigError(f"expected --set key=value with a dotted key, got {masked(override)!r}")
    *parents, leaf = key.split(".")
    node = content
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--set {key}: {masked(override).partition('=')[2]!r} is not a YAML value"
        ) from error


def _explain(error: ValidationError, file: Path) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(problem["loc"][:-1])
            lines.append(f"unknown key {where!r}: {did_you_mean(str(problem['loc'][-1]), valid)}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {where!r}")
        else:
            received = "" if problem["type"] == "value_error" else f", got {problem['input']!r:.80}"
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where + ': ' if where else ''}{message}{masked(received)}")
    return f"{file} is not a valid configuration:\n" + "\n".join(f"  - {line}" for line in lines)


def _valid_keys(location: Sequence[int | str]) -> list[str]:
    """Valid keys of the section at `location`."""
    section: Any = Config
    for part in location:
        if isinstance(section, type) and issubclass(section, Section):
            section = section.model_fields[str(part)].annotation
        elif get_origin(section) is dict:
            section = get_args(section)[1]
        candidates = [a for a in get_args(section) if isinstance(a, type) and issubclass(a, Section)]
        if get_origin(section) is not dict and candidates:
            section = candidates[0]
    return sorted(section.model_fields) if isinstance(section, type) and issubclass(section, Section) else []
