"""The tables `lookups` and `lookup_versions`: what look-ups held when they mapped rows.

A look-up is an input that a reader's select reads other than as its own new rows. Whenever its content differs from
that of the newest version, it becomes a new version; only the rows that differ are written. Not by time travel: VACUUM
removes old versions of a Delta table, and a file has none.

Cost a run: the fingerprint of each look-up (a listing, or two queries of a database); where it differs, one read of the
look-up and one join of its rows with those of the newest version. The versions come to the driver, never the rows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from lam_spark.config import Config, InputConfig
from lam_spark.errors import DataQualityError
from lam_spark.identity.pseudonyms import CUSTOMER, Secret, id_column, register_ids, with_pseudonyms
from lam_spark.sources.files import MALFORMED, Input, header_errors
from lam_spark.sources.fingerprint import input_fingerprint
from lam_spark.sources.ingestion_state import recorded_metadata
from lam_spark.sources.inputs import Inputs, open_input, refuse_malformed
from lam_spark.sources.lookup_rows import lookup_rows, lookup_schema, parsed_row, row_text
from lam_spark.storage.dataframes import local_frame, materialize, one_row, union_all
from lam_spark.storage.session_settings import configured_sql
from lam_spark.storage.tables.registry import TABLES
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import instant, sql_literal

_FINGERPRINTS = "lookups"  # key in the metadata of `ingestion_state`
_ROW = ["lookup", "row", "copies"]


@dataclass(frozen=True)
class RecordedVersion:
    """A row of the table `lookup_versions`."""

    schema: StructType
    customer_id: str | None
    rows: int
    recorded_at: dt.datetime

    def gives(self, schema: StructType) -> bool:
        """Whether it holds all columns of a schema."""
        types = {field.name: field.dataType for field in self.schema}
        return all(types.get(field.name) == field.dataType for field in schema)


@dataclass(frozen=True)
class LookupVersion:
    """The version of a look-up that maps new rows.

    Attributes:
        version: Its number.
        has_changed: Whether this run found a content that differs from the version before.
        since: Start of the run that read this content first (ISO, UTC).
        first_recorded: Start of the run that recorded version 1, which mapped the history of the first load.
    """

    version: int
    has_changed: bool
    since: str
    first_recorded: str


def recorded_versions(tables: Tables) -> dict[str, dict[int, RecordedVersion]]:
    """Look-up -> version -> what is recorded about it."""
    versions: dict[str, dict[int, RecordedVersion]] = {}
    table = tables.read_if_exists("lookup_versions")
    if table is not None:
        micros = F.unix_micros("recorded_at").alias("_micros")
        for row in table.select("*", micros).orderBy("lookup", "version").toLocalIterator():
            schema = StructType.fromJson(json.loads(row["columns"]))
            version = RecordedVersion(schema, row["customer_id"], row["rows"], instant(row["_micros"]))
            versions.setdefault(row["lookup"], {})[row["version"]] = version
    return versions


class Lookups:
    """The look-ups of a run: found changes, the rows of each version, and what is recorded at the end.

    Args:
        tables: Tables of the workspace.
        config: Configuration of the data set.
        names: Look-ups that map rows in this run.
        folder: Folder of this run, for copies.
        started_at: Start of the run (UTC).

    Attributes:
        newest: Look-up -> version that maps new rows.
        recorded: Look-up -> version -> what is recorded; new versions of this run included.

    Raises:
        ConfigError: A look-up does not exist or is not as declared.
        DataQualityError: A look-up holds lines that do not parse.
    """

    def __init__(
        self, tables: Tables, config: Config, names: Iterable[str], folder: Path, started_at: dt.datetime
    ) -> None:
        self._tables = tables
        self._config = config
        self._folder = folder
        self._started_at = started_at
        self._schemas = {name: lookup_schema(name, config.inputs[name]) for name in names}
        self.recorded = recorded_versions(tables)
        self.newest = {name: max(self.recorded.get(name, {}), default=0) for name in self._schemas}
        self._fingerprints = recorded_metadata(tables, _FINGERPRINTS)
        self._copies = self._copy_where_different()
        self._new: dict[str, int] = {}  # look-up -> version that this run records
        self._changes: DataFrame | None = None
        self._rekeyed: DataFrame | None = None  # earlier rows whose customer is known now
        self._contents: dict[tuple[str, int], DataFrame] = {}
        self._inputs: tuple[dict[str, int], Inputs] | None = None
        if self._copies:
            self._find_changes()

    def schema(self, name: str) -> StructType:
        """Declared columns of a look-up."""
        return self._schemas[name]

    def inputs(self, versions: Mapping[str, int]) -> Inputs:
        """Inputs whose look-ups have these versions, by default the newest.

        Temporary views belong to the session: the inputs of an earlier call may not be used any more.
        """
        wanted = self.newest | dict(versions)
        if self._inputs is None or self._inputs[0] != wanted:
            contents = {name: self._content(name, version) for name, version in wanted.items()}
            config = self._config
            self._inputs = wanted, Inputs(self._tables.spark, config.inputs, config.views, contents)
        return self._inputs[1]

    def results(self) -> dict[str, LookupVersion]:
        """The version of each look-up that maps new rows."""
        return {
            name: _result(self.recorded[name], has_changed=self._new.get(name, 1) > 1)
            for name in sorted(self.newest)
        }

    def metadata(self) -> dict[str, Any]:
        """Fingerprints of the newest versions, for the commit of `ingestion_state`."""
        return {_FINGERPRINTS: self._fingerprints}

    def with_customers(self, secret: Secret) -> None:
        """Add the pseudonyms of customers to the new rows; new ids are registered. Before the transaction.

        Where `customer_id` is another column than before, also to the rows of all earlier versions.
        """
        if self._changes is None:
            return
        plain = self._changes.withColumn("customer_key", F.lit(None).cast("string"))
        names = [name for name in self._new if self._config.inputs[name].customer_id is not None]
        of_customers = F.col("lookup").isin(*names) & F.col("_is_new")
        keyed = [
            self._with_keys(self._changes.where((F.col("lookup") == name) & F.col("_is_new")), name, secret)
            for name in names
        ]
        self._changes = union_all([plain.where(~of_customers), *keyed]) if keyed else plain
        declared_since = [
            name
            for name in names
            if self._new[name] > 1
            and self.recorded[name][self._new[name] - 1].customer_id != self._config.inputs[name].customer_id
        ]
        if declared_since:
            earlier = self._tables.read("lookups").select("lookup", "row").distinct()
            rows = [
                self._with_keys(earlier.where(F.col("lookup") == name), name, secret)
                for name in declared_since
            ]
            self._rekeyed = union_all(rows)

    def record(self) -> None:
        """Write the new versions; called inside a transaction. Without a new version nothing is committed."""
        if not self._new:
            return
        assert self._changes is not None
        tables = self._tables
        version = _by_lookup(self._new)
        changes = self._changes.where(F.col("lookup").isin(*self._new))
        if any(number > 1 for number in self._new.values()):
            gone = changes.where(~F.col("_is_new")).select(
                "lookup", "row", (version - 1).alias("last_version")
            )
            holds_now = "known.lookup = fresh.lookup AND known.last_version IS NULL"
            tables.update(gone, "lookups", "row", columns=["last_version"], where=holds_now)
        if self._rekeyed is not None:
            same = "known.lookup = fresh.lookup"
            tables.update(self._rekeyed, "lookups", "row", columns=["customer_key"], where=same)
        new = changes.where("_is_new").select(
            *_ROW,
            "customer_key",
            version.alias("first_version"),
            F.lit(None).cast("bigint").alias("last_version"),
            F.expr(sql_literal(self._started_at)).alias("recorded_at"),
        )
        tables.append(new, "lookups")
        columns = TABLES["lookup_versions"].columns
        rows = [
            (name, number, of.schema.json(), of.customer_id, of.rows, of.recorded_at)
            for name, number in self._new.items()
            for of in [self.recorded[name][number]]
        ]
        schema = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
        tables.append(local_frame(tables.spark, rows, schema), "lookup_versions")

    def _copy_where_different(self) -> dict[str, DataFrame]:
        """Copies (`row` as text) of the look-ups whose content may differ from the newest version."""
        copies = {}
        for name, schema in self._schemas.items():
            spec = self._config.inputs[name]
            fingerprint = _fingerprint(self._tables, name, spec)
            is_same = fingerprint is not None and fingerprint == self._fingerprints.get(name)
            if not (is_same and self._is_declared_as_recorded(name)):
                copies[name] = self._copy(name, spec, schema)
            self._fingerprints.pop(name, None)
            if fingerprint is not None:
                self._fingerprints[name] = fingerprint
        return copies

    def _is_declared_as_recorded(self, name: str) -> bool:
        newest = self.recorded.get(name, {}).get(self.newest[name])
        declared = (self._schemas[name], self._config.inputs[name].customer_id)
        return newest is not None and (newest.schema, newest.customer_id) == declared

    def _copy(self, name: str, spec: InputConfig, schema: StructType) -> DataFrame:
        """Read a look-up once."""
        source = open_input(self._tables.spark, name, spec)
        with configured_sql(self._tables.spark):
            malformed = F.lit(None).cast("string") if source.lines is None else F.col(MALFORMED)
            rows = source.rows if source.lines is None else source.lines
            texts = rows.select(row_text(schema).alias("row"), malformed.alias("raw"))
        with header_errors():
            copy = materialize(texts, self._folder / f"{name}.lookup")
        if source.lines is not None:
            refuse_malformed(name, Input(copy, copy.where(F.col("raw").isNotNull())))
        return copy.select("row")

    def _find_changes(self) -> None:
        """Compare the copies with the newest versions, and number the versions that are new."""
        tables = self._tables
        named = [copy.withColumn("lookup", F.lit(name)) for name, copy in self._copies.items()]
        fresh = union_all(named).groupBy("lookup", "row").agg(F.count("*").alias("copies"))
        if tables.exists("lookups"):
            holds_now = F.col("lookup").isin(*self._copies) & F.col("last_version").isNull()
            known = tables.read("lookups").where(holds_now).select(*_ROW)
            known = known.withColumn("_is_known", F.lit(True))
            joined = fresh.withColumn("_is_fresh", F.lit(True)).join(known, _ROW, "full_outer")
            differing = joined.where("_is_fresh IS NULL OR _is_known IS NULL")
            changes = differing.select(*_ROW, F.col("_is_known").isNull().alias("_is_new"))
        else:
            changes = fresh.select(*_ROW, F.lit(True).alias("_is_new"))
        self._changes = materialize(changes, self._folder / "lookups.changes")
        differences = _counts(self._changes)
        rows = _counts(union_all(named))
        for name in self._copies:
            if self._is_declared_as_recorded(name) and not differences.get(name):
                continue
            schema = self._schemas[name]
            self.newest[name] += 1
            self._new[name] = self.newest[name]
            customer_id = self._config.inputs[name].customer_id
            version = RecordedVersion(schema, customer_id, rows.get(name, 0), self._started_at)
            self.recorded.setdefault(name, {})[self.newest[name]] = version

    def _content(self, name: str, version: int) -> DataFrame:
        """Rows of a version.

        Raises:
            DataQualityError: The table `lookups` lacks rows of the version.
        """
        key = name, version
        if key not in self._contents:
            if name in self._copies and version == self.newest[name]:
                texts = self._copies[name].withColumn("copies", F.lit(1))
                self._contents[key] = lookup_rows(texts, self._schemas[name])
            else:
                self._contents[key] = self._recorded_content(name, version)
        return self._contents[key]

    def _recorded_content(self, name: str, version: int) -> DataFrame:
        recorded = self.recorded[name][version]
        holds = (F.col("first_version") <= version) & (
            F.col("last_version").isNull() | (F.col("last_version") >= version)
        )
        texts = self._tables.read("lookups").where((F.col("lookup") == name) & holds)
        # Rows of customers may have been erased; others may not be missing.
        if self._config.inputs[name].customer_id is None:
            found = one_row(texts.agg(F.coalesce(F.sum("copies"), F.lit(0))))[0]
            if found != recorded.rows:
                raise incomplete(name, version, f"holds {found:,} of its {recorded.rows:,} rows")
        return lookup_rows(texts, recorded.schema).select(*self._schemas[name].names)

    def _with_keys(self, rows: DataFrame, name: str, secret: Secret) -> DataFrame:
        column = str(self._config.inputs[name].customer_id)
        with configured_sql(rows.sparkSession):
            only = StructType([self._schemas[name][column]])
            parsed = rows.select("*", parsed_row(only)[column].alias("_id"))
            folds = CUSTOMER in self._config.identity.fold_case
            text = id_column(parsed, "_id", f"inputs.{name}.customer_id", folds=folds)
            selected = parsed.select(*rows.columns, F.nullif(text, F.lit("")).alias("_id"))
        with_id = selected.where(F.col("_id").isNotNull())
        ids = with_id.select(F.lit(CUSTOMER).alias("id_kind"), F.col("_id").alias("raw_id"))
        register_ids(self._tables, ids, secret)
        keyed = with_pseudonyms(self._tables, with_id, F.lit(CUSTOMER), "_id", "customer_key")
        without = selected.where(F.col("_id").isNull()).drop("_id")
        return keyed.unionByName(without.withColumn("customer_key", F.lit(None).cast("string")))


def latest_lookups(tables: Tables, names: Iterable[str]) -> dict[str, LookupVersion]:
    """The newest version of look-ups; those without a version are left out."""
    recorded = recorded_versions(tables)
    return {
        name: _result(recorded[name], has_changed=max(recorded[name]) > 1)
        for name in sorted(names)
        if name in recorded
    }


def incomplete(name: str, version: int, what: str) -> DataQualityError:
    """The error for a version that mapped rows and cannot be read any more."""
    return DataQualityError(
        f"look-up {name!r}: version {version} {what}: rows of the table lookups or lookup_versions were deleted. "
        "Restore both tables (RESTORE TABLE ... TO VERSION AS OF ..., or a backup) and run the stage again. If the "
        f"version is lost, set inputs.{name}.keep_versions: false and run once with --set ingest.rebuild=true, which "
        "maps all rows with the present content"
    )


def _result(versions: Mapping[int, RecordedVersion], *, has_changed: bool) -> LookupVersion:
    newest, first = max(versions), min(versions)
    since, first_recorded = (versions[number].recorded_at.isoformat() for number in (newest, first))
    return LookupVersion(newest, has_changed, since, first_recorded)


def _fingerprint(tables: Tables, name: str, spec: InputConfig) -> str | None:
    """Fingerprint of an input and of how it is read; None where a change cannot be noticed."""
    fingerprint = input_fingerprint(tables.spark, name, spec)
    if fingerprint is None:
        return None
    read = spec.model_dump(mode="json", include={"format", "path", "columns", "options", "watermark"})
    return hashlib.sha256(json.dumps([read, fingerprint], sort_keys=True).encode()).hexdigest()


def _counts(named: DataFrame) -> dict[str, int]:
    """Rows by look-up."""
    return {row["lookup"]: row["count"] for row in named.groupBy("lookup").count().toLocalIterator()}


def _by_lookup(values: Mapping[str, int]) -> Column:
    """A value by the column `lookup`."""
    pairs = (F.lit(each) for name, value in values.items() for each in (name, value))
    return F.create_map(*pairs)[F.col("lookup")].cast("bigint")
