"""Synthetic data set: one year of logs of a telecom operator, with injected defects and known ground truth."""

from lam_spark.datasets.telecom.generate import write_raw_files

__all__ = ["write_raw_files"]
