"""Everything that one report shows, as frozen dataclasses of numbers and strings.

Shares, rates, scores, AUCs and gains are fractions between 0 and 1, never percentages. A number that could not
be measured is ``None``; NaN and infinities are shown as missing too. All intervals are 95% confidence intervals.
"""

from lam_spark.report.content.contacts import Contact, ContactList, HistogramBin, ProposalCount
from lam_spark.report.content.context import Headline, Nouns, ReportContext, VersionGroup
from lam_spark.report.content.data import (
    Arrival,
    ConsentCount,
    FunnelStep,
    Lookup,
    Loss,
    QueryCount,
    SourceCount,
    StaleChannel,
    Unit,
)
from lam_spark.report.content.evaluation import (
    Calibration,
    CalibrationBin,
    Decile,
    HeldOut,
    Ranking,
    RankingKind,
    TargetResult,
)
from lam_spark.report.content.training import StageCost, Training

__all__ = [
    "Arrival",
    "Calibration",
    "CalibrationBin",
    "ConsentCount",
    "Contact",
    "ContactList",
    "Decile",
    "FunnelStep",
    "Headline",
    "HeldOut",
    "HistogramBin",
    "Lookup",
    "Loss",
    "Nouns",
    "ProposalCount",
    "QueryCount",
    "Ranking",
    "RankingKind",
    "ReportContext",
    "SourceCount",
    "StageCost",
    "StaleChannel",
    "TargetResult",
    "Training",
    "Unit",
    "VersionGroup",
]
