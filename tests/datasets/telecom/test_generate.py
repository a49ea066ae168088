"""Generation with Spark: reproducible bytes, and counts that an independent implementation confirms."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from lam_spark.config import Config, InputConfig
from lam_spark.config.load import load_config
from lam_spark.datasets.telecom import generate, write_raw_files
from lam_spark.datasets.telecom.generate import write_parts
from lam_spark.datasets.telecom.identities import RAW_ID_PATTERN
from lam_spark.datasets.telecom.parameters import SyntheticDataSet
from lam_spark.errors import ConfigError
from lam_spark.events.schema import channel_schema
from tests.support.reference_ingestion import MALFORMED, ReferenceResult, ingest_reference

CONF = Path(__file__).parents[3] / "conf" / "telecom.yaml"
ARGUMENTS: dict[str, Any] = {"customers": 600, "seed": 8, "dirty_share": 0.05}


@dataclass(frozen=True)
class Generated:
    """A generated data set in `root`."""

    root: Path
    rows: dict[str, int]
    config: Config

    @property
    def counts(self) -> dict[str, Any]:
        """Expected counts of each feed, from the ground truth."""
        return dict(json.loads((self.root / "truth" / "counts.json").read_text()))

    def truth(self, name: str) -> list[dict[str, Any]]:
        """Rows of a ground-truth table."""
        return list(pq.read_table(self.root / "truth" / name).to_pylist())


@pytest.fixture(scope="module")
def generated(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Generated:
    """A data set of two parts."""
    root = tmp_path_factory.mktemp("telecom")
    rows = write_raw_files(root / "raw", **ARGUMENTS)
    return Generated(root, rows, load_config(CONF, overrides=[f"root={root}"]))


@pytest.fixture(scope="module")
def reference(generated: Generated) -> ReferenceResult:
    """The raw files, ingested without any code of the project except its configuration."""
    return ingest_reference(generated.config)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def register(spark: SparkSession, name: str, source: InputConfig) -> int:
    """Create a view of an input as Spark reads it; returns the number of malformed rows."""
    reader = spark.read.format(source.format).options(**{"header": "true"} | source.options)
    if source.format == "parquet":
        reader.schema(source.columns).load(source.path).createOrReplaceTempView(name)
        return 0
    schema = f"{source.columns}, _malformed STRING"
    parsed = reader.schema(schema).option("columnNameOfCorruptRecord", "_malformed").load(source.path)
    # Spark parses only the columns that a query needs. The cache makes all queries see the same malformed rows.
    parsed.cache().createOrReplaceTempView(name)
    return parsed.where("_malformed IS NOT NULL").count()


@pytest.mark.parametrize(
    ("arguments", "arrived"),
    [
        ({"customers": 99}, "99 and 0.05"),
        ({"customers": 10_000_001}, "10,000,001 and 0.05"),
        ({"dirty_share": 0.31}, "1,000 and 0.31"),
        ({"dirty_share": -0.1}, "1,000 and -0.1"),
    ],
)
def test_arguments_out_of_range_raise_an_error(
    tmp_path: Path, arguments: dict[str, float], arrived: str
) -> None:
    with pytest.raises(ConfigError) as error:
        write_raw_files(
            tmp_path / "raw", **({"customers": 1_000, "seed": 1, "dirty_share": 0.05} | arguments)
        )
    assert str(error.value) == (
        f"expected 100 to 10,000,000 customers and a dirty_share of 0 to 0.3, got {arrived}: "
        "change fetch.arguments"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_do_not_depend_on_the_number_of_tasks(
    spark: SparkSession, generated: Generated, tmp_path: Path
) -> None:
    data_set = SyntheticDataSet(**ARGUMENTS)
    assert data_set.parts == 2
    write_parts(spark, data_set, tmp_path / "raw", tmp_path / "truth", tasks=1)
    raw = digests(generated.root / "raw")
    del raw["manifest.json"]
    assert digests(tmp_path / "raw") == raw
    assert digests(tmp_path / "truth").items() < digests(generated.root / "truth").items()


def test_every_feed_has_several_files_in_its_own_format(generated: Generated) -> None:
    for name, source in generated.config.inputs.items():
        files = sorted(path.name for path in Path(source.path).iterdir())
        suffix = {"json": "jsonl"}.get(source.format, source.format)
        assert files == [f"2024-h{half}-0000{part}.{suffix}" for half in (1, 2) for part in (0, 1)], name


def test_the_expected_counts_match_the_reference_ingestion(
    generated: Generated, reference: ReferenceResult
) -> None:
    for name, counts in generated.counts.items():
        expected = {
            key: value
            for key, value in counts.items()
            if key not in ("injected_defects", "ambiguous_local_times")
        }
        if name in generated.config.channels:
            assert reference.channels[name] == expected, name
        elif name in generated.config.identity.links:
            assert reference.links[name] == {key: expected[key] for key in reference.links[name]}, name
        assert generated.rows[name] == counts["rows_in"]


def test_the_expected_counts_reconcile_and_contain_every_row_status(generated: Generated) -> None:
    for name, counts in generated.counts.items():
        accepted = next(counts[key] for key in ("events", "links", "statements") if key in counts)
        rejected = counts["duplicates"] + counts["quarantined"] + counts["unresolved"]
        assert counts["rows_in"] == accepted + rejected
        assert counts["quarantined"] == sum(counts["quarantine_reasons"].values())
        needs_links = name in generated.config.channels and generated.config.channels[name].id != "customer"
        assert (counts["unresolved"] > 0) == needs_links
    every = generated.counts.values()
    total = sum(counts["rows_in"] for counts in every)
    dirty = sum(sum(counts["injected_defects"].values()) for counts in every)
    assert dirty / total == pytest.approx(ARGUMENTS["dirty_share"], abs=0.005)
    kinds = {kind for counts in every for kind in counts["injected_defects"]}
    assert len(kinds) == 16
    assert generated.counts["point_of_sale"]["ambiguous_local_times"] > 0


def test_events_are_assigned_to_the_customers_of_the_ground_truth(
    generated: Generated, reference: ReferenceResult
) -> None:
    for customer in generated.truth("customers"):
        expected = {
            name.removeprefix("events_"): count
            for name, count in customer.items()
            if name.startswith("events_")
        }
        events = {name: reference.events[name, customer["customer_id"]] for name in expected}
        assert events == expected, customer["customer_id"]


def test_the_queries_of_the_ground_truth_match_the_files(
    generated: Generated, reference: ReferenceResult
) -> None:
    queries = generated.truth("queries")
    contacts = Counter((customer, row["arm"]) for customer, row in reference.accepted["telemarketing"])
    assert contacts == Counter((q["customer_id"], q["arm"]) for q in queries if q["arm"])
    upgraded = Counter(q["customer_id"] for q in queries if q["ordered_at"])
    resolved = Counter(
        customer for customer, row in reference.accepted["point_of_sale"] if row["kind"] == "upgrade"
    )
    assert (resolved - upgraded).total() == 0
    assert resolved.total() >= 0.98 * upgraded.total()
    assert all(q["effect"] == q["p_treated"] - q["p_control"] for q in queries)


def test_the_newest_statements_give_the_consent_status_of_the_ground_truth(
    generated: Generated, reference: ReferenceResult
) -> None:
    for customer in generated.truth("customers"):
        for purpose in ("model_training", "direct_marketing"):
            states = reference.consent_states.get((customer["customer_id"], purpose), set())
            assert customer[f"opted_in_{purpose}"] == (states == {"opt_in"}), customer["customer_id"]


def test_the_configured_selects_give_one_row_of_declared_columns_per_raw_row(
    spark: SparkSession, generated: Generated
) -> None:
    config = generated.config
    malformed = {name: register(spark, name, source) for name, source in config.inputs.items()}
    declared = set(channel_schema(config.fields).names)
    for name, channel in config.channels.items():
        selected = spark.sql(channel.select)
        assert set(selected.columns) <= declared
        assert selected.count() == generated.counts[name]["rows_in"]
        assert malformed[channel.grain] == generated.counts[name]["quarantine_reasons"].get(MALFORMED, 0), (
            name
        )
    for name, link in config.identity.links.items():
        selected = spark.sql(link.select)
        assert sorted(selected.columns) == ["customer_id", "id", "id_kind", "linked_at"]
        assert selected.count() == generated.counts[name]["rows_in"]
    offers = spark.sql(config.scoring.proposals)
    assert offers.count() == 4
    assert set(offers.columns) <= {*config.fields, "proposal_id", "description"}
    statements = spark.sql(config.consent.select)
    assert statements.where("effective_at IS NOT NULL").count() == generated.rows["consent_statements"]
    spark.catalog.clearCache()
    for name in malformed:
        spark.catalog.dropTempView(name)


def test_the_ground_truth_contains_member_numbers_and_no_other_raw_id(generated: Generated) -> None:
    texts = "\n".join(str(generated.truth(name)) for name in ("customers", "queries"))
    texts += (generated.root / "truth" / "counts.json").read_text()
    kinds = {text.split("-")[0] for text in re.findall(RAW_ID_PATTERN, texts)}
    assert kinds == {"MEMBER"}


def test_an_existing_data_set_is_not_written_again(spark: SparkSession, generated: Generated) -> None:
    before = digests(generated.root)
    assert write_raw_files(generated.root / "raw", **ARGUMENTS) == generated.rows
    assert digests(generated.root) == before


def test_an_incomplete_data_set_and_one_with_other_arguments_are_replaced(
    spark: SparkSession, tmp_path: Path
) -> None:
    raw, truth = tmp_path / "raw", tmp_path / "truth"
    for folder in (raw / "app", tmp_path / "raw.draft" / "app", truth):
        folder.mkdir(parents=True)
        (folder / "left by a failed call").write_text("incomplete")
    first = write_raw_files(raw, 100, seed=1)
    assert not list(tmp_path.rglob("left by*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "truth"]
    before = digests(tmp_path)
    assert write_raw_files(raw, 100, seed=2) != first
    assert write_raw_files(raw, 100, seed=1) == first
    assert digests(tmp_path) == before


def test_drafts_of_killed_task_attempts_are_deleted(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_killed_attempt(
        session: SparkSession, data_set: SyntheticDataSet, raw: Path, truth: Path, tasks: int
    ) -> Any:
        counts = write_parts(session, data_set, raw, truth, tasks)
        (raw / "app" / ".2024-h1-00000.jsonl.4711").write_text("incomplete")
        return counts

    monkeypatch.setattr(generate, "write_parts", with_a_killed_attempt)
    write_raw_files(tmp_path / "raw", 100, seed=1)
    assert sorted(path.name for path in (tmp_path / "raw" / "app").iterdir()) == [
        "2024-h1-00000.jsonl",
        "2024-h2-00000.jsonl",
    ]
