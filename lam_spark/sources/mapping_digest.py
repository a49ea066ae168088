"""Digests of everything in the configuration that decides how raw rows are mapped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from lam_spark.config import Config, InputConfig
from lam_spark.identity.pseudonyms import CUSTOMER


def mapping_digest(config: Config, reader: str) -> str:
    """sha256 (hex) of a reader's select, rules, fields, views and inputs.

    Where the reader's ids are assigned to customers by links, the rules of the assignment are part of it.
    """
    spec = config.reader(reader)
    is_channel = reader in config.channels
    views = _views_behind(config, spec.select)
    # The grain, and the inputs that are looked up.
    inputs = {spec.grain, *inputs_behind(config, spec.select)}
    fields = {
        name: field.model_dump(include={"kind", "min", "max", "values"})
        for name, field in config.fields.items()
    }
    description = [
        spec.model_dump(mode="json", exclude={"max_silence_days"}),  # says nothing about a row
        views,
        {name: _described(config.inputs[name]) for name in sorted(inputs)},
        fields if is_channel else {},
        config.quality.earliest.isoformat() if is_channel else "",
        sorted(config.identity.fold_case),
    ]
    if is_channel and config.channels[reader].id != CUSTOMER:
        description.append(config.identity.model_dump(include={"max_customers", "lookback_days"}))
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def ledger_digest(config: Config) -> str:
    """sha256 (hex) of everything that decides which statements the consent ledger's source gives."""
    statement = config.consent.select
    description = [
        config.consent.model_dump(mode="json", include={"select", "kind", "clock", "purposes"}),
        _views_behind(config, statement),
        {name: _described(config.inputs[name]) for name in inputs_behind(config, statement)},
        sorted(config.identity.fold_case),
    ]
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def inputs_behind(config: Config, statement: str) -> list[str]:
    """Inputs that a statement names, directly or through views, sorted."""
    views = _views_behind(config, statement)
    return sorted(_named([statement, *views.values()], config.inputs))


def lookups_behind(config: Config, reader: str) -> list[str]:
    """Inputs that a reader's select looks up: all that it reads other than as its own new rows, sorted.

    The grain is one of them where a view names it: a view is always complete.
    """
    spec = config.reader(reader)
    views = _views_behind(config, spec.select)
    by_views = _named(views.values(), config.inputs)
    return [
        name for name in inputs_behind(config, spec.select) if name != spec.grain or spec.grain in by_views
    ]


def _described(spec: InputConfig) -> list[Any]:
    """The part of an input's configuration that decides the content of its rows."""
    # The address of a database and the way it is read do not change its rows.
    options = {
        key: value
        for key, value in spec.options.items()
        if spec.format != "jdbc" or key in ("dbtable", "query")
    }
    return [spec.format, spec.columns, options, spec.watermark]


def _views_behind(config: Config, statement: str) -> dict[str, str]:
    """Views that a statement names, directly or through other views."""
    views: dict[str, str] = {}
    statements = [statement]
    while statements:
        names = [name for name in _named([statements.pop()], config.views) if name not in views]
        views |= {name: config.views[name] for name in names}
        statements += [config.views[name] for name in names]
    return views


def _named(statements: Iterable[str], names: Iterable[str]) -> set[str]:
    """Names that occur in at least one statement."""
    text = "\n".join(statements)
    return {name for name in names if re.search(rf"\b{name}\b", text)}
