"""Jobs under spark-submit, as a platform team starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lam_spark.runtime.session import DELTA_PACKAGE, cached_jars
from tests.support.runs import REPOSITORY
from tests.support.shop import QUICK

# Without Delta in the session, `spark_session` refuses it.
_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    # A platform's session keeps its own sizes, and Delta's default is meant for large logs.
    "spark.databricks.delta.snapshotPartitions": "2",
    **QUICK,
}


def submit(job: str, conf: Path, *flags: str) -> dict[str, Any]:
    """Run `jobs/JOB.py` with spark-submit on two local cores; returns its summary.

    Raises:
        AssertionError: The job failed; the message holds the end of its stderr.
    """
    jars = cached_jars()
    delta = ["--jars", ",".join(map(str, jars))] if jars else ["--packages", DELTA_PACKAGE]
    settings = [part for key, value in _SETTINGS.items() for part in ("--conf", f"{key}={value}")]
    spark_submit = str(Path(sys.executable).with_name("spark-submit"))
    script = str(REPOSITORY / "jobs" / f"{job}.py")
    process = subprocess.run(
        [spark_submit, "--master", "local[2]", *delta, *settings, script, "--conf", str(conf), *flags],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
        },
    )
    assert process.returncode == 0, process.stderr[-3000:]
    summary: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return summary
