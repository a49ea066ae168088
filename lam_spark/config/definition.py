"""What tables, models and scores are made for: the part of the configuration that defines them, as digests by key.

A table stores the definition that it was made for with its commit, a model in its card, scores in a column. A stage
compares it with the definition that its own configuration gives, and names the keys that differ. Digests instead of
values keep the metadata small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lam_spark.config.dataset import Config
from lam_spark.config.targets import TargetConfig

# Configuration key -> first digits of the sha256 of its value.
Definition = dict[str, str]

_DIGITS = 16
_FIELD_ORDER = "fields"
# Keys of a target that do not define its queries and labels: words, and settings of the training.
_NOT_DEFINING = ("description", "baseline_name", "baseline", "baseline_filter", "weight", "top_k")
# Sections whose entries the user names: an entry that is added or removed is one difference.
_NAMED = ("fields", "targets")


def sequences_definition(config: Config) -> Definition:
    """What `sequences` and `vocabulary` are made for: modelled fields, limits, purposes and time zone."""
    modelled = {name: field for name, field in config.fields.items() if field.kind != "reference"}
    return _digests(
        {
            _FIELD_ORDER: list(modelled),
            **_part("fields", modelled, ("kind", "min_count", "max_values")),
            "sequences.max_events": config.sequences.max_events,
            "time_zone": config.time_zone,
            "model.count_by": config.model.count_by,
            "consent.training_purpose": config.consent.training_purpose,
            "consent.contact_purpose": config.consent.contact_purpose,
        }
    )


def examples_definition(config: Config) -> Definition:
    """What `examples` are made for: the question, the baselines, and the fields that the queries copy."""
    return _queries_and_labels(config) | _digests(
        {
            **_part("targets", config.targets, ("baseline", "baseline_filter")),
            **_part("fields", config.fields, ("kind",)),
            "sequences.max_events": config.sequences.max_events,
        }
    )


def snapshot_definition(config: Config) -> Definition:
    """What `training_blocks` are made for: the question, the modelled fields, and the shapes of blocks and features."""
    model = config.model.model_dump(include={"count_by", "context_events", "window_days", "half_life_days"})
    return (
        _queries_and_labels(config)
        | _modelled_fields(config)
        | _digests(
            {
                **_part("targets", config.targets, ("top_k",)),
                **{f"model.{key}": value for key, value in model.items()},
                "snapshot.queries_per_block": config.snapshot.queries_per_block,
            }
        )
    )


def model_definition(config: Config) -> Definition:
    """What a model is made for: the question and the modelled fields; not its size, nor how it is trained."""
    modelled = {name: config.fields[name] for name in config.categorical}
    return (
        _queries_and_labels(config)
        | _modelled_fields(config)
        | _digests(
            {
                **_part("targets", config.targets, ("top_k",)),
                **_part("fields", modelled, ("value_embeddings",)),
            }
        )
    )


def scores_definition(config: Config) -> Definition:
    """What scores are made for: what their model is made for, and the proposals."""
    return model_definition(config) | _digests({"scoring.proposals": config.scoring.proposals})


def differences(recorded: Mapping[str, str], present: Mapping[str, str]) -> str:
    """Keys that differ, as text; empty if none does. A target or field that only one of them has is one entry."""
    differing = [key for key in {**recorded, **present} if recorded.get(key) != present.get(key)]
    owners, known = _owners(recorded), _owners(present)
    names = dict.fromkeys(_difference(key, owners, known) for key in differing)
    if any(name.startswith("fields.") and name.endswith(")") for name in names):
        names.pop(_FIELD_ORDER, None)
    shown = (f"{name} (order)" if name == _FIELD_ORDER else name for name in sorted(names))
    return ", ".join(shown)


def _difference(key: str, recorded_owners: set[str], present_owners: set[str]) -> str:
    owner = _owner(key)
    if owner is None or owner in recorded_owners & present_owners:
        return key
    return f"{owner} ({'added' if owner in present_owners else 'removed'})"


def _owners(definition: Iterable[str]) -> set[str]:
    return {owner for key in definition if (owner := _owner(key)) is not None}


def _owner(key: str) -> str | None:
    """The target or field that a key belongs to, such as `targets.upgrade`; None for other keys."""
    section, *names = key.split(".")
    return f"{section}.{names[0]}" if section in _NAMED and names else None


def _queries_and_labels(config: Config) -> Definition:
    """Queries, labels and periods of all targets, and the customers that they are about."""
    keys = [key for key in TargetConfig.model_fields if key not in _NOT_DEFINING]
    return _digests(
        {
            **_part("targets", config.targets, keys),
            **{f"split.{name}": str(start) for name, start in config.split},
            "time_zone": config.time_zone,
            "consent.training_purpose": config.consent.training_purpose,
        }
    )


def _modelled_fields(config: Config) -> Definition:
    modelled = {name: config.fields[name] for name in (*config.categorical, *config.numeric)}
    order = [list(config.categorical), list(config.numeric)]
    is_who = {f"fields.{name}.role": field.role == "who" for name, field in modelled.items()}
    return _digests({_FIELD_ORDER: order, **_part("fields", modelled, ("kind",)), **is_who})


def _part(section: str, entries: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Values of some keys of each entry of a section."""
    values = {name: entry.model_dump(mode="json", include=set(keys)) for name, entry in entries.items()}
    return {
        f"{section}.{name}.{key}": value
        for name, of_entry in values.items()
        for key, value in of_entry.items()
    }


def _digests(values: Mapping[str, Any]) -> Definition:
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
        for key, value in values.items()
    }
