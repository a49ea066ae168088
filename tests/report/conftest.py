"""Fixtures of the report's tests."""

from __future__ import annotations

import pytest

from lam_spark.report.content import ReportContext
from tests.report.sample import full_context


@pytest.fixture
def context() -> ReportContext:
    """A full report."""
    return full_context()
