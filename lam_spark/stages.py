"""The list of stages. Help text, jobs, README table and report use it.

Functions are named as text and imported when the stage runs, so that help needs neither a JVM nor torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        function: `module:function`, called with the run context; returns a `StageResult`.
        purpose: One line for the help text.
        reads: Description of its inputs.
        writes: Tables that it writes.
        output: Description of its outputs other than tables.
        nightly: Whether `lam-spark run` includes it; the others run on request only.
        needs_secret: Whether it turns raw ids into pseudonyms.
        reads_customers: Whether it needs a consent ledger that is what its source says now; the runner checks it.
        publishes: Whether people act on its output: the audit has an entry before it starts, too.
    """

    function: str
    purpose: str
    reads: str
    writes: tuple[str, ...]
    output: str = ""
    nightly: bool = True
    needs_secret: bool = False
    reads_customers: bool = False
    publishes: bool = False

    def load(self) -> Callable[[Any], Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        return function


# In the order of the data flow.
STAGES: Mapping[str, Stage] = {
    "fetch": Stage(
        function="lam_spark.datasets.stage:fetch",
        purpose="put the raw files of a shipped data set in place",
        reads="the configured function",
        writes=(),
        output="raw files",
    ),
    "ingest": Stage(
        function="lam_spark.events.stage:ingest",
        purpose="map new raw rows to events, check and count them",
        reads="new rows of the raw inputs",
        writes=(
            "identity",
            "links",
            "events",
            "quarantine",
            "unresolved",
            "reconciliation",
            "ingestion_state",
            "lookups",
            "lookup_versions",
        ),
        needs_secret=True,
    ),
    "consent": Stage(
        function="lam_spark.consent.stage:update_consent",
        purpose="append new statements to the consent ledger",
        reads="the ledger's source",
        writes=("consent", "identity"),
        needs_secret=True,
    ),
    "sequences": Stage(
        function="lam_spark.sequences.stage:build_sequences",
        purpose="build one row of ordered events per customer",
        reads="changes of `events` and `consent`",
        writes=("vocabulary", "value_counts", "sequences"),
        reads_customers=True,
    ),
    "examples": Stage(
        function="lam_spark.labels.stage:build_examples",
        purpose="make point-in-time examples: queries with the labels that followed",
        reads="`events`, `vocabulary`, `consent`",
        writes=("examples",),
        reads_customers=True,
    ),
    "snapshot": Stage(
        function="lam_spark.training_data.stage:build_snapshot",
        purpose="pack sequences and examples into training blocks of one version",
        reads="`sequences`, `examples`, `vocabulary`, `consent`",
        writes=("training_blocks",),
        reads_customers=True,
    ),
    "train": Stage(
        function="lam_spark.training.stage:train",
        purpose="pre-train, fine-tune, calibrate and refit the model, register it in MLflow",
        reads="one version of `training_blocks`, `events`, `vocabulary`, `consent`, value embeddings",
        writes=(),
        output="a registered model (safetensors and JSON, sha256)",
        reads_customers=True,
    ),
    "score": Stage(
        function="lam_spark.scoring.stage:score",
        purpose="score every eligible customer for every proposal",
        reads="`sequences`, `events`, `vocabulary`, `consent`, the proposals' inputs, the model",
        writes=("scores",),
        reads_customers=True,
    ),
    "evaluate": Stage(
        function="lam_spark.evaluation.stage:evaluate",
        purpose="measure the model and the baseline on the test period",
        reads="test `examples`, `sequences`, `vocabulary`, `consent`, the model",
        writes=("held_out_scores", "held_out_predictions"),
        reads_customers=True,
        output="tags of the model version",
    ),
    "deliver": Stage(
        function="lam_spark.delivery.stage:deliver",
        purpose="read the ledger once more and publish the contact list",
        reads="`scores`, the ledger's source",
        writes=("consent", "identity", "contact_list"),
        output="a CSV file and its manifest",
        needs_secret=True,
        publishes=True,
    ),
    "report": Stage(
        function="lam_spark.report.stage:report",
        purpose="write one HTML page about this run and its list",
        reads="`audit`, `reconciliation`, `quarantine`, `scores`, `contact_list`",
        writes=(),
        output="an HTML file",
    ),
    "embed": Stage(
        function="lam_spark.scoring.embeddings:embed",
        purpose="make one embedding per customer for models of your own",
        reads="`sequences`, `vocabulary`, `consent`, the model",
        writes=("embeddings",),
        nightly=False,  # an embedding reveals as much as the events: it must not exist just because a night ran
        reads_customers=True,
    ),
}

NIGHTLY: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if stage.nightly)
