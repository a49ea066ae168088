"""Configuration of a data set: the sections of its YAML file, and what must agree between them.

`config_file.load_config` reads one. The models are frozen; their defaults are the documented ones.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lam_spark.errors import did_you_mean

# Of the columns of a block: what a query says and what it is answered; `event_NAME` is what an event says of a field.
_RESERVED_PREFIXES = ("query_", "label_")

# In a JDBC URL: `password=` and what ends so or likewise, `//user:secret@host`, Oracle's `user/secret@`.
_PASSWORD = re.compile(
    r"(password|passwd|pwd|token|secret)\s*=|//[^/?;]*:[^/?;]*@|:thin:[^/@]+/[^@]+@", re.IGNORECASE
)
# Names of options and of Spark's settings whose values are secrets.
_SECRET_OPTION = re.compile(r"password|passwd|pwd|token|secret", re.IGNORECASE)
_SECRET_SETTING = re.compile(r"password|passwd|secret|token$|account\.key", re.IGNORECASE)

Role = Literal["who", "when", "where", "what", "how"]
Kind = Literal["categorical", "numeric", "reference"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]

# Columns that the stages add to events, examples and blocks; a declared field may not take these names.
RESERVED_COLUMNS = frozenset(
    [
        "customer_id",
        "customer_key",
        "event_id",
        "event_key",
        "event_time",
        "source",
        "ingested_at",
        "reason",
        "raw",
        "target",
        "query_id",
        "as_of",
        "label_end",
        "label",
        "label_ids",
        "split",
        "baseline_score",
        "_baseline_place",
        "_baseline_events_after",
        "query_time",
        "query_hour_of_week",
        "hour_of_week",
        "seq_len",
        "events_seen",
        "event_order",
        "first_event_time",
        "last_event_time",
        "truncated_events",
        "truncated_counts",
        "truncated_sums",
        "seq_hash",
        "proposal_id",
        "description",
        "time",
        "window",
        "index",
        "row",
        "id",
        "ids",
        "is_new",
        "aggregates",
        "owner",
        "owners",
        "id_key",
        "id_kind",
        "raw_id",
        "outcome",
        "conflicting",
        "sign",
        "customer",
        "start_time",
        "start_order",
    ]
)


def _known_zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"expected an IANA time zone such as Europe/Lisbon, got {value!r}") from error
    return value


def _as_text(value: Any) -> Any:
    """What YAML takes for a number or a truth value, as Spark writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


# Text that may look like a number: no need to quote it in the file.
Text = Annotated[str, BeforeValidator(_as_text)]


class Section(BaseModel):
    """A mapping of the file: an unknown key is refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changes(self, key: str) -> bool:
        """Whether it gives the key another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class FetchConfig(Section):
    """A function that puts raw files in place: `module:function`, called with the raw folder."""

    function: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = Field(default_factory=dict)


class LinkConfig(Section):
    """Statements that an id of some kind belongs to a customer from an instant on (a login, a contract).

    The select yields `id_kind, id, customer_id, linked_at` (UTC), one row for each row of `grain`.
    """

    grain: str
    select: str


class IdentityConfig(Section):
    """How raw ids become customers.

    An id of a kind other than `customer` belongs to the customer of its latest link at or before the event.
    Events before an id's first link go to that first customer if they are at most `lookback_days` older.
    An id linked to more than `max_customers` customers (a kiosk, a switchboard) belongs to nobody.
    """

    secret_env: str = Field(default="LAM_SPARK_SECRET", description="environment variable with the HMAC key")
    links: dict[Name, LinkConfig] = Field(default_factory=dict)
    lookback_days: int = Field(default=30, ge=0)
    max_customers: int = Field(default=5, ge=1)


class InputConfig(Section):
    """A raw input, read by one of Spark's readers under an explicit schema.

    `path` is a file, a folder or a glob; a `jdbc` input has options instead (url, dbtable or query, driver).
    `secrets` names, for an option, the environment variable that holds its value (a password).
    `watermark` is a column that only grows (a serial number, a time of change): with it a later run takes
    only rows above the last one's highest (and those at it, if more stand there now), so a row that is committed
    late with a lower value waits for a rebuild; without it a database table is read whole each time.
    """

    format: Literal["parquet", "csv", "json", "delta", "jdbc"]
    path: str = ""
    columns: str = Field(description="Spark DDL of the columns, e.g. 'id BIGINT, day DATE'")
    options: dict[str, Text] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
    watermark: str | None = None

    @model_validator(mode="after")
    def _has_a_place(self) -> InputConfig:
        if self.format == "jdbc":
            if self.path or "url" not in self.options or not {"dbtable", "query"} & set(self.options):
                raise ValueError("a jdbc input has no path; its options name url, and dbtable or query")
        elif not self.path:
            raise ValueError(f"a {self.format} input needs a path")
        if self.watermark and self.format != "jdbc":
            raise ValueError("watermark is for jdbc: files and Delta tables know what is new")
        return self

    @model_validator(mode="after")
    def _hides_passwords(self) -> InputConfig:
        if self.secrets and self.format != "jdbc":
            raise ValueError("secrets are for jdbc; other inputs are read with the rights of the session")
        if any(map(_SECRET_OPTION.search, self.options)) or _PASSWORD.search(self.options.get("url", "")):
            raise ValueError(
                "a password may not stand in the file, it would be written into the audit: let secrets.password "
                "name the environment variable that holds it"
            )
        return self


class ClockConfig(Section):
    """The clock of a channel that writes local times: `event_time` of the select is read in `zone`.

    With `format` (Spark's datetime pattern) it is text, without it a timestamp without zone. A time that the
    change to summer time left out is refused; of one that came twice in autumn, the earlier is meant.
    """

    zone: str
    format: str | None = None

    _zone = field_validator("zone")(_known_zone)


class ChannelConfig(Section):
    """A channel: a Spark SQL select over the inputs that yields 4W1H columns.

    `grain` names the input whose rows are the channel's raw rows: the select must yield exactly one
    row for each, so that a join which multiplies or drops rows is found and not hidden. `id` is the kind of
    its `customer_id`: `customer`, or a kind that `identity.links` tie to customers (cookie, device, phone).
    `rules` are named SQL predicates over the yielded columns; a row that makes one false is refused.
    """

    grain: str
    select: str
    id: Name = "customer"
    clock: ClockConfig | None = None
    rules: dict[Name, str] = Field(default_factory=dict)


class ValueEmbeddingsConfig(Section):
    """What is known of a categorical field's values beforehand: features of an image, a sound or a text, as numbers.

    `select` yields `value` (as in the events) and `vector` (an array of `width` numbers), a row a value.
    """

    select: str
    dim: int = Field(ge=1, le=4096, description="numbers in a vector")


class FieldConfig(Section):
    """A declared field of an event.

    `categorical` values become tokens, `numeric` ones stay numbers, `reference` ones are carried in the
    events (to match a label to its proposal, say) and are never shown to the model. What an event says of a field of
    the role `who` holds until another says otherwise (`Layout.who`).
    """

    role: Role
    kind: Kind
    min_count: int = Field(default=5, ge=1, description="rarer values are unknown (events)")
    max_values: int = Field(default=50_000, ge=1)
    min: float | None = Field(default=None, description="a smaller number is refused")
    max: float | None = Field(default=None, description="a larger number is refused")
    values: tuple[str, ...] = Field(default=(), description="any other value is refused; empty: all may come")
    value_embeddings: ValueEmbeddingsConfig | None = None

    @model_validator(mode="after")
    def _rules_fit_the_kind(self) -> FieldConfig:
        if self.kind != "categorical" and self.value_embeddings is not None:
            raise ValueError(
                f"value_embeddings are for the values of categorical fields, this one is {self.kind}"
            )
        if self.kind == "numeric" and self.values:
            raise ValueError("values are for categorical and reference fields; a numeric one has min and max")
        if self.kind != "numeric" and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max are for numeric fields, this one is {self.kind}")
        for name in ("min_count", "max_values"):
            if self.kind != "categorical" and self.changes(name):
                raise ValueError(f"{name} is for categorical fields, this one is {self.kind}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ConsentConfig(Section):
    """The ledger's source: a select that yields customer_id, purpose, state, effective_at,
    recorded_at, source."""

    select: str
    training_purpose: Name = "model_training"
    contact_purpose: Name = "direct_marketing"


class SequencesConfig(Section):
    """What a customer's sequence holds."""

    max_events: int = Field(
        default=8192, ge=16, description="latest events kept a customer; who has more loses old questions"
    )
    rebuild: bool = Field(default=False, description="make all rows anew; else only those that changed")


class TargetConfig(Section):
    """A question about what follows a point in time of a customer.

    Asked either when an event of `population` (Spark SQL over `events`) happens, and that event is the query (a
    proposal), or every so many days of all who are `active`: the query is then empty (what next?).
    What follows are the customer's later events that `outcome_filter` and `label` pick (aliases `query` and `outcome`), at most
    `horizon_days` (a whole number from 1; an SQL expression over `query`) after it. The answer is
    - `binary`: whether there is one (or, with `negate`, none),
    - `value`: the SQL aggregate `value` over them, not negative, 0 where there are none,
    - `next`: which values of the categorical field `field` they have.
    `rule` is the simple ordering that the model has to beat: an SQL aggregate over those of the customer's
    earlier events that `baseline_filter` picks; `as_of` is the time of the query.
    """

    kind: Literal["binary", "value", "next"] = "binary"
    description: str = Field(description="the target in plain words, for the report")
    population: str | None = None
    every_days: int | None = Field(default=None, ge=1, description="days between two questions to a customer")
    active: str = Field(default="true", description="with every_days: asked is who has such an event in")
    active_days: int = Field(default=91, ge=1, description="the days before")
    outcome_filter: str
    label: str = "true"
    negate: bool = Field(default=False, description="binary: true is that no such event follows")
    value: str = Field(default="", description="of kind value, for example sum(outcome.amount)")
    field: str = Field(default="", description="of kind next: a categorical field")
    top_k: int = Field(default=64, ge=1, description="of kind next: the field's commonest values")
    horizon_days: Text
    baseline_filter: str = "false"
    baseline: str = "count(*)"
    baseline_name: str = "no rule"
    weight: float = Field(default=1.0, gt=0, description="of its loss beside those of other targets")

    @field_validator("horizon_days")
    @classmethod
    def _whole_days(cls, value: str) -> str:
        try:
            days = float(value)
        except ValueError:
            return value  # an expression: `examples` looks at what it gives each query
        if days < 1 or not days.is_integer():
            raise ValueError(f"expected a whole number of days from 1, got {value!r}")
        return value

    @model_validator(mode="after")
    def _asks_one_thing(self) -> TargetConfig:
        if (self.population is None) == (self.every_days is None):
            raise ValueError("a target has either a population of events or every_days")
        for name, kind in (("value", "value"), ("field", "next")):
            if bool(getattr(self, name)) != (self.kind == kind):
                raise ValueError(
                    f"{name} belongs to kind {kind}, and only to it; the kind here is {self.kind}"
                )
        for name in ("active", "active_days"):
            if self.every_days is None and self.changes(name):
                raise ValueError(f"{name} goes with every_days, not with a population")
        if self.kind != "next" and self.changes("top_k"):
            raise ValueError(f"top_k is for kind next, the kind here is {self.kind}")
        if self.negate and self.kind != "binary":
            raise ValueError(f"negate is for kind binary, the kind here is {self.kind}")
        return self


class SplitConfig(Section):
    """The periods: labels of training mature before `validation_start`, of validation before `test_start`."""

    train_start: dt.date
    validation_start: dt.date
    test_start: dt.date

    @model_validator(mode="after")
    def _in_order(self) -> SplitConfig:
        if not self.train_start < self.validation_start < self.test_start:
            raise ValueError("expected train_start < validation_start < test_start")
        return self


class ModelConfig(Section):
    """Size of the transformer and its inputs."""

    d_model: int = Field(default=64, ge=8)
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    context_events: int = Field(default=512, ge=8, description="most events the model sees at once")
    count_by: Name = Field(
        default="action", description="categorical field whose values the aggregates count"
    )
    window_days: tuple[int, ...] = (28, 91, 365)
    numeric_bins: int = Field(
        default=8, ge=0, description="quantile bins of each number and aggregate; 0: none"
    )
    half_life_days: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(3.0, 14.0, 60.0, 240.0),
        min_length=1,
        description="the answers know how often each value occurred, an event counting half after so long",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model {self.d_model} must be a multiple of 2 x n_heads ({2 * self.n_heads})")
        return self


class SnapshotConfig(Section):
    """Shape of the packed training blocks."""

    queries_per_block: int = Field(default=32, ge=1)
    blocks_per_file: int = Field(default=2048, ge=1, description="at most; a rank holds one file at once")
    files: int = Field(default=4, ge=1, description="files of each kind of block; at least one a rank")


class TrainingConfig(Section):
    """The optimisation. Counts are of epochs and of blocks."""

    launcher: Literal["horovod", "horovod_spark", "torch", "torch_spark", "in_process"] = Field(
        default="horovod",
        description="who starts the ranks; the _spark ones run them as tasks of the Spark session",
    )
    world_size: int = Field(default=2, ge=1)
    threads_per_rank: int = Field(default=1, ge=1)
    seed: int = Field(default=20171002, ge=0)
    pretrain_epochs: int = Field(default=2, ge=0)
    finetune_epochs: int = Field(default=4, ge=1, description="at most; validation chooses")
    patience: int = Field(
        default=1, ge=1, description="epochs without a better validation loss before stopping"
    )
    validation_blocks: int = Field(
        default=1_000_000, ge=1, description="about so many blocks judge an epoch, where there are more"
    )
    micro_batch_size: int = Field(default=4, ge=1, description="blocks that a rank computes at once")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="such batches a step: their gradients are added up"
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = Field(
        default="none", description="of the learning rates by how many batches all ranks make a step"
    )
    fp16_gradient_compression: bool = Field(
        default=False, description="gradients travel between ranks as 16-bit numbers: half the traffic"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute a layer again for its gradient: less memory, a third more time"
    )
    learning_rate: float = Field(default=2e-3, gt=0)
    finetune_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    next_event_weight: float = Field(default=0.1, ge=0, description="of the next-event loss in fine-tuning")
    contrastive_weight: float = Field(
        default=0.0, ge=0, description="of telling customers' histories apart, in pre-training"
    )
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; bfloat16 (autocast) is for GPUs that have it"
    )
    compile: bool = Field(
        default=False, description="let torch compile the model: a minute at the start, faster steps on GPUs"
    )
    checkpoint_minutes: float = Field(
        default=10, ge=0, description="between checkpoints; 0 writes one after each step"
    )
    experiment: str = "lam_spark"

    @model_validator(mode="after")
    def _one_rank_in_process(self) -> TrainingConfig:
        if self.launcher == "in_process" and self.world_size != 1:
            raise ValueError(f"launcher in_process runs one rank, world_size is {self.world_size}")
        return self


class ScoringConfig(Section):
    """What is proposed to whom."""

    target: Name
    proposals: str = Field(description="select over the inputs: proposal_id, description, declared fields")
    max_proposals: int = Field(default=200, ge=1)
    alias: str = "champion"


class EmbeddingsConfig(Section):
    """Whose vectors the stage `embed` makes.

    People learn from vectors with models of their own, so by default a customer must have agreed to be
    learned from; that they may be contacted does not say it.
    """

    purpose: Name | None = Field(default=None, description="null: consent.training_purpose")


class DeliveryConfig(Section):
    """The list that people act on."""

    capacity: int = Field(default=500, ge=1, le=1_000_000, description="customers on the contact list")


class QualityConfig(Section):
    """Gates; a run that crosses one publishes nothing."""

    max_quarantine_share: float = Field(default=0.01, ge=0, le=1, description="of a channel's new rows")
    max_unresolved_share: float = Field(default=1.0, ge=0, le=1, description="of a channel's new rows")
    earliest: dt.date = Field(default=dt.date(2000, 1, 1), description="an older event_time is refused")
    max_staleness_days: int = Field(default=7, ge=0, description="of as_of after the last event")


class IngestConfig(Section):
    """How much `ingest` reads."""

    rebuild: bool = Field(
        default=False, description="read all inputs again and replace the events; else only what is new"
    )


class WordsConfig(Section):
    """What the report calls things; `did` is the target as a past-tense verb."""

    customer: str = "customer"
    customers: str = "customers"
    example: str = "example"
    examples: str = "examples"
    outcome_verb: str = "reached the target"


class SparkConfig(Section):
    """Used only where no platform gives a session: one machine."""

    master: str = "local[2,4]"
    driver_memory: str = "3g"
    shuffle_partitions: int = Field(default=8, ge=1)
    settings: dict[str, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _hides_secrets(self) -> SparkConfig:
        named = [key for key in self.settings if _SECRET_SETTING.search(key)]
        if named:
            raise ValueError(
                f"{', '.join(named)}: a secret may not stand in the file, it would be written into the audit: give "
                "it to spark-submit, or write it into spark-defaults.conf"
            )
        return self


class Config(Section):
    """Everything a run needs to know; the resolved form goes into the run record."""

    name: Name
    time_zone: str = "UTC"
    root: str
    as_of: dt.date
    identity: IdentityConfig = IdentityConfig()
    fetch: FetchConfig | None = None
    inputs: dict[Name, InputConfig] = Field(min_length=1)
    views: dict[Name, str] = Field(
        default_factory=dict, description="named selects over inputs and earlier views, for any other select"
    )
    channels: dict[Name, ChannelConfig] = Field(min_length=1)
    fields: dict[Name, FieldConfig] = Field(min_length=1)
    consent: ConsentConfig
    sequences: SequencesConfig = SequencesConfig()
    targets: dict[Name, TargetConfig] = Field(min_length=1)
    split: SplitConfig
    snapshot: SnapshotConfig = SnapshotConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    scoring: ScoringConfig
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    ingest: IngestConfig = IngestConfig()
    quality: QualityConfig = QualityConfig()
    words: WordsConfig = WordsConfig()
    spark: SparkConfig = SparkConfig()
    notes: tuple[str, ...] = ()

    _zone = field_validator("time_zone")(_known_zone)

    @model_validator(mode="after")
    def _files_feed_ranks(self) -> Config:
        if self.snapshot.files < self.training.world_size:
            raise ValueError(
                f"snapshot.files {self.snapshot.files} must not be below training.world_size {self.training.world_size}: "
                "each rank reads files of its own"
            )
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        taken = {
            name for name in self.fields if name in RESERVED_COLUMNS or name.startswith(_RESERVED_PREFIXES)
        }
        taken |= {f"event_{name}" for name in self.fields} & set(self.fields)
        if taken:
            raise ValueError(f"fields {sorted(taken)} are reserved column names")
        both = set(self.inputs) & set(self.views)
        if both:
            raise ValueError(f"views {sorted(both)} have the name of an input")
        readers = {f"channels.{name}": spec.grain for name, spec in self.channels.items()}
        readers |= {f"identity.links.{name}": spec.grain for name, spec in self.identity.links.items()}
        for reader, grain in readers.items():
            if grain not in self.inputs:
                raise ValueError(f"{reader}.grain {_undeclared(grain, self.inputs)}")
        shared = set(self.channels) & set(self.identity.links)
        if shared:
            raise ValueError(f"identity.links {sorted(shared)} have the name of a channel")
        linked = [name for name, spec in self.channels.items() if spec.id != "customer"]
        if linked and not self.identity.links:
            raise ValueError(
                f"channels {linked} have ids of another kind than customer: identity.links must tie them"
            )
        if self.scoring.target not in self.targets:
            raise ValueError(f"scoring.target {_undeclared(self.scoring.target, self.targets)}")
        if self.targets[self.scoring.target].kind != "binary":
            raise ValueError(
                f"scoring.target {self.scoring.target!r} must be of kind binary: it ranks proposals"
            )
        for name, target in self.targets.items():
            if target.kind == "next" and target.field not in self.categorical:
                raise ValueError(f"targets.{name}.field {_undeclared(target.field, self.categorical)}")
        if self.model.count_by not in self.categorical:
            raise ValueError(f"model.count_by {_undeclared(self.model.count_by, self.categorical)}")
        if self.sequences.max_events < self.model.context_events:
            raise ValueError("sequences.max_events must not be below model.context_events")
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
        """Names of the fields that are carried and never modelled."""
        return self._fields_of("reference")

    @property
    def workspace(self) -> Path:
        """The folder that a run writes under."""
        return Path(self.root)

    @property
    def secret_variables(self) -> frozenset[str]:
        """Environment variables that hold a secret: the key of the pseudonyms, the inputs' passwords."""
        passwords = (variable for spec in self.inputs.values() for variable in spec.secrets.values())
        return frozenset({self.identity.secret_env, *passwords})

    def reader(self, name: str) -> ChannelConfig | LinkConfig:
        """What `ingest` reads under this name: a channel, or statements of `identity.links`."""
        return self.channels.get(name) or self.identity.links[name]

    def instant(self, day: dt.date) -> dt.datetime:
        """Midnight at the start of `day` in the data set's time zone, as a UTC instant."""
        local = dt.datetime(day.year, day.month, day.day, tzinfo=zoneinfo.ZoneInfo(self.time_zone))
        return local.astimezone(dt.UTC)

    def micros(self, day: dt.date) -> int:
        """`instant(day)` as microseconds since 1970 (UTC), the unit of `event_time` in sequences."""
        return int(self.instant(day).timestamp()) * 1_000_000

    def digest(self) -> str:
        """sha256 of the resolved configuration (hex)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _undeclared(name: str, known: Any) -> str:
    return f"{name!r} is not declared: {did_you_mean(name, known)}"
