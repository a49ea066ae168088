"""Delta tables."""

from lam_spark.storage.tables.store import *  # noqa: F403
