"""Which customer an id of another kind (cookie, device, phone, card) belongs to at a point in time.

The rules of `IdentityConfig`: an event goes to the customer of the latest link at or before it. An event before the
first link goes to that link's customer if it is at most `lookback_days` older. Two customers linked at one instant
leave the id unassigned until its next link. An id linked to more than `max_customers` customers is never assigned.

A link becomes known at its `known_at`, `linked_at` plus the declared delay of its source. An event is not known to be
the customer's before the link that assigns it.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import IdentityConfig
from lam_spark.storage.wall_clock import plus_days

LINK_COLUMNS = ["id_key", "customer_key", "linked_at", "known_at"]


def assignments(links: DataFrame, identity: IdentityConfig) -> DataFrame:
    """Customers of each id over time.

    Grain: `id_key`. `_assignments` is an array of (linked_at, customer_key, known_at) in order of time. It has an
    entry per change of customer, and one where a further link to the same customer is known earlier than those before
    it; a null `customer_key` means unassigned. An id with too many customers has one entry, unassigned. Cost: two
    shuffles by id; a task holds the links of one id.
    """
    by_instant = links.groupBy("id_key", "linked_at").agg(
        F.min("customer_key").alias("_first"),
        F.max("customer_key").alias("_last"),
        F.min("known_at").alias("known_at"),  # several sources may state a link
    )
    customer = F.when(F.col("_first") == F.col("_last"), F.col("_first"))
    in_order = Window.partitionBy("id_key").orderBy("linked_at")
    since_change = Window.partitionBy("id_key", "_changes").orderBy("linked_at")
    first_known = F.min("known_at").over(since_change.rowsBetween(Window.unboundedPreceding, -1))
    is_change = (F.col("_number") == 1) | ~F.col("customer_key").eqNullSafe(F.col("_previous"))
    changes = (
        by_instant.withColumn("customer_key", customer)
        .withColumns(
            {
                "_previous": F.lag("customer_key").over(in_order),
                "_number": F.row_number().over(in_order),
            }
        )
        .withColumn("_changes", F.count_if(is_change).over(in_order))
        .withColumn("_first_known", first_known)
        # The first link after a change has none before it.
        .where(F.col("_first_known").isNull() | (F.col("known_at") < F.col("_first_known")))
    )
    customer_counts = links.groupBy("id_key").agg(F.count_distinct("customer_key").alias("_customers"))
    is_shared = F.col("_customers") > identity.max_customers
    entry = F.struct("linked_at", F.when(~is_shared, F.col("customer_key")).alias("customer_key"), "known_at")
    return (
        changes.join(customer_counts, "id_key")
        .where(~is_shared | (F.col("_number") == 1))
        .groupBy("id_key")
        .agg(F.sort_array(F.collect_list(entry)).alias("_assignments"))
    )


def assignment_at(event_time: Column, identity: IdentityConfig) -> Column:
    """Entry of the column `_assignments` that decides on an event at `event_time`; null if none does.

    An entry without a customer leaves the event unassigned, too.
    """
    entries = F.col("_assignments")
    earlier = F.filter(entries, lambda entry: entry["linked_at"] <= event_time)
    is_within_lookback = event_time >= plus_days(entries[0]["linked_at"], -identity.lookback_days)
    return F.when(
        F.size(entries) > 0,
        F.when(F.size(earlier) > 0, F.element_at(earlier, -1)).when(is_within_lookback, entries[0]),
    )


def changed_assignments(old_links: DataFrame, new: DataFrame, identity: IdentityConfig) -> DataFrame:
    """Assignments of the ids that the links `new` change; most logins change nothing.

    Grain: `id_key`. Columns: `_assignments` after the change, and `_since`: no event before it changes its customer or
    the instant at which it is known (null: events of any time may).
    """
    touched = new.groupBy("id_key").agg(F.min("linked_at").alias("_earliest"))
    known_links = old_links.join(touched, "id_key", "left_semi").select(*LINK_COLUMNS)
    after = assignments(known_links.unionByName(new.select(*LINK_COLUMNS)), identity)
    before = assignments(known_links, identity).select("id_key", F.col("_assignments").alias("_before"))
    # An id with too many customers loses all its assignments, at all times.
    has_unassigned = F.exists("_assignments", lambda entry: entry["customer_key"].isNull())
    since = F.when(~has_unassigned, plus_days(F.col("_earliest"), -identity.lookback_days))
    return (
        after.join(before, "id_key", "left")
        .where(~F.col("_assignments").eqNullSafe(F.col("_before")))
        .join(touched, "id_key")
        .select("id_key", "_assignments", since.alias("_since"))
    )
