"""Every file that a run writes, searched for raw ids and for the keys of people who did not agree to its purpose."""

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

from lam_spark.identity.pseudonyms import keyed_pseudonym
from tests.support.runs import Finished, rows
from tests.support.shop import SECRET

RAW_ID = re.compile(rb"RAW.CUSTOMER", re.IGNORECASE)
HEX_KEY = re.compile(rb"(?=([0-9a-f]{32}))")


def texts(value: Any) -> Iterator[str]:
    """Every string of a decoded value, however deep."""
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
    """The bytes of a file and, where it is Parquet or SQLite, what is encoded in it."""
    held = path.read_bytes()
    if held[:4] == b"PAR1":
        decoded = "\n".join(texts(pq.ParquetFile(path).read().to_pydict()))
        return held + b"\n" + decoded.encode()
    if held[:15] == b"SQLite format 3":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            return held + b"\n" + "\n".join(database.iterdump()).encode()
    return held


@pytest.fixture(scope="module")
def found(finished: Finished, embedded: Finished) -> dict[str, tuple[bool, set[str]]]:
    """File -> whether it holds a raw id, and the customer keys in it. Raw files and the map are left out.

    Of the run, and of the stage that it leaves out.
    """
    known = {keyed_pseudonym(SECRET.encode(), raw).encode() for raw in finished.data.everyone}

    def search(held: bytes) -> tuple[bool, set[str]]:
        return bool(RAW_ID.search(held)), {key.decode() for key in known & set(HEX_KEY.findall(held))}

    results = {
        "stdout": search((finished.stdout + embedded.stdout).encode()),
        "stderr": search((finished.stderr + embedded.stderr).encode()),
    }
    for path in finished.root.rglob("*"):
        name = path.relative_to(finished.root).as_posix()
        if path.is_file() and not name.startswith(("raw/", "tables/identity/")):
            results[name] = search(content(path))
    return results


def keys(raw_ids: Any) -> set[str]:
    return {keyed_pseudonym(SECRET.encode(), raw) for raw in raw_ids}


def within(found: dict[str, tuple[bool, set[str]]], *folders: str) -> set[str]:
    """All keys in the files of these folders."""
    parts = [held for name, (_, held) in found.items() if name.startswith(folders)]
    assert parts, f"no file in {folders}"
    return set().union(*parts)


def test_the_search_finds_what_there_is(finished: Finished, found: dict[str, tuple[bool, set[str]]]) -> None:
    assert within(found, "tables/events/") == keys(finished.data.everyone)
    raw = content(finished.root / "raw" / "purchases.parquet")
    assert RAW_ID.search(raw)
    identity = b"".join(content(path) for path in (finished.root / "tables" / "identity").glob("*.parquet"))
    assert RAW_ID.search(identity)


def test_no_raw_id_outside_the_identity_map(found: dict[str, tuple[bool, set[str]]]) -> None:
    assert [name for name, (raw, _) in found.items() if raw] == []


@pytest.mark.parametrize(
    "folder",
    ["tables/held_out_scores/", "tables/held_out_predictions/", "tables/examples/", "tables/embeddings/"],
)
def test_nobody_is_trained_on_who_did_not_agree(
    finished: Finished, found: dict[str, tuple[bool, set[str]]], folder: str
) -> None:
    held = within(found, folder)
    assert held
    assert held - keys(finished.data.training) == set()


def test_no_block_is_of_somebody_who_did_not_agree(finished: Finished, spark: SparkSession) -> None:
    """Blocks hold no key: whose events they are, they tell by a hash of it."""

    def hashes(raw_ids: Any) -> set[int]:
        frame = spark.createDataFrame([(key,) for key in keys(raw_ids)], "customer_key STRING")
        return {row[0] for row in frame.select(F.hash("customer_key")).collect()}

    owners = {
        owner
        for block in rows(finished.root, "training_blocks")
        for owner, segment in zip(block["customer_index"], block["window"], strict=True)
        if segment  # 0 is an empty slot
    }
    others = set(finished.data.everyone) - finished.data.training
    assert others
    assert owners.isdisjoint(hashes(others))
    assert owners == hashes(finished.data.training)  # all of them bought something before the test period


@pytest.mark.parametrize("folder", ["tables/scores/", "tables/contact_list/", "delivery/", "report/"])
def test_nobody_is_listed_who_did_not_agree(
    finished: Finished, found: dict[str, tuple[bool, set[str]]], folder: str
) -> None:
    listed = within(found, folder)
    assert listed
    assert listed - keys(finished.data.contact) == set()


def test_sequences_are_of_those_who_agreed_to_either(
    finished: Finished, found: dict[str, tuple[bool, set[str]]]
) -> None:
    assert within(found, "tables/sequences/") == keys(finished.data.training | finished.data.contact)


def test_the_ledger_is_of_those_who_stated_something(
    finished: Finished, found: dict[str, tuple[bool, set[str]]]
) -> None:
    stated = [raw for number, raw in enumerate(finished.data.everyone) if number % 20 != 19]
    assert within(found, "tables/consent/") == keys(stated)


def test_all_other_files_know_nobody(found: dict[str, tuple[bool, set[str]]]) -> None:
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
    others = {name: held for name, (_, held) in found.items() if not name.startswith(with_keys)}
    assert {name.split("/")[0] for name in others} == {
        ".lock",
        "logs",
        "mlflow",
        "tables",
        "stdout",
        "stderr",
    }
    assert {name: len(held) for name, held in others.items() if held} == {}


def test_transaction_logs_know_nobody(found: dict[str, tuple[bool, set[str]]]) -> None:
    logs = {name: held for name, (_, held) in found.items() if "/_delta_log/" in name}
    assert len(logs) >= 11
    assert {name: len(held) for name, held in logs.items() if held} == {}
