"""A telecom-like operator's year of logs, drawn with a seed: eight channels, dirt, and a truth to check against."""

from lam_spark.datasets.telecom.generate import place

__all__ = ["place"]
