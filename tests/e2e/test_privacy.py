"""No file written by a run contains raw ids, or keys of customers without consent to the purpose of the file."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from tests.support.runs import Finished, rows
from tests.support.shop import key_of, keys_of

RAW_ID = re.compile(rb"RAW.CUSTOMER", re.IGNORECASE)
HEX_KEY = re.compile(rb"(?=([0-9a-f]{32}))")
# File name -> whether the file contains a raw id, and the customer keys in it.
SearchResults = dict[str, tuple[bool, set[str]]]


def texts(value: Any) -> Iterator[str]:
    """All strings of a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (*texts(key), *texts(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts(part)


def content(path: Path) -> bytes:
    """The bytes of a file, followed by the decoded values of a Parquet or SQLite file."""
    stored = path.read_bytes()
    if stored[:4] == b"PAR1":
        decoded = "\n".join(texts(pq.ParquetFile(path).read().to_pydict()))
        return stored + b"\n" + decoded.encode()
    if stored[:15] == b"SQLite format 3":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            return stored + b"\n" + "\n".join(database.iterdump()).encode()
    return stored


@pytest.fixture(scope="module")
def search_results(finished: Finished, embedded: Finished) -> SearchResults:
    """Search results of all files of the full run and of the stage `embed`.

    Raw files and the table `identity` are excluded.
    """
    known_keys = {key_of(raw).encode() for raw in finished.data.everyone}

    def search(content: bytes) -> tuple[bool, set[str]]:
        return bool(RAW_ID.search(content)), {
            key.decode() for key in known_keys & set(HEX_KEY.findall(content))
        }

    results = {
        "stdout": search((finished.stdout + embedded.stdout).encode()),
        "stderr": search((finished.stderr + embedded.stderr).encode()),
    }
    for path in finished.root.rglob("*"):
        name = path.relative_to(finished.root).as_posix()
        if path.is_file() and not name.startswith(("raw/", "tables/identity/")):
            results[name] = search(content(path))
    return results


def keys_in(search_results: SearchResults, *folders: str) -> set[str]:
    """All customer keys in the files of these folders."""
    parts = [file_keys for name, (_, file_keys) in search_results.items() if name.startswith(folders)]
    assert parts, f"no file in {folders}"
    return set().union(*parts)


def test_the_search_finds_keys_and_raw_ids(finished: Finished, search_results: SearchResults) -> None:
    assert keys_in(search_results, "tables/events/") == keys_of(finished.data.everyone)
    raw = content(finished.root / "raw" / "purchases.parquet")
    assert RAW_ID.search(raw)
    identity = b"".join(content(path) for path in (finished.root / "tables" / "identity").glob("*.parquet"))
    assert RAW_ID.search(identity)


def test_raw_ids_are_only_in_the_identity_table(search_results: SearchResults) -> None:
    assert [name for name, (raw, _) in search_results.items() if raw] == []


@pytest.mark.parametrize(
    "folder",
    ["tables/held_out_scores/", "tables/held_out_predictions/", "tables/examples/", "tables/embeddings/"],
)
def test_training_and_evaluation_use_only_customers_who_agreed(
    finished: Finished, search_results: SearchResults, folder: str
) -> None:
    used_keys = keys_in(search_results, folder)
    assert used_keys
    assert used_keys - keys_of(finished.data.training) == set()


def test_training_blocks_contain_only_customers_who_agreed(finished: Finished, spark: SparkSession) -> None:
    """Blocks contain a hash of the customer key instead of the key."""

    def hashes(raw_ids: Any) -> set[int]:
        frame = spark.createDataFrame([(key,) for key in keys_of(raw_ids)], "customer_key STRING")
        return {row[0] for row in frame.select(F.hash("customer_key")).collect()}

    hashes_in_blocks = {
        customer_hash
        for block in rows(finished.root, "training_blocks")
        for customer_hash, window in zip(block["customer_index"], block["window"], strict=True)
        if window  # 0 is an empty slot
    }
    others = set(finished.data.everyone) - finished.data.training
    assert others
    assert hashes_in_blocks.isdisjoint(hashes(others))
    assert hashes_in_blocks == hashes(
        finished.data.training
    )  # all of them have purchases before the test period


@pytest.mark.parametrize("folder", ["tables/scores/", "tables/contact_list/", "delivery/", "report/"])
def test_only_customers_who_agreed_are_scored_and_listed(
    finished: Finished, search_results: SearchResults, folder: str
) -> None:
    listed_keys = keys_in(search_results, folder)
    assert listed_keys
    assert listed_keys - keys_of(finished.data.contact) == set()


def test_sequences_contain_customers_who_agreed_to_either_purpose(
    finished: Finished, search_results: SearchResults
) -> None:
    assert keys_in(search_results, "tables/sequences/") == keys_of(
        finished.data.training | finished.data.contact
    )


def test_the_ledger_contains_customers_with_a_statement(
    finished: Finished, search_results: SearchResults
) -> None:
    stated_ids = [raw for number, raw in enumerate(finished.data.everyone) if number % 20 != 19]
    assert keys_in(search_results, "tables/consent/") == keys_of(stated_ids)


def test_all_other_files_contain_no_customer_key(search_results: SearchResults) -> None:
    tables = (
        "events",
        "consent",
        "sequences",
        "examples",
        "scores",
        "contact_list",
        "held_out_scores",
        "held_out_predictions",
        "embeddings",
    )
    with_keys = (*(f"tables/{name}/" for name in tables), "delivery/", "report/")
    other_files = {
        name: file_keys for name, (_, file_keys) in search_results.items() if not name.startswith(with_keys)
    }
    assert {name.split("/")[0] for name in other_files} == {
        ".lock",
        "logs",
        "mlflow",
        "tables",
        "stdout",
        "stderr",
    }
    assert {name: len(file_keys) for name, file_keys in other_files.items() if file_keys} == {}


def test_transaction_logs_contain_no_customer_key(search_results: SearchResults) -> None:
    logs = {name: file_keys for name, (_, file_keys) in search_results.items() if "/_delta_log/" in name}
    assert len(logs) >= 11
    assert {name: len(file_keys) for name, file_keys in logs.items() if file_keys} == {}
