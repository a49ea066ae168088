"""Charts as inline SVG strings: pure functions of the context's numbers, without scripts or embedded fonts.

Every function takes the width in CSS pixels for which the chart is drawn; at that width its text is 12 px. The
page's style sheet colours the classes used here, for light, dark and print. A chart without data is an empty string.
"""

from lam_spark.report.charts.axes import ticks
from lam_spark.report.charts.bars import funnel, share_bar, stage_bars
from lam_spark.report.charts.calibration import calibration_plot
from lam_spark.report.charts.ranking import gains_curve, lift_bars
from lam_spark.report.charts.scores import score_histogram
from lam_spark.report.charts.training import training_curves

__all__ = [
    "calibration_plot",
    "funnel",
    "gains_curve",
    "lift_bars",
    "score_histogram",
    "share_bar",
    "stage_bars",
    "ticks",
    "training_curves",
]
