"""spark-submit jobs/embed.py --conf conf/complete_journey.yaml [--as-of DATE] [--set key=value] [--dry-run]"""

import sys

from lam_spark.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("embed", sys.argv[1:]))
