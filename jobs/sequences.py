"""Stage `sequences`: spark-submit jobs/sequences.py --conf FILE [--as-of DATE] [--set KEY=VALUE] [--dry-run]."""

import sys

from lam_spark.cli import run_job

sys.exit(run_job("sequences"))
