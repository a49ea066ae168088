"""Stage `train`: pins a version of the snapshot, starts the processes, follows them in MLflow, registers the model.

Spark only provides the files' names and a few sums; the training processes read Parquet and know nothing of Spark.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lam_spark.consent.refresh import require_current_ledger
from lam_spark.errors import ModelError
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.results import StageResult
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.files import read_json_lines, write_atomically
from lam_spark.training.launch.launchers import launch
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.preparation import TOO_FEW, require_snapshot, specification
from lam_spark.training.registry import register_model, set_alias
from lam_spark.training.spec import SPEC_FILE, TrainingSpec
from lam_spark.training.summary import CurveMetric, CurvePoint, TrainingSummary
from lam_spark.training.tracking import Tracking
from lam_spark.training.value_embeddings import (
    pack_value_embeddings,
    save_value_embeddings,
    value_embeddings_digest,
)
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.value_embeddings import read_value_embeddings

# A separate file, so that the specification of another version or a damaged one need not be read.
_FINGERPRINT_FILE = "fingerprint"
CONFIGURATION_FILE = "configuration.json"
_CHECKPOINT_EVENTS = ("resumed", "checkpoint failed", "checkpoint damaged")


@dataclass(frozen=True)
class TrainResult(StageResult):
    """A trained and registered model.

    Attributes:
        model_name, model_version, model_alias: In the model registry.
        model_digest: sha256 of the model's files.
        training: Size, cost and validation metrics of the training.
        curves: A few points per epoch.
        validation_too_few: Target -> why it was not validated: it selected no epoch and is not calibrated.
    """

    FORMAT: ClassVar[int] = 2

    model_name: str
    model_version: int
    model_alias: str
    model_digest: str
    training: TrainingSummary
    curves: tuple[CurvePoint, ...]
    validation_too_few: dict[str, str]

    @property
    def message(self) -> str:
        """One line for people."""
        training = self.training
        auc = training.validation.get("AUC")
        quality = "validation period too small to measure" if auc is None else f"validation AUC {auc:.3f}"
        return (
            f"{training.parameters:,} parameters, {training.tokens:,} events in {training.seconds:.0f} s in "
            f"{training.world_size} processes; {quality} (epoch {training.best_epoch})"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Targets that were not validated."""
        consequence = "it selects no epoch and its predictions are not calibrated"
        return tuple(
            f"{target}, validation period: {why}; {consequence}"
            for target, why in self.validation_too_few.items()
        )

    @property
    def counts(self) -> dict[str, int]:
        """Parameters and events."""
        return {"parameters": self.training.parameters, "tokens": self.training.tokens}


@stage
def train(ctx: RunContext) -> TrainResult:
    """Train and register a model; the alias `scoring.alias` then points to it.

    An interrupted training resumes from its last checkpoint if it would be the same one: the same version of the
    snapshot, vocabulary, settings and sizes.

    Raises:
        ConfigError, DataQualityError: Value embeddings are wrong (`training_data.value_embeddings`).
        ConsentError: A customer whose events are in the snapshot is not eligible any more, or a link has reassigned
            events to one who is not; also if the training only has to be resumed or registered, and if that happened
            during the training: the model is then not registered.
        DataQualityError: The snapshot was made for another configuration, or the training period has too few queries.
        ModelError: A process failed, with its reason and the place of its log; the snapshot does not fit; or MLflow
            refuses the model, which then waits in the folder.
    """
    config = ctx.config
    # Working folder, kept only until the training has finished. MLflow stores the results.
    folder = config.workspace / "training"
    snapshot = require_snapshot(ctx.tables, ctx.cache, config, ctx.started_at)
    vocabulary = ctx.cache(ctx.tables.read("vocabulary"))
    layout = layout_with(config, snapshot.sizes)
    inputs = Inputs(ctx.spark, config.inputs, config.views)
    packed = pack_value_embeddings(read_value_embeddings(inputs, config.fields, layout, vocabulary))
    spec = specification(
        ctx.tables,
        ctx.cache,
        config,
        snapshot,
        folder=folder,
        layout=layout,
        value_embeddings_digest=value_embeddings_digest(packed),
        run_id=ctx.run_id,
        at=ctx.started_at,
    )
    spec = _prepare_folder(spec, folder, ctx.log)
    save_value_embeddings(folder, packed)
    write_atomically(folder / CONFIGURATION_FILE, config.model_dump_json(indent=1))
    with Tracking(config, ctx.run_id, folder, ctx.log) as tracking:
        tracking.start(spec, ctx.tables.read_versions)
        last = _train(spec, tracking, ctx.log)
        # The training took hours: who withdrew meanwhile must not be in a registered model.
        require_current_ledger(ctx.tables, ctx.cache, config, ctx.clock, ctx.log)
        require_snapshot(ctx.tables, ctx.cache, config, ctx.clock())
        version = register_model(tracking, folder, last["digest"])
        set_alias(tracking, version)
        curves = _curves(folder)
    # Removed first: a folder that cannot be removed completely is then no training to resume.
    (folder / _FINGERPRINT_FILE).unlink()
    shutil.rmtree(folder)
    return TrainResult(
        model_name=config.name,
        model_version=version,
        model_alias=config.scoring.alias,
        model_digest=last["digest"],
        training=TrainingSummary.from_json(last["summary"]),
        curves=curves,
        validation_too_few=dict(spec.facts[TOO_FEW]),
    )


def _train(spec: TrainingSpec, tracking: Tracking, log: RunLog) -> dict[str, Any]:
    """Last record of the training; a training that has ended and was not registered is not repeated."""
    last = _last_record(Path(spec.folder))
    if last:
        tracking.log(last)  # its MLflow run may have ended before
        return last

    def follow(record: dict[str, Any]) -> None:
        _follow(record, tracking, log)
        if record["event"] == "done":
            last.update(record)

    launch(spec, follow)
    # On a network file system the last line may arrive after the processes' end: the file has it.
    last = last or _last_record(Path(spec.folder))
    if not last:
        raise ModelError(
            f"all training processes ended without an error, but {Path(spec.folder) / PROGRESS_FILE} lacks the last "
            "record: run the stage 'train' again, it resumes from the last checkpoint"
        )
    return last


def _last_record(folder: Path) -> dict[str, Any]:
    """Last record of a training that has ended but was not registered; else empty."""
    records = read_json_lines(folder / PROGRESS_FILE)
    last = records[-1] if records else {}
    return last if last.get("event") == "done" else {}


def _prepare_folder(spec: TrainingSpec, folder: Path, log: RunLog) -> TrainingSpec:
    """Keep the folder of a training with the same fingerprint, its numbers included; remove any other."""
    fingerprint_file, fingerprint = folder / _FINGERPRINT_FILE, spec.fingerprint()
    if folder.exists() and not (fingerprint_file.exists() and fingerprint_file.read_text() == fingerprint):
        log.event(
            "training folder removed",
            why="it is of another snapshot or other settings, or its model is registered",
        )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if fingerprint_file.exists():
        begun = TrainingSpec.load(folder / SPEC_FILE)
        spec = dataclasses.replace(begun, settings=spec.settings, facts=spec.facts, secrets=spec.secrets)
    spec.save(folder / SPEC_FILE)
    fingerprint_file.write_text(fingerprint)
    return spec


def _follow(record: dict[str, Any], tracking: Tracking, log: RunLog) -> None:
    if record["event"] in _CHECKPOINT_EVENTS:
        log.event(**record)
        return
    tracking.log(record)
    if record["event"] in ("step", "epoch end"):
        log.progress(
            f"{record['phase']} epoch {record['epoch']}, step {record['step']}/{record['steps']}, "
            f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} events/s, "
            f"{record['seconds_left']:.0f} s left in the epoch"
        )
    elif record["event"] == "epoch":
        log.event("epoch", **{k: v for k, v in record.items() if k != "event"})


def _curves(folder: Path) -> tuple[CurvePoint, ...]:
    """Points of the training curves; records that a resumed training repeats count once."""
    metrics: dict[str, tuple[CurveMetric, ...]] = {
        "epoch end": ("loss",),
        "epoch": ("validation loss", "validation AUC"),
    }
    points = {
        (record["phase"], record["epoch"], metric): CurvePoint(
            record["phase"], float(record["epoch"]), metric, record[metric]
        )
        for record in read_json_lines(folder / PROGRESS_FILE)
        for metric in metrics.get(record["event"], ())
        if metric in record
    }
    return tuple(points.values())
