"""Configuration of a data set: one module per section of its YAML file. `load.load_config` reads a file."""

from lam_spark.config.base import Kind, Name, Role, Section, Text, duration_text
from lam_spark.config.channels import MEASURED, ChannelConfig, ClockConfig
from lam_spark.config.consent import ConsentConfig
from lam_spark.config.dataset import Config
from lam_spark.config.delivery import DeliveryConfig
from lam_spark.config.fields import FieldConfig, ValueEmbeddingsConfig
from lam_spark.config.identity import IdentityConfig, LinkConfig
from lam_spark.config.inputs import FetchConfig, InputConfig
from lam_spark.config.model import ModelConfig
from lam_spark.config.quality import IngestConfig, QualityConfig
from lam_spark.config.scoring import EmbeddingsConfig, ScoringConfig
from lam_spark.config.sequences import SequencesConfig
from lam_spark.config.snapshot import SnapshotConfig
from lam_spark.config.spark import SparkConfig
from lam_spark.config.split import NO_TEST, Periods, SplitConfig
from lam_spark.config.targets import TargetConfig
from lam_spark.config.training import TrainingConfig
from lam_spark.config.words import WordsConfig

__all__ = [
    "MEASURED",
    "NO_TEST",
    "ChannelConfig",
    "ClockConfig",
    "Config",
    "ConsentConfig",
    "DeliveryConfig",
    "EmbeddingsConfig",
    "FetchConfig",
    "FieldConfig",
    "IdentityConfig",
    "IngestConfig",
    "InputConfig",
    "Kind",
    "LinkConfig",
    "ModelConfig",
    "Name",
    "Periods",
    "QualityConfig",
    "Role",
    "ScoringConfig",
    "Section",
    "SequencesConfig",
    "SnapshotConfig",
    "SparkConfig",
    "SplitConfig",
    "TargetConfig",
    "Text",
    "TrainingConfig",
    "ValueEmbeddingsConfig",
    "WordsConfig",
    "duration_text",
]
