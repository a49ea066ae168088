"""Section `spark`: the session that lam_spark creates where no platform provides one."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from lam_spark.config.base import Section, Text

# Names of Spark settings whose values are secrets.
_SECRET_SETTING = re.compile(r"password|passwd|secret|token$|account\.key", re.IGNORECASE)


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

    @model_validator(mode="after")
    def _contains_no_secret(self) -> SparkConfig:
        secrets = [key for key in self.settings if _SECRET_SETTING.search(key)]
        if secrets:
            raise ValueError(
                f"expected no secret in settings, got {', '.join(secrets)}; the configuration is copied into the "
                "audit: pass it to spark-submit or set it in spark-defaults.conf"
            )
        return self
