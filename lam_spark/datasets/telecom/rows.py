"""True rows of every feed for one chunk of customers, before formatting and defects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.behaviour import draw_events
from lam_spark.datasets.telecom.consent import Consent, draw_consent
from lam_spark.datasets.telecom.customers import Array, Queries, Traits, draw_queries, draw_traits
from lam_spark.datasets.telecom.feeds import (
    CHANNELS,
    LINKS,
    STATEMENTS,
    Feed,
    format_times,
    ingested_times,
)
from lam_spark.datasets.telecom.identities import (
    Identities,
    Links,
    draw_device_use,
    draw_identities,
    format_ids,
    never_linked_ids,
)
from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    CHUNK_SIZE,
    CONTRACT_TYPES,
    DAY,
    GENDERS,
    IDENTITY,
    PLANS,
    REGIONS,
    SyntheticDataSet,
    largest_customer_events,
)

LINKED_KINDS = {
    "logins": ("device", "cookie"),
    "phone_numbers": ("phone",),
    "cards": ("card",),
    "addresses": ("address",),
}
# The position in this tuple is part of the seed: never reorder.
_STREAMS = ("traits", "queries", "ids", "consent", "events", "device use", "defects")


@dataclass(frozen=True)
class Rows:
    """True rows of a feed.

    Attributes:
        owner: position in the chunk of the customer who caused the row.
        at: time (seconds after `START`, UTC).
        id_number: the id used; None for member numbers.
        resolved: customer that identity resolution assigns, or `UNASSIGNED`.
        values: role -> values of the feed's other columns.
    """

    owner: Array
    at: Array
    id_number: Array | None
    resolved: Array
    values: dict[str, Array] = field(default_factory=dict)

    def part(self, chosen: slice) -> Rows:
        """Return a slice of the rows."""
        id_number = None if self.id_number is None else self.id_number[chosen]
        values = {name: array[chosen] for name, array in self.values.items()}
        return Rows(self.owner[chosen], self.at[chosen], id_number, self.resolved[chosen], values)


@dataclass(frozen=True)
class Chunk:
    """Customers of a chunk with their queries, ids and consent, before any event."""

    data_set: SyntheticDataSet
    chunk: int
    traits: Traits
    queries: Queries
    ids: Identities
    consent: Consent

    @property
    def first(self) -> int:
        """Number of the first customer."""
        return self.chunk * CHUNK_SIZE

    def random(self, stream: str) -> np.random.Generator:
        """Return the chunk's generator for one stream of random numbers."""
        return _chunk_random(self.data_set, self.chunk, stream)


def draw_chunk(data_set: SyntheticDataSet, chunk: int) -> Chunk:
    """Draw the customers of a chunk, their queries, ids and consent statements."""
    first = chunk * CHUNK_SIZE
    count = min(CHUNK_SIZE, data_set.customers - first)
    traits = draw_traits(_chunk_random(data_set, chunk, "traits"), first, count)
    return Chunk(
        data_set=data_set,
        chunk=chunk,
        traits=traits,
        queries=draw_queries(_chunk_random(data_set, chunk, "queries"), traits),
        ids=draw_identities(_chunk_random(data_set, chunk, "ids"), traits),
        consent=draw_consent(_chunk_random(data_set, chunk, "consent"), count),
    )


def draw_rows(chunk: Chunk) -> Iterator[tuple[Feed, Rows]]:
    """Draw the rows of every feed, one feed at a time."""
    yield CHANNELS["crm"], _crm_rows(chunk.traits)
    yield STATEMENTS, _statement_rows(chunk.consent)
    largest = largest_customer_events(chunk.data_set.customers)
    events = draw_events(
        chunk.random("events"), chunk.traits, chunk.queries, largest, chunk.ids.has_own_device
    )
    rng, links = chunk.random("device use"), dict(chunk.ids.links)
    for name in list(events):
        yield CHANNELS[name], _event_rows(chunk, CHANNELS[name], events.pop(name), rng, links)
    for name, kinds in LINKED_KINDS.items():
        yield LINKS[name], _link_rows({kind: links[kind] for kind in kinds})


def _chunk_random(data_set: SyntheticDataSet, chunk: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([data_set.seed, chunk, _STREAMS.index(stream)])


def _event_rows(
    chunk: Chunk, feed: Feed, frame: pd.DataFrame, rng: np.random.Generator, links: dict[str, Links]
) -> Rows:
    """Add ids to the events of a channel; logins on shared devices are added to `links`."""
    owner, at = frame["owner"].to_numpy(), frame["at"].to_numpy()
    values = {name: frame[name].to_numpy() for name in ("action", "item", "number")}
    if feed.id_kind == "customer":
        return Rows(owner, at, None, owner, values)
    if feed.id_kind == "device":
        shows_intent = frame["action"].isin(["plan", "compare_plans"]).to_numpy()
        id_number, links["device"] = draw_device_use(rng, chunk.ids, owner, at, shows_intent)
    else:
        id_number = chunk.ids.usage[feed.id_kind].at(owner, at)
    if feed.id_kind == "cookie":
        views_devices = (frame["action"] == "devices").to_numpy()
        anonymous = views_devices & (rng.random(len(owner)) < IDENTITY.anonymous_view_share)
        id_number = np.where(anonymous, never_linked_ids(chunk.first, owner), id_number)
    resolved = links[feed.id_kind].resolve(id_number, ingested_times(feed, at))
    return Rows(owner, at, id_number, resolved, values)


def _link_rows(links: dict[str, Links]) -> Rows:
    owner = np.concatenate([of_kind.owner for of_kind in links.values()])
    at = np.concatenate([of_kind.at for of_kind in links.values()])
    tokens = [format_ids(kind, of_kind.number) for kind, of_kind in links.items()]
    kinds = [np.full(len(of_kind.number), kind, dtype=object) for kind, of_kind in links.items()]
    return Rows(owner, at, None, owner, {"token": np.concatenate(tokens), "kind": np.concatenate(kinds)})


def _statement_rows(consent: Consent) -> Rows:
    statements = consent.statements
    owner, at = statements["owner"].to_numpy(), statements["at"].to_numpy()
    values = {
        "purpose": statements["purpose"].to_numpy(),
        "state": statements["state"].to_numpy(),
        "recorded_at": format_times("iso", at),
        "source": np.full(len(owner), "web form", dtype=object),
    }
    return Rows(owner, at, None, owner, values)


def _crm_rows(traits: Traits) -> Rows:
    categories = {
        "contract_type": CONTRACT_TYPES,
        "plan": PLANS,
        "age_band": AGE_BANDS,
        "gender": GENDERS,
        "region": REGIONS,
    }
    everyone = np.arange(len(traits.number))
    values = {
        name: np.array(names, dtype=object)[getattr(traits, name)] for name, names in categories.items()
    }
    return Rows(everyone, DAY // 2 - traits.contract_days * DAY, None, everyone, values)
