"""Measures of a ranking, computed from a histogram of its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lam_spark.model.metrics import auc

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Examples grouped by score. Rows with the same score are tied.

    Attributes:
        score: Distinct scores, ascending; shape (n,).
        rows: Examples with each score.
        positives: Examples with each score whose label is 1.
        predicted: Sum of the calibrated probabilities of the examples with each score.
    """

    score: Float
    rows: Float
    positives: Float
    predicted: Float

    @property
    def auc(self) -> float:
        """Area under the ROC curve; a tie counts one half."""
        scores = np.concatenate([self.score, self.score])
        labels = np.repeat([1.0, 0.0], len(self.score))
        return auc(scores, labels, np.concatenate([self.positives, self.rows - self.positives]))

    def deciles(self) -> list[dict[str, float]]:
        """Split the ranking into ten equal parts, highest scores first.

        A tie that crosses a decile's border is split in proportion.

        Returns:
            One dictionary per decile: `decile` (1 to 10), `examples`, `positives`, `rate`, `lift` (`rate` divided
            by the overall rate) and `cumulative_gain` (share of all positives in this decile and those before it).
        """
        total_rows, total_positives = float(self.rows.sum()), float(self.positives.sum())
        cumulative_rows = np.concatenate([[0.0], np.cumsum(self.rows[::-1])])
        cumulative_positives = np.concatenate([[0.0], np.cumsum(self.positives[::-1])])
        borders = np.linspace(0, total_rows, 11)
        positives_at = np.interp(borders, cumulative_rows, cumulative_positives)
        base_rate = total_positives / total_rows if total_rows else 0.0
        deciles = []
        for index in range(10):
            examples = borders[index + 1] - borders[index]
            positives = positives_at[index + 1] - positives_at[index]
            rate = positives / examples if examples else 0.0
            gain = positives_at[index + 1] / total_positives if total_positives else 0.0
            deciles.append(
                {
                    "decile": index + 1,
                    "examples": float(examples),
                    "positives": float(positives),
                    "rate": float(rate),
                    "lift": float(rate / base_rate) if base_rate else 0.0,
                    "cumulative_gain": float(gain),
                }
            )
        return deciles
