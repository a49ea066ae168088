"""The root of the configuration, and the checks across its sections."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import zoneinfo
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from lam_spark.config.base import FileMode, Kind, Name, Section, known_zone, undeclared
from lam_spark.config.channels import ChannelConfig
from lam_spark.config.consent import ConsentConfig, comparable_name
from lam_spark.config.delivery import DeliveryConfig
from lam_spark.config.fields import FieldConfig
from lam_spark.config.identity import IdentityConfig, LinkConfig
from lam_spark.config.inputs import FetchConfig, InputConfig
from lam_spark.config.model import ModelConfig
from lam_spark.config.quality import IngestConfig, QualityConfig
from lam_spark.config.scoring import EmbeddingsConfig, ScoringConfig
from lam_spark.config.sequences import SequencesConfig
from lam_spark.config.snapshot import SnapshotConfig
from lam_spark.config.spark import SparkConfig
from lam_spark.config.split import Periods, SplitConfig
from lam_spark.config.sql import SqlQuery
from lam_spark.config.targets import TargetConfig
from lam_spark.config.training import TrainingConfig
from lam_spark.config.words import WordsConfig
from lam_spark.storage.tables.reserved import RESERVED_COLUMNS

# Training blocks and examples have columns `query_FIELD` and `label_TARGET`.
RESERVED_PREFIXES = ("query_", "label_")


class Config(Section):
    """Everything that a run needs to know. The resolved configuration is copied into the audit."""

    name: Name = Field(description="name of the data set and of its registered model")
    time_zone: str = Field(
        default="UTC", description="IANA time zone that defines days: `as_of`, `split` and horizons"
    )
    root: str = Field(description="folder that the run writes to; `{root}` in a path is replaced by it")
    files_mode: FileMode = Field(
        default="0600",
        description="permissions of the files that a run writes on a local disk, e.g. 0640; folders get `x` for `r`",
    )
    files_group: str | None = Field(
        default=None,
        description="group that `root` and what is created in it belong to; null: that of the user",
    )
    as_of: dt.date = Field(
        description="date of the predictions: events from its midnight on are not read; `--as-of` replaces it"
    )
    fetch: FetchConfig | None = Field(default=None, description="function that writes raw files")
    inputs: dict[Name, InputConfig] = Field(min_length=1, description="raw inputs, by name")
    views: dict[Name, SqlQuery] = Field(
        default_factory=dict,
        description="SELECTs over inputs and earlier views, by name, for use in other selects",
    )
    identity: IdentityConfig = Field(default=IdentityConfig(), description="how raw ids become customers")
    channels: dict[Name, ChannelConfig] = Field(min_length=1, description="channels, by name")
    fields: dict[Name, FieldConfig] = Field(min_length=1, description="declared fields, by name")
    consent: ConsentConfig = Field(description="source of the consent ledger")
    sequences: SequencesConfig = Field(default=SequencesConfig(), description="sequences of events")
    targets: dict[Name, TargetConfig] = Field(min_length=1, description="targets, by name")
    split: SplitConfig = Field(description="periods of training, validation and test")
    snapshot: SnapshotConfig = Field(default=SnapshotConfig(), description="training blocks")
    model: ModelConfig = Field(default=ModelConfig(), description="size of the model")
    training: TrainingConfig = Field(default=TrainingConfig(), description="training")
    scoring: ScoringConfig = Field(description="proposals and their target")
    embeddings: EmbeddingsConfig = Field(default=EmbeddingsConfig(), description="customer embeddings")
    delivery: DeliveryConfig = Field(default=DeliveryConfig(), description="contact list")
    ingest: IngestConfig = Field(default=IngestConfig(), description="how much is ingested")
    quality: QualityConfig = Field(default=QualityConfig(), description="quality gates")
    words: WordsConfig = Field(default=WordsConfig(), description="words of the report")
    spark: SparkConfig = Field(default=SparkConfig(), description="Spark session")
    notes: tuple[str, ...] = Field(default=(), description="lines of text for the report")

    _zone = field_validator("time_zone")(known_zone)

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        for check in _CHECKS:
            check(self)
        return self

    def _fields_of(self, kind: Kind) -> tuple[str, ...]:
        return tuple(name for name, spec in self.fields.items() if spec.kind == kind)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the categorical fields, in the order of the file."""
        return self._fields_of("categorical")

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric fields, in the order of the file."""
        return self._fields_of("numeric")

    @property
    def reference(self) -> tuple[str, ...]:
        """Names of the fields that are stored and not modelled, in the order of the file."""
        return self._fields_of("reference")

    @property
    def workspace(self) -> Path:
        """Folder that a run writes to."""
        return Path(self.root)

    @property
    def file_permissions(self) -> int:
        """`files_mode` as a number."""
        return int(self.files_mode, 8)

    @property
    def secret_variables(self) -> frozenset[str]:
        """Environment variables that hold a secret: the HMAC key, and those that sections `secrets` name."""
        sections = [spec.secrets for spec in self.inputs.values()] + [self.spark.secrets]
        if self.fetch is not None:
            sections.append(self.fetch.secrets)
        return frozenset(
            {self.identity.secret_env, *(name for section in sections for name in section.values())}
        )

    @property
    def purposes(self) -> tuple[str, ...]:
        """Purposes of consent that stages ask for, sorted."""
        names = (self.consent.training_purpose, self.consent.contact_purpose, self.embeddings.purpose)
        return tuple(sorted({name for name in names if name}))

    def reader(self, name: str) -> ChannelConfig | LinkConfig:
        """The channel or link source of this name."""
        return self.channels.get(name) or self.identity.links[name]

    def instant(self, day: dt.date) -> dt.datetime:
        """Midnight at the start of `day` in the data set's time zone, as a UTC instant."""
        local = dt.datetime(day.year, day.month, day.day, tzinfo=zoneinfo.ZoneInfo(self.time_zone))
        return local.astimezone(dt.UTC)

    def micros(self, day: dt.date) -> int:
        """`instant(day)` in microseconds since 1970 (UTC), the unit of `event_time` in sequences."""
        return int(self.instant(day).timestamp()) * 1_000_000

    @property
    def periods(self) -> Periods:
        """The dates of `split` for the present `as_of`. Examples that exist have dates of their own: see `Periods`."""
        return self.split.resolve(self.as_of)

    def period_starts(self, periods: Periods) -> dict[str, dt.datetime]:
        """Starts of the periods as UTC instants, by name."""
        return {name: self.instant(day) for name, day in vars(periods).items()}

    def require_periods(self, any_as_of: bool = False) -> None:
        """Check that no period of `split` is empty by its dates, for targets whose horizon is a number.

        Args:
            any_as_of: Refuse only what is wrong for every `as_of`.

        Raises:
            ValueError: A period is empty.
        """
        horizons = {name: target.fixed_horizon for name, target in self.targets.items()}
        known = {name: days for name, days in horizons.items() if days is not None}
        problem = self.split.problem(known, self.as_of, any_as_of)
        if problem:
            raise ValueError(problem)

    def digest(self) -> str:
        """sha256 of the resolved configuration (hex)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _each_process_has_a_file(config: Config) -> None:
    if config.snapshot.files < config.training.world_size:
        raise ValueError(
            f"expected snapshot.files to be at least training.world_size ({config.training.world_size}), got "
            f"{config.snapshot.files}: each process reads its own files"
        )


def _field_names_are_free(config: Config) -> None:
    reserved = {
        name for name in config.fields if name in RESERVED_COLUMNS or name.startswith(RESERVED_PREFIXES)
    }
    reserved |= {f"event_{name}" for name in config.fields} & set(config.fields)
    if reserved:
        raise ValueError(
            f"fields {sorted(reserved)} have reserved names: fields become columns of tables that have columns of "
            "these names. Reserved are query_..., label_..., event_ with the name of another field, and "
            f"{', '.join(sorted(RESERVED_COLUMNS))}: rename the fields"
        )


def _view_names_are_free(config: Config) -> None:
    shared = set(config.inputs) & set(config.views)
    if shared:
        raise ValueError(f"views {sorted(shared)} have the name of an input: rename them")


def _grains_are_inputs(config: Config) -> None:
    grains = {f"channels.{name}": spec.grain for name, spec in config.channels.items()}
    grains |= {f"identity.links.{name}": spec.grain for name, spec in config.identity.links.items()}
    for reader, grain in grains.items():
        if grain not in config.inputs:
            raise ValueError(f"{reader}.grain {undeclared(grain, config.inputs)}")


def _links_fit_channels(config: Config) -> None:
    shared = set(config.channels) & set(config.identity.links)
    if shared:
        raise ValueError(f"identity.links {sorted(shared)} have the name of a channel: rename them")
    linked = [name for name, spec in config.channels.items() if spec.id != "customer"]
    if linked and not config.identity.links:
        raise ValueError(
            f"channels {linked} have ids of another kind than customer, but identity.links is empty: declare the links "
            "of these ids to customers"
        )


def _purposes_are_used(config: Config) -> None:
    for name, mapped in config.consent.purposes.items():
        for purpose in mapped:
            if purpose not in config.purposes:
                raise ValueError(
                    f"consent.purposes maps {name!r} to {purpose!r}, which no stage asks for: expected "
                    f"{', '.join(config.purposes)}, or null for a purpose that is not used here"
                )
        own = {comparable_name(purpose): purpose for purpose in config.purposes}.get(comparable_name(name))
        if own is not None and own not in mapped:
            raise ValueError(f"consent.purposes maps {name!r}, which is {own!r} already, to something else")


def _scoring_target_is_binary(config: Config) -> None:
    name = config.scoring.target
    if name not in config.targets:
        raise ValueError(f"scoring.target {undeclared(name, config.targets)}")
    if config.targets[name].kind != "binary":
        raise ValueError(
            f"expected scoring.target to be of kind binary, {name!r} is of kind {config.targets[name].kind}: only "
            "binary targets rank proposals"
        )


def _counted_fields_are_categorical(config: Config) -> None:
    for name, target in config.targets.items():
        if target.kind == "next" and target.field not in config.categorical:
            raise ValueError(f"targets.{name}.field {undeclared(target.field, config.categorical)}")
    if config.model.count_by not in config.categorical:
        raise ValueError(f"model.count_by {undeclared(config.model.count_by, config.categorical)}")


def _outcome_channels_are_declared(config: Config) -> None:
    for name, target in config.targets.items():
        for channel in target.outcome_channels:
            if channel not in config.channels:
                raise ValueError(f"targets.{name}.outcome_channels {undeclared(channel, config.channels)}")


def _periods_are_not_empty(config: Config) -> None:
    # What depends on `as_of` is checked by `load_config`, or before `examples`: another stage may run for a day on
    # which the test period has not begun.
    config.require_periods(any_as_of=True)


def _context_fits_sequences(config: Config) -> None:
    if config.sequences.max_events < config.model.context_events:
        raise ValueError(
            f"expected sequences.max_events to be at least model.context_events ({config.model.context_events}), got "
            f"{config.sequences.max_events}"
        )


# The first failing check is reported.
_CHECKS: tuple[Callable[[Config], None], ...] = (
    _each_process_has_a_file,
    _field_names_are_free,
    _view_names_are_free,
    _grains_are_inputs,
    _links_fit_channels,
    _purposes_are_used,
    _scoring_target_is_binary,
    _counted_fields_are_categorical,
    _outcome_channels_are_declared,
    _context_fits_sequences,
    _periods_are_not_empty,
)
