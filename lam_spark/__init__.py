"""lam_spark: a Large Action Model on Spark."""

__version__ = "0.1.0"
