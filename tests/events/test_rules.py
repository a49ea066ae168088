"""Faulty sources: a row becomes an event or is quarantined with its reason; a file that does not fit stops the run."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from lam_spark.errors import ConfigError
from lam_spark.events.quarantine import MALFORMED_REASON
from lam_spark.events.stage import ingest
from lam_spark.runtime.context import RunContext
from tests.support.shop import context_builder, settings
from tests.support.tables import table_versions

ZONE = "Europe/Berlin"
HEADER = "phone,called_at,agent,amount"

# A line of the call centre -> the reason for its refusal; None for an event. Times are local, d/M/y.
CALLS: dict[bytes, str | None] = {
    b"RAW-1,05/03/2023 12:00:00,ann,3.5": None,
    b"RAW-1,29/10/2023 02:30:00,ann,3.5": None,  # came twice that night: taken as the earlier instant
    b"RAW-1,26/03/2023 02:30:00,ann,3.5": f"event_time does not exist in {ZONE}",
    b"RAW-1,05/03/2023 12:00:00,ann,3.5,more": MALFORMED_REASON,
    b"RAW-1,05/03/2023 12:00:00": MALFORMED_REASON,
    b"RAW-1,05/03/2023 12:00:01,j\xfcrgen,3.5": "text is not UTF-8",
    b"RAW-1\xff,05/03/2023 12:00:02,ann,3.5": "text is not UTF-8",
    b",05/03/2023 12:00:03,ann,3.5": "customer_id is missing",
    b"RAW-1,2023-03-05,ann,3.5": "event_time is missing or not a time",
    b"RAW-1,31/02/2023 12:00:00,ann,3.5": "event_time is missing or not a time",
    b"RAW-1,05/03/1999 12:00:00,ann,3.5": "event_time is before 2000-01-01",
    b"RAW-1,05/03/2999 12:00:00,ann,3.5": "event_time is in the future",
    b"RAW-1,05/03/2023 12:00:04,ann,much": "amount is not a number",
    b"RAW-1,05/03/2023 12:00:05,ann,NaN": "amount is not finite",
    b"RAW-1,05/03/2023 12:00:06,ann,-Infinity": "amount is not finite",
    b"RAW-1,05/03/2023 12:00:11,ann,-1.7976931348623157e308": "amount is larger than a 32-bit number",
    b"RAW-1,05/03/2023 12:00:07,ann,-4": "amount is below 0",
    b"RAW-1,05/03/2023 12:00:08,ann,5000": "amount is above 1000",
    b"RAW-1,05/03/2023 12:00:09,zoe,3.5": "place is not one of the declared values",
    b"RAW-1,05/03/2023 12:00:10,bob,0": "rule bob_charges",
}
CLICKS: dict[bytes, str | None] = {
    b'{"customer": "RAW-2", "at": "2023-03-05T12:00:00Z", "page": "home"}': None,
    b'{"customer": "RAW-2", "at": "2023-03-05T12:00:01+01:00", "page": null}': None,
    b'{"customer": "RAW-2", "at": "2023-03-05T12:00:02Z", "pa': MALFORMED_REASON,
    b'{"customer": "RAW-2", "at": 17, "page": "home"}': "event_time is before 2000-01-01",
    b'"just text"': MALFORMED_REASON,
    b'{"customer": "RAW-2", "page": "home"}': "event_time is missing or not a time",
    b'{"customer": "RAW-2", "at": "2023-03-05T12:00:04Z", "page": "h\xc3"}': MALFORMED_REASON,
}


def sections(root: Path) -> dict[str, Any]:
    raw = root / "raw"
    return settings(root) | {
        "inputs": settings(root)["inputs"]
        | {
            "calls": {
                "format": "csv",
                "path": str(raw / "calls"),
                "columns": "phone STRING, called_at STRING, agent STRING, amount STRING",
            },
            "clicks": {
                "format": "json",
                "path": str(raw / "clicks"),
                "columns": "customer STRING, at TIMESTAMP, page STRING",
            },
            "sales": {
                "format": "parquet",
                "path": str(raw / "sales"),
                "columns": "customer STRING, at TIMESTAMP, amount DOUBLE",
            },
        },
        "channels": {
            "calls": {
                "grain": "calls",
                "clock": {"zone": ZONE, "format": "dd/MM/yyyy HH:mm:ss"},
                "rules": {"bob_charges": "place <> 'bob' OR amount > 0"},
                "select": (
                    "SELECT phone AS customer_id, called_at AS event_time, called_at AS event_key, "
                    "'call' AS action, agent AS place, amount FROM calls"
                ),
            },
            "clicks": {
                "grain": "clicks",
                "select": (
                    "SELECT customer AS customer_id, at AS event_time, at AS event_key, page AS item FROM clicks"
                ),
            },
            "sales": {
                "grain": "sales",
                "select": (
                    "SELECT customer AS customer_id, at AS event_time, at AS event_key, amount FROM sales"
                ),
            },
        },
        "fields": settings(root)["fields"]
        | {
            "place": {"role": "where", "kind": "categorical", "values": ["ann", "bob", "j\u00fcrgen"]},
            "amount": {"role": "how", "kind": "numeric", "min": 0, "max": 1000},
        },
        "quality": {"max_quarantine_share": 1.0},
    }


def write_sales(path: Path, **columns: Any) -> None:
    noon = dt.datetime(2023, 3, 5, 12, tzinfo=dt.UTC)
    values = {"customer": ["RAW-3"], "at": [noon], "amount": [1.0]} | columns
    pq.write_table(pa.table({name: column for name, column in values.items() if column is not None}), path)


@pytest.fixture
def build(spark: SparkSession, tmp_path: Path) -> Callable[..., RunContext]:
    raw = tmp_path / "shop" / "raw"
    for name in ("calls", "clicks", "sales"):
        (raw / name).mkdir(parents=True)
    (raw / "calls" / "1.csv").write_bytes(b"\n".join([HEADER.encode(), *CALLS]) + b"\n")
    (raw / "clicks" / "1.jsonl").write_bytes(b"\n".join(CLICKS) + b"\n")
    write_sales(raw / "sales" / "1.parquet")
    builder = context_builder(spark, tmp_path / "shop")
    return lambda: builder(**sections(tmp_path / "shop"))


def test_faulty_rows_are_refused_with_their_reason_and_changed_files_stop_the_run(
    build: Callable[..., RunContext], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ingest(build())
    for channel, lines in (("calls", CALLS), ("clicks", CLICKS)):
        expected = Counter(reason for reason in lines.values() if reason)
        assert result.refused[channel] == dict(expected), channel
        assert result.sources[channel].events == sum(reason is None for reason in lines.values())
    tables = build().tables
    night = tables.read("events").where("source = 'calls' AND event_time > '2023-10-01'")
    (twice,) = night.selectExpr("date_format(event_time, 'dd HH:mm')").collect()
    assert twice[0] == "29 00:30"
    raws = [row["raw"] for row in tables.read("quarantine").where("source = 'calls'").collect()]
    assert "RAW-1,05/03/2023 12:00:00,ann,3.5,more" in raws  # an unparsed line, unchanged
    much = next(json.loads(raw) for raw in raws if "much" in raw)
    assert much == {
        "event_time": "05/03/2023 12:00:04",
        "event_key": "05/03/2023 12:00:04",
        "action": "call",
        "place": "ann",
        "amount": "much",
    }

    before, raw = table_versions(build()), tmp_path / "shop" / "raw"
    changed = {
        raw / "calls" / "2.csv": (b"called_at,phone,agent,amount\n", "read by position, expected the header"),
        raw / "clicks" / "2.jsonl": (
            b'{"customer": "RAW-2", "time": "2023-03-05T12:00:00Z", "page": "home"}\n',
            "lacks the declared columns at; it has customer, page, time",
        ),
    }
    for file, (content, message) in changed.items():
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            ingest(build())
        file.unlink()
    for columns, message in (
        ({"amount": None}, "lacks the declared columns amount; it has customer, at"),
        ({"amount": ["1.0"]}, "has other types: amount is string, declared double"),
    ):
        write_sales(raw / "sales" / "2.parquet", **columns)
        with pytest.raises(ConfigError, match=message):
            ingest(build())
    # A further column is not read, and the log names it.
    write_sales(raw / "sales" / "2.parquet", discount=[0.5], amount=[2.0])
    assert table_versions(build()) == before
    capsys.readouterr()
    assert ingest(build()).counts["conflicting"] == 1
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (staged,) = (record for record in records if record.get("event") == "staged")
    assert (staged["reader"], staged["undeclared_columns"]) == ("sales", ["discount"])
