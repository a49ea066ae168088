"""The telecom world as Spark writes it: the same bytes however it is spread, and counts that plain Python confirms."""

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
from lam_spark.datasets.telecom import generate, place
from lam_spark.datasets.telecom.generate import write_parts
from lam_spark.datasets.telecom.identities import RAW_ID_PATTERN
from lam_spark.datasets.telecom.parameters import World
from lam_spark.events.schema import channel_schema
from tests.support.plain_reading import UNPARSED, Ingested, ingest_plainly

CONF = Path(__file__).parents[3] / "conf" / "telco.yaml"
ARGUMENTS: dict[str, Any] = {"customers": 600, "seed": 8, "dirty_share": 0.05}


@dataclass(frozen=True)
class Placed:
    """A world that lies in `root`."""

    root: Path
    rows: dict[str, int]
    config: Config

    @property
    def counts(self) -> dict[str, Any]:
        """What the truth says of each feed."""
        return dict(json.loads((self.root / "truth" / "counts.json").read_text()))

    def truth(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table of the truth."""
        return list(pq.read_table(self.root / "truth" / name).to_pylist())


@pytest.fixture(scope="module")
def placed(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Placed:
    """Two parts."""
    root = tmp_path_factory.mktemp("telco")
    rows = place(root / "raw", **ARGUMENTS)
    return Placed(root, rows, load_config(CONF, overrides=[f"root={root}"]))


@pytest.fixture(scope="module")
def ingested(placed: Placed) -> Ingested:
    """The raw files, read without any of the project's code but its configuration."""
    return ingest_plainly(placed.config)


def digests(folder: Path) -> dict[str, str]:
    """Every file's sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def register(spark: SparkSession, name: str, source: InputConfig) -> int:
    """Make an input's rows a view, as Spark reads them; returns how many do not parse."""
    reader = spark.read.format(source.format).options(**{"header": "true"} | source.options)
    if source.format == "parquet":
        reader.schema(source.columns).load(source.path).createOrReplaceTempView(name)
        return 0
    schema = f"{source.columns}, _malformed STRING"
    parsed = reader.schema(schema).option("columnNameOfCorruptRecord", "_malformed").load(source.path)
    # Spark parses the columns that a query needs: kept as a whole, every query sees the same verdict.
    parsed.cache().createOrReplaceTempView(name)
    return parsed.where("_malformed IS NOT NULL").count()


def test_the_same_bytes_come_however_spark_spreads_the_work(
    spark: SparkSession, placed: Placed, tmp_path: Path
) -> None:
    world = World(**ARGUMENTS)
    assert world.parts == 2
    write_parts(spark, world, tmp_path / "raw", tmp_path / "truth", tasks=1)
    raw = digests(placed.root / "raw")
    del raw["manifest.json"]
    assert digests(tmp_path / "raw") == raw
    assert digests(tmp_path / "truth").items() < digests(placed.root / "truth").items()


def test_every_feed_comes_in_several_files_of_its_own_format(placed: Placed) -> None:
    for name, source in placed.config.inputs.items():
        files = sorted(path.name for path in Path(source.path).iterdir())
        suffix = {"json": "jsonl"}.get(source.format, source.format)
        assert files == [f"2024-h{half}-0000{part}.{suffix}" for half in (1, 2) for part in (0, 1)], name


def test_the_truth_counts_what_a_plain_reading_of_the_files_finds(placed: Placed, ingested: Ingested) -> None:
    for name, counts in placed.counts.items():
        known = {key: value for key, value in counts.items() if key not in ("dirt", "hour_shown_twice")}
        if name in placed.config.channels:
            assert ingested.channels[name] == known, name
        elif name in placed.config.identity.links:
            assert ingested.links[name] == {key: known[key] for key in ingested.links[name]}, name
        assert placed.rows[name] == counts["rows_in"]


def test_the_counts_balance_and_hold_every_kind_of_outcome(placed: Placed) -> None:
    for name, counts in placed.counts.items():
        good = next(counts[key] for key in ("events", "links", "statements") if key in counts)
        assert counts["rows_in"] == good + counts["duplicates"] + counts["quarantined"] + counts["unresolved"]
        assert counts["quarantined"] == sum(counts["refused"].values())
        linked = name in placed.config.channels and placed.config.channels[name].id != "customer"
        assert (counts["unresolved"] > 0) == linked
    total, dirty = (
        sum(value)
        for value in zip(
            *((c["rows_in"], sum(c["dirt"].values())) for c in placed.counts.values()), strict=True
        )
    )
    assert dirty / total == pytest.approx(ARGUMENTS["dirty_share"], abs=0.005)
    kinds = Counter(kind for counts in placed.counts.values() for kind in counts["dirt"])
    assert len(kinds) == 16
    assert placed.counts["point_of_sale"]["hour_shown_twice"] > 0


def test_events_belong_to_the_customers_that_the_truth_names(placed: Placed, ingested: Ingested) -> None:
    for customer in placed.truth("customers"):
        told = {name.removeprefix("events_"): n for name, n in customer.items() if name.startswith("events_")}
        found = {name: ingested.events[name, customer["customer_id"]] for name in told}
        assert found == told, customer["customer_id"]


def test_the_truth_of_queries_is_that_of_the_files(placed: Placed, ingested: Ingested) -> None:
    queries = placed.truth("queries")
    contacts = Counter((customer, row["arm"]) for customer, row in ingested.accepted["telemarketing"])
    assert contacts == Counter((q["customer_id"], q["arm"]) for q in queries if q["arm"])
    upgraded = Counter(q["customer_id"] for q in queries if q["ordered_at"])
    resolved = Counter(c for c, row in ingested.accepted["point_of_sale"] if row["kind"] == "upgrade")
    assert (resolved - upgraded).total() == 0
    assert resolved.total() >= 0.98 * upgraded.total()
    assert all(q["effect"] == q["p_treated"] - q["p_control"] for q in queries)


def test_statements_give_the_standings_of_the_truth(placed: Placed, ingested: Ingested) -> None:
    for customer in placed.truth("customers"):
        for purpose in ("model_training", "direct_marketing"):
            states = ingested.standing.get((customer["customer_id"], purpose), set())
            assert customer[f"agreed_{purpose}"] == (states == {"opt_in"}), customer["customer_id"]


def test_the_configured_selects_give_one_declared_row_for_each_raw_row(
    spark: SparkSession, placed: Placed
) -> None:
    malformed = {name: register(spark, name, source) for name, source in placed.config.inputs.items()}
    declared = set(channel_schema(placed.config).names)
    for name, spec in placed.config.channels.items():
        selected = spark.sql(spec.select)
        assert set(selected.columns) <= declared
        assert selected.count() == placed.counts[name]["rows_in"]
        assert malformed[spec.grain] == placed.counts[name]["refused"].get(UNPARSED, 0), name
    for name, link in placed.config.identity.links.items():
        selected = spark.sql(link.select)
        assert sorted(selected.columns) == ["customer_id", "id", "id_kind", "linked_at"]
        assert selected.count() == placed.counts[name]["rows_in"]
    offers = spark.sql(placed.config.scoring.proposals)
    assert offers.count() == 4
    assert set(offers.columns) <= {*placed.config.fields, "proposal_id", "description"}
    stated = spark.sql(placed.config.consent.select)
    assert stated.where("effective_at IS NOT NULL").count() == placed.rows["consent_statements"]
    spark.catalog.clearCache()
    for name in malformed:
        spark.catalog.dropTempView(name)


def test_the_truth_holds_member_numbers_and_no_other_raw_id(placed: Placed) -> None:
    texts = "\n".join(str(placed.truth(name)) for name in ("customers", "queries"))
    texts += (placed.root / "truth" / "counts.json").read_text()
    found = {text.split("-")[0] for text in re.findall(RAW_ID_PATTERN, texts)}
    assert found == {"MEMBER"}


def test_a_world_that_lies_there_is_left_alone(spark: SparkSession, placed: Placed) -> None:
    before = digests(placed.root)
    assert place(placed.root / "raw", **ARGUMENTS) == placed.rows
    assert digests(placed.root) == before


def test_a_call_that_died_and_one_with_other_arguments_are_done_anew(
    spark: SparkSession, tmp_path: Path
) -> None:
    raw, truth = tmp_path / "raw", tmp_path / "truth"
    for left in (raw / "app", tmp_path / "raw.draft" / "app", truth):
        left.mkdir(parents=True)
        (left / "left by a call that died").write_text("half a world")
    first = place(raw, 100, seed=1)
    assert not list(tmp_path.rglob("left by*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "truth"]
    known = digests(tmp_path)
    assert place(raw, 100, seed=2) != first
    assert place(raw, 100, seed=1) == first
    assert digests(tmp_path) == known


def test_what_a_killed_attempt_of_a_task_left_is_swept(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_killed_attempt(session: SparkSession, world: World, raw: Path, truth: Path, tasks: int) -> Any:
        counts = write_parts(session, world, raw, truth, tasks)
        (raw / "app" / ".2024-h1-00000.jsonl.4711").write_text("half a file")
        return counts

    monkeypatch.setattr(generate, "write_parts", with_a_killed_attempt)
    place(tmp_path / "raw", 100, seed=1)
    assert sorted(path.name for path in (tmp_path / "raw" / "app").iterdir()) == [
        "2024-h1-00000.jsonl",
        "2024-h2-00000.jsonl",
    ]
