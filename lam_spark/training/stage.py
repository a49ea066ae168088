"""Stage `train`: pins a version of the snapshot, starts the ranks, follows them in MLflow, registers the model.

Spark is only asked for the files' names and a few sums; the ranks read Parquet and know nothing of Spark.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from lam_spark.consent.eligibility import Asked, count_withdrawn, eligible
from lam_spark.errors import ConsentError, ModelError
from lam_spark.model.card import TEST_START, VOCABULARY
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.sequences.freshness import EVENTS, NUMBERING, PERIODS, periods_of, require_owned
from lam_spark.sequences.vocabulary import is_numbered_by, vocabulary_digest
from lam_spark.storage.files import whole_records
from lam_spark.training.launch.launchers import launch
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.registry import register_model, set_alias
from lam_spark.training.spec import SPEC_FILE, TrainingSpec, size_of
from lam_spark.training.summary import TrainingSummary
from lam_spark.training.tracking import Tracking
from lam_spark.training.value_embeddings import (
    pack_value_embeddings,
    save_value_embeddings,
    value_embeddings_digest,
)
from lam_spark.training_data.columns import layout_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.stage import ASKED, QUERIED
from lam_spark.training_data.value_embeddings import read_vectors

# Beside the specification: one that an earlier version wrote, or half wrote, need not be read to be told apart.
_FINGERPRINT_FILE = "fingerprint"
CONFIGURATION_FILE = "configuration.json"
_ABOUT_CHECKPOINTS = ("resumed", "checkpoint failed", "checkpoint damaged")


@stage
def run(run: Run) -> StageResult:
    """Train and register a model; the alias of `scoring.alias` then points to it.

    A training that was cut off goes on from its last checkpoint, if it would be the same one: the same version of
    the snapshot, the same vocabulary, the same settings and sizes.

    Raises:
        ConfigError, DataQualityError: what is wrong with the vectors of a field (`dataset.vectors`).
        ConsentError: somebody whose events are in the snapshot has withdrawn since, or a link has moved events of it
            to somebody who does not agree; also where the training is only to be resumed or registered.
        ModelError: a rank failed, with why and where its log is; the snapshot does not fit; or MLflow does not take
            the model, which then waits in the folder.
    """
    config = run.config
    # A working folder: what is worth keeping goes to MLflow. It stays when the training does not end.
    folder = config.workspace / "training"
    vocabulary = run.keep(run.tables.read("vocabulary"))
    layout = layout_of(config, vocabulary)
    vectors = pack_value_embeddings(read_vectors(run, layout, vocabulary))
    spec = specification(run, folder, layout, value_embeddings_digest(vectors))
    spec = _prepare_folder(run, spec, folder)
    save_value_embeddings(folder, vectors)
    (folder / CONFIGURATION_FILE).write_text(config.model_dump_json(indent=1), encoding="utf-8")
    with Tracking(config, run.run_id, folder, run.journal) as tracking:
        tracking.start(spec, run.tables.read_versions)
        done = _trained(run, tracking, spec)
        version = register_model(tracking, folder, done["digest"])
        set_alias(tracking, version)
        curves = _curves(folder)
    # First: what is left of a folder that could not be swept whole is then no training to go on with.
    (folder / _FINGERPRINT_FILE).unlink()
    shutil.rmtree(folder)
    summary = TrainingSummary.from_json(done["summary"])
    return StageResult(
        says=(
            f"{summary.parameters:,} parameters, {summary.tokens:,} events in {summary.seconds:.0f} s on "
            f"{summary.world_size} ranks; validation AUC {summary.validation['AUC']:.3f} (epoch {summary.best_epoch})"
        ),
        counts={"parameters": summary.parameters, "tokens": summary.tokens},
        facts={
            "model": {"name": config.name, "version": version, "alias": config.scoring.alias},
            "digest": done["digest"],
            "training": summary.to_json(),
            "curves": curves,
        },
    )


def _trained(run: Run, tracking: Tracking, spec: TrainingSpec) -> dict[str, Any]:
    """The last record of the training; it is not trained again if it ended and only could not be registered."""
    done = _finished(Path(spec.folder))
    if done:
        tracking.log(done)  # its run may have ended before it heard of it
        return done

    def follow(record: dict[str, Any]) -> None:
        _follow(run, tracking, record)
        if record["event"] == "done":
            done.update(record)

    launch(spec, follow)
    # On a network file system the last line may come after the ranks' end: read anew, the file has it.
    done = done or _finished(Path(spec.folder))
    if not done:
        raise ModelError(
            f"all ranks ended well, but {Path(spec.folder) / PROGRESS_FILE} does not say that the training is done: "
            "run the stage 'train' again, and it goes on from the last checkpoint"
        )
    return done


def _finished(folder: Path) -> dict[str, Any]:
    """The last record of a training that ended but could not be registered; else nothing."""
    records = whole_records(folder / PROGRESS_FILE)
    last = records[-1] if records else {}
    return last if last.get("event") == "done" else {}


def _prepare_folder(run: Run, spec: TrainingSpec, folder: Path) -> TrainingSpec:
    """Keep what a training of the same specification left, its very numbers too; sweep what another one left."""
    mark, fingerprint = folder / _FINGERPRINT_FILE, spec.fingerprint()
    if folder.exists() and not (mark.exists() and mark.read_text() == fingerprint):
        run.journal.event(
            "training swept",
            why="what is left of an earlier one has another snapshot or other settings, or is registered",
        )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if mark.exists():
        begun = TrainingSpec.load(folder / SPEC_FILE)
        spec = dataclasses.replace(begun, settings=spec.settings, facts=spec.facts, secrets=spec.secrets)
    spec.save(folder / SPEC_FILE)
    mark.write_text(fingerprint)
    return spec


def specification(run: Run, folder: Path, layout: Layout, vectors_digest: str) -> TrainingSpec:
    """How the newest snapshot is to be trained on, as the configuration says.

    Args:
        run: of the stage.
        folder: where the training works.
        layout: of the snapshot's blocks.
        vectors_digest: of the fixed vectors in the folder (`training.vectors`).

    Raises:
        ConsentError: somebody whose events are in the snapshot does not agree to be learned from (any more).
        ModelError: the snapshot was packed for another layout, for other periods or with another vocabulary.
    """
    config = run.config
    tables = run.tables
    version = tables.version("training_blocks")
    _require_consent(run)
    _require_fitting_blocks(run, layout, version)
    mean, std, edges = _numeric_scales(run)
    vocabulary = vocabulary_digest(tables.read("vocabulary"), layout.ids_in_use)
    return TrainingSpec(
        layout=layout,
        size=size_of(config),
        settings=config.training,
        all_urls=tuple(tables.files("training_blocks", version)),
        queried_urls=tuple(tables.files("training_blocks", version, f"block_kind = '{QUERIED}'")),
        validation_start=config.micros(config.split.validation_start),
        test_start=config.micros(config.split.test_start),
        numeric_mean=mean,
        numeric_std=std,
        numeric_edges=edges,
        target=config.scoring.target,
        target_weights=tuple(target.weight for target in config.targets.values()),
        folder=str(folder),
        facts={
            "data_set": config.name,
            "target": config.scoring.target,
            "config_digest": config.digest(),
            "table_versions": {"training_blocks": version},
            "run_id": run.run_id,
            VOCABULARY: vocabulary,
            TEST_START: config.instant(config.split.test_start).isoformat(),
        },
        value_embeddings_digest=vectors_digest,
        vocabulary_digest=vocabulary,
        secrets=tuple(sorted(config.secret_variables)),
    )


def _require_consent(run: Run) -> None:
    """Ask the ledger once more: the snapshot may be days old, and a training may be resumed after as many."""
    purpose, again = run.config.consent.training_purpose, "run the stage 'snapshot' again"
    note = run.tables.note_of("training_blocks") or {}
    asked = note.get(ASKED)
    withdrawn = None if asked is None else count_withdrawn(run, Asked(**asked), purpose)
    if withdrawn is None:
        raise ConsentError(
            "the training snapshot does not say which version of the consent ledger was asked for it, or the ledger "
            f"does not hold that version any more (VACUUM): who has withdrawn since cannot be told; {again}"
        )
    if withdrawn:
        raise ConsentError(
            f"{withdrawn:,} customers whose events may be in the training snapshot no longer agree to {purpose!r}: "
            f"{again}"
        )
    require_owned(
        run,
        note.get(EVENTS),
        run.config.instant(run.config.split.test_start),
        purpose,
        "the training snapshot",
        "run the stages 'sequences', 'examples' and 'snapshot' again",
    )


def _require_fitting_blocks(run: Run, layout: Layout, version: int) -> None:
    blocks = run.tables.read("training_blocks", version)
    first = blocks.select("packing").first() if "packing" in blocks.columns else None
    if first is None or first["packing"] != layout.packing:
        raise ModelError(
            "the training snapshot was packed for other fields, targets, windows or sizes than the configuration and "
            "the vocabulary now give: run the stage 'snapshot' again"
        )
    note = run.tables.note_of("training_blocks") or {}
    if not is_numbered_by(run.tables.read("vocabulary"), note.get(NUMBERING)):
        raise ModelError(
            "the training snapshot holds the ids of another vocabulary than the present one, or does not say of which: "
            "run the stages 'sequences' (with sequences.rebuild=true), 'examples' and 'snapshot' again"
        )
    if note.get(PERIODS) != periods_of(run.config):
        raise ModelError(
            "the training snapshot was packed for other dates of split than configured, and may hold what happened in "
            "the test period: run the stages 'examples' and 'snapshot' again"
        )


def _numeric_scales(run: Run) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Mean, deviation and edges of bins of each numeric field's signed log, over consented events before validation."""
    config = run.config
    if not config.numeric:
        return (), (), ()
    allowed = eligible(run, config.consent.training_purpose)
    cut = sql_literal(config.instant(config.split.validation_start))
    events = run.tables.read("events").where(F.col("event_time") < F.expr(cut))
    logs = [F.signum(name) * F.log1p(F.abs(F.col(name))) for name in config.numeric]
    bins = config.model.numeric_bins
    shares = F.lit([number / max(bins, 1) for number in range(bins + 1)])
    row = (
        events.join(allowed, "customer_key", "left_semi")
        .agg(
            *(F.coalesce(F.avg(log), F.lit(0.0)) for log in logs),
            *(F.coalesce(F.stddev_pop(log), F.lit(0.0)) for log in logs),
            *(F.percentile_approx(log, shares) for log in logs),
        )
        .first()
    )
    assert row is not None  # an aggregate without keys gives one row
    count = len(logs)
    mean, std, quantiles = row[:count], row[count : 2 * count], row[2 * count :]
    edges = tuple(tuple(sorted(set(found or ()))) for found in quantiles)
    return tuple(mean), tuple(value if value > 1e-4 else 1.0 for value in std), edges


def _follow(run: Run, tracking: Tracking, record: dict[str, Any]) -> None:
    if record["event"] in _ABOUT_CHECKPOINTS:
        run.journal.event(**record)
        return
    tracking.log(record)
    if record["event"] in ("step", "epoch end"):
        run.journal.note(
            f"{record['phase']} epoch {record['epoch']}, step {record['step']}/{record['steps']}, "
            f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} events/s, "
            f"{record['seconds_left']:.0f} s left in the epoch"
        )
    elif record["event"] == "epoch":
        run.journal.event("epoch", **{k: v for k, v in record.items() if k != "event"})


def _curves(folder: Path) -> list[dict[str, Any]]:
    """The few records an epoch that the report draws; what a resumed training told twice counts once."""
    drawn = [
        record
        for record in whole_records(folder / PROGRESS_FILE)
        if record["event"] in ("epoch", "epoch end")
    ]
    return list({(record["event"], record["phase"], record["epoch"]): record for record in drawn}.values())
