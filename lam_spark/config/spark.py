"""Section `spark`: the session that lam_spark creates where no platform provides one."""

from __future__ import annotations

from pydantic import Field, model_validator

from lam_spark.config.base import Section, Text, Variable
from lam_spark.config.secrets import refuse_secrets


class SparkConfig(Section):
    """The Spark session. `master`, `driver_memory` and `shuffle_partitions` are ignored where a platform provides
    it."""

    master: str = Field(default="local[2,4]", description="Spark master; `local[cores, attempts per task]`")
    driver_memory: str = Field(default="3g", description="memory of the driver's JVM")
    shuffle_partitions: int = Field(
        default=8, ge=1, description="partitions of a shuffle, about two to four per core"
    )
    settings: dict[str, Text] = Field(
        default_factory=dict,
        description="further Spark settings; in a session of a platform, SQL settings that may change at run time",
    )

    secrets: dict[str, Variable] = Field(
        default_factory=dict,
        description="setting -> environment variable that holds its value, e.g. `spark.hadoop.fs.s3a.secret.key`; a "
        "platform's session has it from its start",
    )

    @model_validator(mode="after")
    def _contains_no_secret(self) -> SparkConfig:
        remedy = (
            "set secrets.SETTING to the name of the environment variable that holds it, or set it in "
            "spark-defaults.conf"
        )
        refuse_secrets(self.settings, "settings", remedy)
        shared = sorted(self.secrets.keys() & self.settings.keys())
        if shared:
            raise ValueError(f"expected each setting once, got {', '.join(shared)} in settings and secrets")
        return self
