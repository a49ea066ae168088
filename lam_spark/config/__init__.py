"""Configuration of a data set: one module per section of its YAML file, and the loader."""

from lam_spark.config.sections import *  # noqa: F403
