"""The report of one run: a frozen context in, one self-contained HTML file out.

The package reads no table and starts no Spark: whoever has the numbers fills a
:class:`~lam_spark.report.content.ReportContext` and calls
:func:`~lam_spark.report.render.write_report`.
"""

from lam_spark.report.content import ReportContext
from lam_spark.report.render import render, write_report

__all__ = ["ReportContext", "render", "write_report"]
