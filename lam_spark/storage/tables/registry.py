"""Every table of a workspace, declared once: columns, grain, key, customer column, writer, Delta properties.

Imports only `declaration.py` of the package, so that the configuration can derive reserved column names from it. The
document `docs/tables.md` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Mapping

from lam_spark.storage.tables.declaration import TableSpec

_CUSTOMER = ("STRING", "pseudonym of the customer (keyed hash)")
_RUN = ("STRING", "run that wrote the row")
_AS_OF = ("TIMESTAMP", "instant before which everything may be seen")
_TARGET = ("STRING", "name of the target")
_MODEL = ("STRING", "sha256 of the model's files")
_CONSENT = ("INT", "version of the table consent that decided")
_FIELDS = "the declared fields: numeric ones DOUBLE, all others STRING"

TABLES: Mapping[str, TableSpec] = {
    "identity": TableSpec(
        writer="ingest",
        grain="a raw id",
        key=("id_kind", "raw_id"),
        columns={
            "id_kind": ("STRING", "customer, or a kind that identity.links declare"),
            "raw_id": ("STRING", "the id as the channels deliver it: restrict access"),
            "id_key": ("STRING", "its pseudonym; of kind customer this is the customer_key"),
            "key_check": ("STRING", "check value of the secret that made the pseudonym"),
        },
        customer_column="id_key",
    ),
    "links": TableSpec(
        writer="ingest",
        grain="a link of an id to a customer, once per instant at which its sources make it known",
        key=("id_key", "customer_key", "linked_at", "known_at"),
        columns={
            "id_key": ("STRING", "pseudonym of the id"),
            "customer_key": _CUSTOMER,
            "linked_at": ("TIMESTAMP", "instant from which the id belongs to the customer"),
            "known_at": ("TIMESTAMP", "linked_at plus the arrival_delay of its source"),
        },
        customer_column="customer_key",
    ),
    "events": TableSpec(
        writer="ingest",
        grain="an event of a customer",
        key=("event_id",),
        columns={
            "customer_key": _CUSTOMER,
            "event_id": ("STRING", "hash of source, id, event_time and event_key"),
            "event_time": ("TIMESTAMP", "when it happened (UTC)"),
            "known_at": ("TIMESTAMP", "when it was known: after arrival_delay and the link that assigns it"),
            "source": ("STRING", "channel"),
            "id_key": ("STRING", "pseudonym of the id where it is not the customer's own, else null"),
            "event_order": ("BIGINT", "first 60 bits of event_id: sorts like it"),
            "ingested_at": ("TIMESTAMP", "start of the run that ingested it"),
        },
        configured_columns=_FIELDS,
        customer_column="customer_key",
        holds_fields=True,
        stats_columns=("event_time", "known_at", "source"),
        change_data_feed=True,
    ),
    "quarantine": TableSpec(
        writer="ingest",
        grain="a rejected raw row",
        key=(),
        columns={
            "source": ("STRING", "channel or link statement"),
            "reason": ("STRING", "the first rule that the row breaks"),
            "raw": ("STRING", "JSON of the mapped values, or the line that does not parse: restrict access"),
            "run_id": _RUN,
        },
        holds_fields=True,
        stats_columns=("source",),
    ),
    "unresolved": TableSpec(
        writer="ingest",
        grain="an event whose id belongs to no customer yet",
        key=("event_id",),
        columns={
            "event_id": ("STRING", "as in events"),
            "id_key": ("STRING", "pseudonym of the id"),
            "event_time": ("TIMESTAMP", "when it happened (UTC)"),
            "source": ("STRING", "channel"),
        },
        configured_columns=_FIELDS,
        customer_column="id_key",
        holds_fields=True,
        stats_columns=("event_time", "source"),
    ),
    "reconciliation": TableSpec(
        writer="ingest",
        grain="a source in a run",
        key=("run_id", "source"),
        columns={
            "run_id": _RUN,
            "source": ("STRING", "channel or link statement"),
            "rows_in": ("BIGINT", "new raw rows: the sum of the next five"),
            "events": ("BIGINT", "rows that became events"),
            "links": ("BIGINT", "rows that became links"),
            "duplicates": ("BIGINT", "rows of an event or link that is there already"),
            "quarantined": ("BIGINT", "rejected rows"),
            "unresolved": ("BIGINT", "rows whose id belongs to no customer yet"),
            "conflicting": ("BIGINT", "duplicates whose content differs from the first row"),
            "resolved_later": ("BIGINT", "rows of earlier runs whose id has a customer now"),
            "reassigned": ("BIGINT", "events that belong to another customer now"),
            "unassigned": ("BIGINT", "events that belong to no customer any more"),
            "known_at_changed": ("BIGINT", "events of the same customer whose known_at changed"),
            "arrival_seconds": ("BIGINT", "event_time to the run, 95th percentile; null on a first load"),
            "recorded_at": ("TIMESTAMP", "start of the run"),
        },
        stats_columns=("recorded_at",),
    ),
    "ingestion_state": TableSpec(
        writer="ingest",
        grain="an ingested part of an input: a file, a Delta version or a watermark",
        key=("reader", "part", "ingested_at"),
        columns={
            "reader": ("STRING", "channel or link statement"),
            "input": ("STRING", "name of the input"),
            "part": ("STRING", "file path, Delta version or watermark"),
            "size": ("BIGINT", "bytes of a file, rows at a watermark"),
            "modified": ("BIGINT", "modification time of a file, microseconds since 1970"),
            "mapping": ("STRING", "sha256 of the configuration that mapped its rows"),
            "lookups": ("MAP<STRING,BIGINT>", "look-up -> version that mapped its rows"),
            "run_id": _RUN,
            "ingested_at": ("TIMESTAMP", "start of the run that ingested it first"),
        },
        stats_columns=("reader",),
    ),
    "lookups": TableSpec(
        writer="ingest",
        grain="a distinct row of a look-up and the versions in which it holds",
        key=("lookup", "row", "first_version"),
        columns={
            "lookup": ("STRING", "name of the input"),
            "row": ("STRING", "JSON of the declared columns: restrict access"),
            "copies": ("BIGINT", "how often the look-up holds the row"),
            "customer_key": ("STRING", "pseudonym of inputs.NAME.customer_id; null without one"),
            "first_version": ("BIGINT", "first version that holds the row"),
            "last_version": ("BIGINT", "last version that holds the row; null: the newest holds it"),
            "recorded_at": ("TIMESTAMP", "start of the run that recorded the row"),
        },
        customer_column="customer_key",
        stats_columns=("lookup", "first_version", "last_version"),
    ),
    "lookup_versions": TableSpec(
        writer="ingest",
        grain="a version of a look-up; append-only",
        key=("lookup", "version"),
        columns={
            "lookup": ("STRING", "name of the input"),
            "version": ("BIGINT", "1, 2, ...: a number for each content that differs from the one before"),
            "columns": ("STRING", "JSON of the names and types of its columns"),
            "rows": ("BIGINT", "rows of this version"),
            "recorded_at": ("TIMESTAMP", "start of the run that read it first"),
        },
    ),
    "consent": TableSpec(
        writer="consent",
        grain="a consent statement; append-only",
        key=("customer_key", "purpose", "state", "effective_at", "recorded_at", "source"),
        columns={
            "customer_key": _CUSTOMER,
            "purpose": ("STRING", "what the customer was asked"),
            "state": ("STRING", "opt_in, opt_out or anything else (means no)"),
            "effective_at": ("TIMESTAMP", "from when an opt-in holds; a withdrawal holds from its recording"),
            "recorded_at": ("TIMESTAMP", "when it was recorded"),
            "source": ("STRING", "where it was stated, or that the source no longer states the consent"),
            "ingested_at": ("TIMESTAMP", "refresh that first read it"),
        },
        customer_column="customer_key",
        stats_columns=("effective_at",),
    ),
    "vocabulary": TableSpec(
        writer="sequences",
        grain="a value of a categorical field; append-only",
        key=("field", "value"),
        columns={
            "field": ("STRING", "name of the field"),
            "value": ("STRING", "the value"),
            "token_id": ("INT", "from 3 on, unique in the field, never changes"),
            "count_when_added": ("BIGINT", "events with the value when it was added"),
        },
        stats_columns=("field",),
    ),
    "value_counts": TableSpec(
        writer="sequences",
        grain="a value of a categorical field",
        key=("field", "value"),
        columns={
            "field": ("STRING", "name of the field"),
            "value": ("STRING", "the value"),
            "count": (
                "BIGINT",
                "events known before the vocabulary's cutoff, of customers eligible for training",
            ),
        },
        stats_columns=("field",),
    ),
    "sequences": TableSpec(
        writer="sequences",
        grain="a customer who is eligible for training or for contact",
        key=("customer_key",),
        columns={
            "customer_key": _CUSTOMER,
            "seq_len": ("INT", "events in the arrays"),
            "events_seen": ("BIGINT", "events known before as_of, truncated ones included"),
            "first_known_at": ("TIMESTAMP", "of all events seen"),
            "last_known_at": ("TIMESTAMP", "of the events in the arrays"),
            "known_at": ("ARRAY<BIGINT>", "microseconds UTC, ascending"),
            "event_time": (
                "ARRAY<BIGINT>",
                "microseconds UTC, ascending among events with the same known_at",
            ),
            "event_order": ("ARRAY<BIGINT>", "order of events with the same times"),
            "hour_of_week": ("ARRAY<INT>", "0 = Sunday 00:00 local time"),
            "truncated_events": ("BIGINT", "events before those in the arrays"),
            "truncated_counts": ("MAP<INT,BIGINT>", "their number by token id of model.count_by"),
            "truncated_sums": ("MAP<STRING,DECIMAL(37,9)>", "their sums by numeric field"),
            "seq_hash": ("BIGINT", "hash of all of this"),
        },
        configured_columns="one array a modelled field: token ids (INT) or numbers (FLOAT)",
        customer_column="customer_key",
        holds_fields=True,
        stats_columns=("seq_len",),
        deletion_vectors=True,
    ),
    "examples": TableSpec(
        writer="examples",
        grain="a query of a target with its label",
        key=("customer_key", "target", "query_id"),
        columns={
            "customer_key": _CUSTOMER,
            "target": _TARGET,
            "query_id": ("STRING", "event_id of the query event"),
            "as_of": (
                "TIMESTAMP",
                "time of the query: known before is the history, happened after the label",
            ),
            "label_end": ("TIMESTAMP", "end of the horizon"),
            "label": ("DOUBLE", "0 or 1, or an amount; null for targets of kind next"),
            "label_ids": ("ARRAY<INT>", "of kind next: token ids of the values that followed"),
            "split": ("STRING", "train, straddling, validation or test"),
            "baseline_score": ("DOUBLE", "score of the simple baseline; null is lowest"),
            "query_time": ("BIGINT", "as_of in microseconds UTC"),
            "query_hour_of_week": ("INT", "as_of as hour of the local week"),
        },
        configured_columns="the query event's fields: token ids (INT), numbers (FLOAT), reference fields (STRING)",
        customer_column="customer_key",
        holds_fields=True,
        stats_columns=("as_of", "split"),
    ),
    "training_blocks": TableSpec(
        writer="snapshot",
        grain="a packed block of events and queries of several customers",
        key=(),
        columns={
            "window": ("ARRAY<INT>", "event slots: 0 = empty, 1, 2, ... = a window of a customer's events"),
            "customer_index": ("ARRAY<INT>", "event slots: number that distinguishes customers"),
            "known_at": ("ARRAY<BIGINT>", "event slots: microseconds UTC"),
            "log_delay_hours": ("ARRAY<FLOAT>", "event slots: log of 1 + hours from event_time to known_at"),
            "hour_of_week": ("ARRAY<INT>", "event slots: hour of event_time, 0 = Sunday 00:00 local time"),
            "is_new": ("ARRAY<INT>", "event slots: 0 where an overlapping window holds the event already"),
            "query_window": ("ARRAY<INT>", "query slots: window that the query belongs to"),
            "query_index": ("ARRAY<INT>", "query slots: the query sees event slots below this one"),
            "query_time": ("ARRAY<BIGINT>", "query slots: microseconds UTC"),
            "query_hour_of_week": ("ARRAY<INT>", "query slots: hour of the local week"),
            "query_split": ("ARRAY<INT>", "query slots: split of the example"),
            "query_row": ("ARRAY<INT>", "query slots: -1 (used in scoring)"),
            "aggregates": ("ARRAY<FLOAT>", "query slots x aggregates of the history"),
            "initial_window": ("ARRAY<INT>", "the window that the initial counts belong to, 0 = none"),
            "initial_time": ("ARRAY<BIGINT>", "time of the initial counts, microseconds UTC"),
            "initial_counts": ("ARRAY<FLOAT>", "decayed counts of the events before that window"),
            "block_kind": ("STRING", "partition: queried (has queries) or plain"),
            "packing": ("STRING", "digest of the layout"),
        },
        configured_columns="`event_FIELD` (event slots), `query_FIELD` and `label_TARGET` (query slots)",
        holds_fields=True,
    ),
    "scores": TableSpec(
        writer="score",
        grain="an eligible customer and a proposal, for a target and an as_of",
        key=("customer_key", "target", "proposal_id", "as_of"),
        columns={
            "customer_key": _CUSTOMER,
            "target": _TARGET,
            "proposal_id": ("STRING", "proposal that the prediction assumes"),
            "description": ("STRING", "the proposal in words"),
            "as_of": _AS_OF,
            "logit": ("DOUBLE", "output of the model"),
            "probability": ("DOUBLE", "calibrated probability of the target after the proposal"),
            "model_digest": _MODEL,
            "model_version": ("INT", "version in the model registry"),
            "definition": ("STRING", "JSON: configuration key -> digest of what the scores were made for"),
            "consent_version": _CONSENT,
            "events_version": ("BIGINT", "version of events that the sequences were built from"),
            "run_id": _RUN,
        },
        customer_column="customer_key",
        stats_columns=("as_of", "target"),
    ),
    "embeddings": TableSpec(
        writer="embed",
        grain="a customer eligible for embeddings.purpose, for an as_of",
        key=("customer_key", "as_of"),
        columns={
            "customer_key": _CUSTOMER,
            "as_of": _AS_OF,
            "embedding": ("ARRAY<FLOAT>", "model.d_model numbers; comparable within one model_digest"),
            "model_digest": _MODEL,
            "model_version": ("INT", "version in the model registry"),
            "consent_version": _CONSENT,
            "run_id": _RUN,
        },
        customer_column="customer_key",
        stats_columns=("as_of",),
    ),
    "held_out_scores": TableSpec(
        writer="evaluate",
        grain="a test example of the scored target",
        key=("customer_key", "query_id"),
        columns={
            "customer_key": _CUSTOMER,
            "query_id": ("STRING", "as in examples"),
            "logit": ("DOUBLE", "output of the model"),
            "probability": ("DOUBLE", "calibrated probability of the target"),
            "target": _TARGET,
            "as_of": ("TIMESTAMP", "time of the query"),
            "label": ("DOUBLE", "0 or 1"),
            "baseline_score": ("DOUBLE", "score of the simple baseline; null is lowest"),
            "model_digest": _MODEL,
        },
        customer_column="customer_key",
        stats_columns=("as_of", "target"),
    ),
    "held_out_predictions": TableSpec(
        writer="evaluate",
        grain="a test example of another target than the scored one",
        key=("customer_key", "target", "query_id"),
        columns={
            "customer_key": _CUSTOMER,
            "target": _TARGET,
            "query_id": ("STRING", "as in examples"),
            "as_of": ("TIMESTAMP", "time of the query"),
            "label": ("DOUBLE", "as in examples"),
            "label_ids": ("ARRAY<INT>", "as in examples"),
            "baseline_score": ("DOUBLE", "as in examples"),
            "prediction": (
                "ARRAY<DOUBLE>",
                "binary: probability; value: mean and median amount; next: a probability a value",
            ),
            "model_digest": _MODEL,
        },
        customer_column="customer_key",
        stats_columns=("as_of", "target"),
    ),
    "contact_list": TableSpec(
        writer="deliver",
        grain="a customer on the list of an as_of",
        key=("customer_key", "as_of"),
        columns={
            "rank": ("INT", "1 is contacted first"),
            "customer_key": _CUSTOMER,
            "proposal_id": ("STRING", "the customer's best proposal"),
            "description": ("STRING", "the proposal in words"),
            "proposal_necessity": ("DOUBLE", "calibrated probability of the target after the proposal"),
            "as_of": _AS_OF,
            "model_digest": _MODEL,
            "consent_version": _CONSENT,
            "run_id": _RUN,
        },
        customer_column="customer_key",
        stats_columns=("as_of",),
    ),
    "audit": TableSpec(
        writer="run",
        grain="a stage of a run, of `deliver` also its start; append-only, each entry chained to the one before by "
        "its hash",
        key=("sequence",),
        columns={
            "sequence": ("BIGINT", "0, 1, 2, ..."),
            "run_id": _RUN,
            "stage": ("STRING", "name of the stage"),
            "status": ("STRING", "started, done or failed"),
            "recorded_at": ("TIMESTAMP", "when the stage ended, or started"),
            "entry": ("STRING", "JSON: configuration, table versions, result, cost, error"),
            "previous_hash": ("STRING", "entry_hash of the entry before"),
            "entry_hash": ("STRING", "sha256 of previous_hash and entry"),
        },
        stats_columns=("recorded_at",),
    ),
}

# Columns other than fields that the selects of channels, link statements and proposals yield.
INPUT_COLUMNS = ("customer_id", "event_key", "id", "linked_at", "proposal_id", "description")

# Training blocks have the columns `event_FIELD` and `query_FIELD`.
_FIELD_PREFIXES = ("event_", "query_")

# Names that fields may not have, because a table has both columns. Training blocks add a prefix to fields.
RESERVED_COLUMNS = frozenset(INPUT_COLUMNS).union(
    *(spec.columns for spec in TABLES.values() if spec.holds_fields),
    (
        name.removeprefix(prefix)
        for name in TABLES["training_blocks"].columns
        for prefix in _FIELD_PREFIXES
        if name.startswith(prefix)
    ),
)
