"""Which customer an id of another kind (cookie, device, phone, card) belongs to, at a point in time.

The rules, in `IdentityConfig`: the latest link at or before the event; before the first link, its customer within
`lookback_days`; two customers linked at one instant are nobody until the next link; an id linked to more than
`max_customers` customers is nobody's.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import IdentityConfig

LINK = ["id_key", "customer_key", "linked_at"]


def timelines(links: DataFrame, rules: IdentityConfig) -> DataFrame:
    """Whose an id was from when on.

    Grain: `id_key`. `owners` is an array of (linked_at, customer_key) in order of time, an entry where the owner
    changes; customer_key null means nobody. An id of too many customers has one entry, nobody's.
    Cost: two shuffles by id; a task holds the changes of owner of one id.
    """
    moments = links.groupBy("id_key", "linked_at").agg(
        F.min("customer_key").alias("first"), F.max("customer_key").alias("last")
    )
    owner = F.when(F.col("first") == F.col("last"), F.col("first"))
    before = F.lag("customer_key").over(Window.partitionBy("id_key").orderBy("linked_at"))
    number = F.row_number().over(Window.partitionBy("id_key").orderBy("linked_at"))
    changes = (
        moments.withColumn("customer_key", owner)
        .withColumns({"before": before, "number": number})
        .where((F.col("number") == 1) | ~F.col("customer_key").eqNullSafe(F.col("before")))
    )
    many = links.groupBy("id_key").agg(F.count_distinct("customer_key").alias("customers"))
    shared = F.col("customers") > rules.max_customers
    entry = F.struct("linked_at", F.when(~shared, F.col("customer_key")).alias("customer_key"))
    return (
        changes.join(many, "id_key")
        .where(~shared | (F.col("number") == 1))
        .groupBy("id_key")
        .agg(F.sort_array(F.collect_list(entry)).alias("owners"))
    )


def owner_at(event_time: Column, rules: IdentityConfig) -> Column:
    """The owner, from the column `owners` of `timelines`, of an event of that time; null for nobody."""
    owners = F.col("owners")
    earlier = F.filter(owners, lambda entry: entry["linked_at"] <= event_time)
    first = owners[0]
    lookback = F.make_dt_interval(F.lit(rules.lookback_days))
    within = event_time >= first["linked_at"] - lookback
    return F.when(
        F.size(owners) > 0,
        F.when(F.size(earlier) > 0, F.element_at(earlier, -1)["customer_key"]).when(
            within, first["customer_key"]
        ),
    )


def changed_timelines(old: DataFrame, fresh: DataFrame, rules: IdentityConfig) -> DataFrame:
    """The timelines of those ids whose owners `fresh` links change; most logins change nothing.

    Grain: `id_key`; columns `owners` (new) and `since`: no event before it changes its owner by this.
    """
    touched = fresh.groupBy("id_key").agg(F.min("linked_at").alias("earliest"))
    known = old.join(touched, "id_key", "left_semi").select(*LINK)
    now = timelines(known.unionByName(fresh.select(*LINK)), rules)
    was = timelines(known, rules).select("id_key", F.col("owners").alias("was"))
    lookback = F.make_dt_interval(F.lit(rules.lookback_days))
    # Too many customers take an id from all of them, at all times.
    lost = F.exists("owners", lambda entry: entry["customer_key"].isNull())
    since = F.when(~lost, F.col("earliest") - lookback)
    return (
        now.join(was, "id_key", "left")
        .where(~F.col("owners").eqNullSafe(F.col("was")))
        .join(touched, "id_key")
        .select("id_key", "owners", since.alias("since"))
    )
