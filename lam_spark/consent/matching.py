"""Whether the ids of the ledger are those of the events: opt-outs that concern no known customer are counted."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ConsentConfig
from lam_spark.consent.eligibility import OPT_IN
from lam_spark.consent.record import RefreshRecord
from lam_spark.errors import ConsentError
from lam_spark.identity.pseudonyms import CUSTOMER
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.tables.store import Tables

# A ledger with fewer customers may well hold none who has an event yet.
_MIN_CUSTOMERS = 20


@dataclass(frozen=True)
class Matching:
    """Customers of the ledger compared with those of the events.

    Attributes:
        events_version: Version of `events`; None if there is none.
        unmatched_opt_outs: Customers who opted out of a purpose and have no event.
        ids_in_other_case: Ids without events that differ only in case from an id with events.
    """

    events_version: int | None
    unmatched_opt_outs: int = 0
    ids_in_other_case: int = 0


def match_customers(
    tables: Tables, cache: FrameCache, statements: DataFrame, last: RefreshRecord | None, *, is_same: bool
) -> Matching:
    """Compare the ledger's customers with those of `events`.

    Cost: one pass over the keys of `events` and one shuffle of them; nothing if neither side changed since `last`.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        statements: Statements of the source, with `customer_key` and `state`.
        last: The last refresh.
        is_same: Whether the source is as it was then.

    Raises:
        ConsentError: At least twenty customers are in the ledger, and none of them has an event.
    """
    if not tables.exists("events"):
        return Matching(None)
    version = tables.version("events")
    if is_same and last is not None and last.events_version == version:
        return Matching(version, last.unmatched_opt_outs, last.ids_in_other_case)
    known = cache(tables.read("events").select("customer_key").distinct())
    has_withdrawn = F.max(F.coalesce(F.col("state") != OPT_IN, F.lit(True))).alias("_has_withdrawn")
    customers = statements.groupBy("customer_key").agg(has_withdrawn)
    unmatched = cache(customers.join(known, "customer_key", "left_anti"))
    total = customers.count()
    without_events, opt_outs = one_row(unmatched.agg(F.count("*"), F.count_if("_has_withdrawn")))
    in_other_case = _count_in_other_case(tables, unmatched, known) if without_events else 0
    if total >= _MIN_CUSTOMERS and without_events == total and not known.isEmpty():
        raise ConsentError(
            f"none of the {total:,} customers of the consent ledger has an event, and the channels know others: are "
            "other ids selected as customer_id in consent.select than in the channels?"
            + (f" {in_other_case:,} differ only in case: see identity.fold_case" if in_other_case else "")
        )
    return Matching(version, opt_outs, in_other_case)


def require_few_unmatched(matching: Matching, last: RefreshRecord | None, consent: ConsentConfig) -> None:
    """Check that not many customers who opted out lost, or never had, events since the last refresh.

    Raises:
        ConsentError: There are more of them than `consent.max_new_unmatched` allows.
    """
    limit = consent.max_new_unmatched
    if limit is None or last is None or last.events_version is None:
        return
    added = matching.unmatched_opt_outs - last.unmatched_opt_outs
    if added > limit:
        raise ConsentError(
            f"{matching.unmatched_opt_outs:,} customers who opted out have no event, {added:,} more than at the last "
            f"refresh and more than consent.max_new_unmatched = {limit} allows: did the ids of the ledger change? "
            "Nothing is ingested"
        )


def _count_in_other_case(tables: Tables, unmatched: DataFrame, known: DataFrame) -> int:
    """Ids of `unmatched` that equal an id of `known` without case. Raw ids stay in the executors."""
    is_customer = F.col("id_kind") == CUSTOMER
    ids = tables.read("identity").where(is_customer)
    folded = ids.select(F.col("id_key").alias("customer_key"), F.lower("raw_id").alias("_folded"))
    with_events = folded.join(known, "customer_key", "left_semi").select("_folded")
    return (
        folded.join(unmatched, "customer_key", "left_semi").join(with_events, "_folded", "left_semi").count()
    )
