"""Fingerprint of an input: a text that changes when its content does, found without reading the rows."""

from __future__ import annotations

from pyspark.sql import SparkSession

from lam_spark.config import InputConfig
from lam_spark.sources.delta import delta_fingerprint
from lam_spark.sources.files import files_fingerprint
from lam_spark.sources.jdbc import jdbc_fingerprint


def input_fingerprint(spark: SparkSession, name: str, spec: InputConfig) -> str | None:
    """Sizes and times of files, id and version of a Delta table, or watermark and number of rows of a database.

    Returns:
        The fingerprint; None where a change cannot be noticed (a database without watermark).

    Raises:
        ConfigError: The input does not exist or cannot be reached.
    """
    if spec.format == "delta":
        return delta_fingerprint(spark, name, spec)
    if spec.format == "jdbc":
        return jdbc_fingerprint(spark, name, spec)
    return files_fingerprint(spark, name, spec)
