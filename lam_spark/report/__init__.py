"""The report of one run: a frozen context is rendered into one self-contained HTML file.

The package's renderer reads no table and needs no Spark. A caller fills a
:class:`~lam_spark.report.content.ReportContext` and calls :func:`~lam_spark.report.render.write_report`.
"""

from lam_spark.report.content import ReportContext
from lam_spark.report.render import render, write_report

__all__ = ["ReportContext", "render", "write_report"]
