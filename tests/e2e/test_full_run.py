"""The output of a full run, read without the project's own code where possible."""

from __future__ import annotations

import csv
import hashlib
import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession

from lam_spark.cli import main
from lam_spark.evaluation.results import EvaluateResult
from lam_spark.model.metrics import auc
from lam_spark.scoring.stage import ScoreResult
from lam_spark.stages import NIGHTLY
from tests.support.runs import Finished, rows
from tests.support.shop import CATEGORIES, keys_of


def test_the_summary_contains_the_result(finished: Finished) -> None:
    summary = finished.summary
    assert (summary["status"], summary["exit_code"], summary["as_of"]) == ("done", 0, "2023-12-20")
    assert Path(summary["report"]) == finished.root / "report" / "2023-12-20.html"
    assert Path(summary["report"]).is_file()
    assert Path(summary["contact_list"]).is_file()
    assert set(summary["numbers"]) == {"customers to contact", "lift of the top decile", "held-out AUC"}
    assert list(summary["stages"]) == list(NIGHTLY)


def test_plan_uses_the_tables_of_the_run(
    finished: Finished, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--train", "--conf", str(finished.data.conf)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    blocks = rows(finished.root, "training_blocks")
    queried = sum(max(block["query_window"]) > 0 for block in blocks)
    assert 0 < queried <= len(blocks)
    # One pass of pre-training, two of fine-tuning, two of the refit; 64 events and 16 queries a block.
    assert summary["slots"] == (len(blocks) + 4 * queried) * (64 + 16)
    assert summary["parameters"] == finished.summary["stages"]["train"]["parameters"]


def test_every_raw_row_is_an_event_a_duplicate_or_rejected(finished: Finished) -> None:
    assert finished.summary["stages"]["ingest"].items() >= finished.data.expected.items()
    events = rows(finished.root, "events")
    assert len(events) == finished.data.expected["events"]
    assert len({row["event_id"] for row in events}) == len(events)
    assert len(rows(finished.root, "quarantine")) == finished.data.expected["quarantined"]


def test_counts_of_stages_match_the_tables(finished: Finished) -> None:
    stages, data = finished.summary["stages"], finished.data
    assert stages["sequences"]["sequences"] == len(rows(finished.root, "sequences"))
    assert stages["sequences"]["sequences"] == len(data.training | data.contact)
    examples = rows(finished.root, "examples")
    assert stages["examples"]["examples"] == len(examples)
    test_examples = [row for row in examples if row["split"] == "test"]
    held_out = rows(finished.root, "held_out_scores")
    query_ids = {row["query_id"] for row in test_examples if row["target"] == "response"}
    assert {row["query_id"] for row in held_out} == query_ids
    predictions = rows(finished.root, "held_out_predictions")
    assert {(row["target"], row["query_id"]) for row in predictions} == {
        (row["target"], row["query_id"]) for row in test_examples if row["target"] != "response"
    }
    assert stages["evaluate"] == {
        "examples": len(held_out),
        "positives": sum(row["label"] for row in held_out),
        "truncated": 0,
    }
    assert stages["snapshot"]["blocks"] == len(rows(finished.root, "training_blocks"))
    labelled = {(row["query_id"], row["split"]) for row in examples if row["split"] != "test"}
    assert stages["snapshot"]["queries"] == len(labelled)
    assert stages["score"]["customers_with_events"] == len(data.everyone)
    deliver_counts = stages["deliver"]
    assert deliver_counts["customers_scored"] == (
        deliver_counts["suppressed_by_consent"]
        + deliver_counts["below_capacity"]
        + deliver_counts["delivered"]
    )


def test_secondary_targets_are_evaluated(finished: Finished) -> None:
    (entry,) = (row for row in rows(finished.root, "audit") if row["stage"] == "evaluate")
    result = EvaluateResult.from_json(json.loads(entry["entry"])["result"])
    metrics = {name: target.metrics for name, target in result.secondary_targets.items()}
    held_out = rows(finished.root, "held_out_predictions")
    assert set(metrics) == {row["target"] for row in held_out} == {"lapse", "spend", "items"}
    by_target = {name: [row for row in held_out if row["target"] == name] for name in metrics}
    assert {name: target.examples for name, target in result.secondary_targets.items()} == {
        name: len(examples) for name, examples in by_target.items()
    }
    lapse, spend, items = (by_target[name] for name in ("lapse", "spend", "items"))
    label, probability = np.array([[row["label"], row["prediction"][0]] for row in lapse]).T
    assert metrics["lapse"]["auc"] == pytest.approx(auc(probability, label), abs=0.01)
    amount = np.array([row["label"] for row in spend])
    mean, median = np.array([row["prediction"] for row in spend]).T
    assert metrics["spend"]["mean_absolute_error"] == pytest.approx(np.abs(amount - median).mean())
    baseline = np.array([0.0 if row["baseline_score"] is None else row["baseline_score"] for row in spend])
    # Customers without a recent purchase have no baseline score.
    assert 0 < sum(row["baseline_score"] is None for row in spend) < len(spend)
    assert metrics["spend"]["baseline_mean_absolute_error"] == pytest.approx(np.abs(amount - baseline).mean())
    assert metrics["spend"]["mean_predicted"] == pytest.approx(mean.mean())
    assert (median >= 0).all()
    assert (mean > 0).all()
    labels = np.array([[3 + value in row["label_ids"] for value in range(4)] for row in items], float)
    probabilities = np.array([row["prediction"] for row in items])
    value_aucs = [auc(probabilities[:, value], labels[:, value]) for value in range(4)]
    assert metrics["items"]["macro_auc"] == pytest.approx(np.nanmean(value_aucs), abs=0.01)


def test_every_customer_eligible_for_contact_has_a_score_for_every_proposal(finished: Finished) -> None:
    scores = rows(finished.root, "scores")
    pairs = {(row["customer_key"], row["proposal_id"]) for row in scores}
    assert pairs == {
        (key, f"two weeks of {category}") for key in keys_of(finished.data.contact) for category in CATEGORIES
    }
    assert len(scores) == len(pairs) == finished.summary["stages"]["score"]["scores"]
    assert all(0.0 <= row["probability"] <= 1.0 for row in scores)
    assert len({row["probability"] for row in scores}) > len(scores) / 2  # scores differ between customers
    assert len({row["model_digest"] for row in scores}) == 1


def test_the_contact_list_contains_the_highest_scores(finished: Finished) -> None:
    best: dict[str, dict[str, Any]] = {}
    for row in rows(finished.root, "scores"):
        current = best.get(row["customer_key"])
        if current is None or (row["probability"], row["proposal_id"]) > (
            current["probability"],
            current["proposal_id"],
        ):
            best[row["customer_key"]] = row
    top = sorted(best.values(), key=lambda row: (-row["probability"], row["customer_key"]))[:50]
    listed = sorted(rows(finished.root, "contact_list"), key=lambda row: row["rank"])
    assert [row["rank"] for row in listed] == list(range(1, 51))
    assert [(row["customer_key"], row["proposal_id"], row["proposal_necessity"]) for row in listed] == [
        (row["customer_key"], row["proposal_id"], row["probability"]) for row in top
    ]


def test_the_csv_file_matches_the_table(finished: Finished) -> None:
    listed = sorted(rows(finished.root, "contact_list"), key=lambda row: row["rank"])
    with Path(finished.summary["contact_list"]).open(encoding="utf-8", newline="") as file:
        csv_rows = list(csv.DictReader(file))
    names = ["rank", "customer_key", "proposal_id", "description", "proposal_necessity"]
    assert list(csv_rows[0]) == names
    assert [[row[name] for name in names[:4]] for row in csv_rows] == [
        [str(row[name]) for name in names[:4]] for row in listed
    ]
    assert [float(row["proposal_necessity"]) for row in csv_rows] == [
        row["proposal_necessity"] for row in listed
    ]
    assert sorted(path.name for path in (finished.root / "delivery").glob("[!.]*")) == [
        "contact_list_2023-12-20.csv",
        "contact_list_2023-12-20.json",
    ]
    manifest = json.loads((finished.root / "delivery" / "contact_list_2023-12-20.json").read_text())
    content = Path(finished.summary["contact_list"]).read_bytes()
    assert (manifest["status"], manifest["sha256"]) == ("valid", hashlib.sha256(content).hexdigest())


def test_the_report_shows_the_numbers_of_the_run(finished: Finished) -> None:
    page = Path(finished.summary["report"]).read_text(encoding="utf-8")
    (headlines,) = re.findall(r'<dl class="headlines">(.*?)</dl>', page, re.DOTALL)
    pairs = re.findall(r'<dt>(.*?)</dt>\s*<dd class="value">(.*?)</dd>', headlines, re.DOTALL)
    assert {html.unescape(label): html.unescape(value) for label, value in pairs} == finished.summary[
        "numbers"
    ]
    # Without the style sheet, which contains other numbers.
    text = re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])
    for count in (finished.data.expected["rows_in"], finished.data.expected["events"]):
        assert f"{count:,}" in text
    first = min(rows(finished.root, "contact_list"), key=lambda row: row["rank"])
    assert first["proposal_id"] in text
    assert finished.summary["run_id"] in text
    assert rows(finished.root, "scores")[0]["model_digest"][:12] in text


def test_the_report_shows_the_version_of_every_table_except_the_audit(finished: Finished) -> None:
    page = Path(finished.summary["report"]).read_text(encoding="utf-8")
    shown_versions = dict(
        re.findall(r"<t[hd][^>]*>(\w+)</t[hd]>\s*<td[^>]*>(\d+)</td>", page.partition("Delta version")[2])
    )
    assert shown_versions == {
        name: str(version) for name, version in finished.versions.items() if name != "audit"
    }


@pytest.fixture(scope="module")
def mlflow(finished: Finished) -> MlflowClient:
    """Client of the MLflow database in the workspace."""
    uri = f"sqlite:///{finished.root / 'mlflow' / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_mlflow_contains_parameters_tags_and_metrics_of_the_training(
    finished: Finished, mlflow: MlflowClient
) -> None:
    experiment = mlflow.get_experiment_by_name("lam_spark")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.world_size"] == "2"
    assert run.data.params["model.d_model"] == "16"
    assert run.data.tags["lam_spark.run_id"] == finished.summary["run_id"]
    assert run.data.tags["delta.training_blocks"] == str(finished.versions["training_blocks"])
    assert run.data.metrics["tokens"] == finished.summary["stages"]["train"]["tokens"]
    assert run.data.metrics["flops"] > 1000 * run.data.metrics["tokens"]
    assert run.data.metrics["core_seconds"] == pytest.approx(2 * run.data.metrics["seconds"], abs=0.2)
    losses = mlflow.get_metric_history(run.info.run_id, "fine-tuning.validation_loss")
    assert [point.step for point in losses] == sorted({point.step for point in losses})
    assert 1 <= len(losses) <= 2
    assert all(0 < point.value < 5 for point in losses)


def test_the_model_version_has_the_held_out_numbers_of_every_target(
    finished: Finished, mlflow: MlflowClient
) -> None:
    (entry,) = (row for row in rows(finished.root, "audit") if row["stage"] == "evaluate")
    result = EvaluateResult.from_json(json.loads(entry["entry"])["result"])
    tags = mlflow.get_model_version_by_alias("small_shop", "champion").tags
    held_out = {name: value for name, value in tags.items() if name.startswith("held_out.")}
    assert held_out == result.tags
    assert result.rankings is not None
    assert float(tags["held_out.response.auc"]) == pytest.approx(result.rankings.model.auc, abs=1e-5)
    assert {name.split(".")[1] for name in held_out} == {"response", "lapse", "spend", "items"}
    page = Path(finished.summary["report"]).read_text(encoding="utf-8")
    for target in ("response", "lapse", "spend", "items"):
        assert f'<th scope="row">{target}<span' in page


def test_the_queries_of_each_target_add_up(finished: Finished) -> None:
    counts, examples = finished.summary["stages"]["examples"], rows(finished.root, "examples")
    for target in ("response", "lapse", "spend", "items"):
        used = sum(counts[f"{target}.{split}"] for split in ("train", "straddling", "validation", "test"))
        unused = sum(count for name, count in counts.items() if name.startswith(f"{target}.unused."))
        assert used == sum(row["target"] == target for row in examples)
        assert counts[f"{target}.queries"] == used + unused
        assert min(counts[f"{target}.{split}"] for split in ("train", "validation", "test")) > 0


def test_scores_were_made_with_the_registered_model(finished: Finished, mlflow: MlflowClient) -> None:
    version = mlflow.get_model_version_by_alias("small_shop", "champion")
    (weights,) = (finished.root / "mlflow").rglob("model.safetensors")
    folder = weights.parent
    assert version.run_id in folder.parts
    parts = [hashlib.sha256((folder / n).read_bytes()).digest() for n in ("model.safetensors", "model.json")]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    assert version.tags["sha256"] == digest
    assert {row["model_digest"] for row in rows(finished.root, "scores")} == {digest}
    assert {row["model_digest"] for row in rows(finished.root, "held_out_scores")} == {digest}
    card = json.loads((folder / "model.json").read_text())
    assert card["facts"]["training"]["world_size"] == 2
    assert card["facts"]["training"]["parameters"] == finished.summary["stages"]["train"]["parameters"]


def test_the_audit_has_one_chained_entry_per_stage(finished: Finished) -> None:
    entries = sorted(rows(finished.root, "audit"), key=lambda row: row["sequence"])
    assert [(row["stage"], row["status"]) for row in entries if row["status"] != "done"] == [
        ("deliver", "started")
    ]
    assert [row["stage"] for row in entries if row["status"] == "done"] == list(NIGHTLY)
    assert {row["run_id"] for row in entries} == {finished.summary["run_id"]}
    previous = "0" * 64
    for row in entries:
        assert row["previous_hash"] == previous
        previous = hashlib.sha256(f"{previous}\n{row['entry']}".encode()).hexdigest()
        assert row["entry_hash"] == previous
    by_stage = {row["stage"]: json.loads(row["entry"]) for row in entries if row["status"] == "done"}
    assert all(entry["result"]["format"] >= 1 for entry in by_stage.values())
    score = ScoreResult.from_json(by_stage["score"]["result"])
    assert score.counts == finished.summary["stages"]["score"]
    tables_written = [entry["tables_written"] for entry in by_stage.values()]
    assert dict(itertools.chain.from_iterable(part.items() for part in tables_written)) == {
        name: version for name, version in finished.versions.items() if name != "audit"
    }


def test_the_log_contains_every_stage(finished: Finished) -> None:
    (file,) = (finished.root / "logs").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [record["stage"] for record in records if record["event"] == "stage done"] == list(NIGHTLY)
    assert {record["run_id"] for record in records} == {finished.summary["run_id"]}
    assert not [record for record in records if record["level"] == "error"]
