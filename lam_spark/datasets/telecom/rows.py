"""The true rows of every feed, a chunk of customers at a time, before any system writes them down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.behaviour import draw_events
from lam_spark.datasets.telecom.consent import Consent, draw_consent
from lam_spark.datasets.telecom.customers import Array, Queries, Traits, draw_queries, draw_traits
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, STATEMENTS, Feed, read_back, write_times
from lam_spark.datasets.telecom.identities import (
    Identities,
    Links,
    draw_identities,
    spell,
    unlinked,
    use_shared,
)
from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    CONTRACT_TYPES,
    DAY,
    GENDERS,
    IDS,
    PLANS,
    RANDOM_CHUNK,
    REGIONS,
    World,
    largest_customer_events,
)

LINKED_KINDS = {
    "logins": ("device", "cookie"),
    "phone_numbers": ("phone",),
    "cards": ("card",),
    "addresses": ("address",),
}
_PURPOSES = ("traits", "queries", "ids", "consent", "events", "uses", "dirt")


@dataclass(frozen=True)
class Rows:
    """True rows of a feed.

    Attributes:
        owner, at: position in the chunk, and when (seconds after `START`, UTC).
        number: the id used; None for member numbers.
        found: whom the id rules give the row to, or `NOBODY`.
        values: what the feed's other columns hold.
    """

    owner: Array
    at: Array
    number: Array | None
    found: Array
    values: dict[str, Array] = field(default_factory=dict)

    def part(self, chosen: slice) -> Rows:
        """Some of the rows."""
        number = None if self.number is None else self.number[chosen]
        values = {name: held[chosen] for name, held in self.values.items()}
        return Rows(self.owner[chosen], self.at[chosen], number, self.found[chosen], values)


@dataclass(frozen=True)
class Chunk:
    """The customers of a chunk, before any event; `first` is the number of the first."""

    world: World
    chunk: int
    traits: Traits
    queries: Queries
    ids: Identities
    consent: Consent

    @property
    def first(self) -> int:
        """The number of the first customer."""
        return self.chunk * RANDOM_CHUNK

    def random(self, purpose: str) -> np.random.Generator:
        """The chunk's stream of random numbers for a purpose."""
        return chunk_random(self.world, self.chunk, purpose)


def chunk_random(world: World, chunk: int, purpose: str) -> np.random.Generator:
    """A stream of its own for each chunk and purpose."""
    return np.random.default_rng([world.seed, chunk, _PURPOSES.index(purpose)])


def draw_chunk(world: World, chunk: int) -> Chunk:
    """Draw the customers of a chunk, their queries, ids and statements."""
    first = chunk * RANDOM_CHUNK
    count = min(RANDOM_CHUNK, world.customers - first)
    traits = draw_traits(chunk_random(world, chunk, "traits"), first, count)
    return Chunk(
        world=world,
        chunk=chunk,
        traits=traits,
        queries=draw_queries(chunk_random(world, chunk, "queries"), traits),
        ids=draw_identities(chunk_random(world, chunk, "ids"), traits),
        consent=draw_consent(chunk_random(world, chunk, "consent"), count),
    )


def draw_rows(chunk: Chunk) -> Iterator[tuple[Feed, Rows]]:
    """Draw the rows of every feed, each feed once."""
    yield CHANNELS["crm"], _master_rows(chunk.traits)
    yield STATEMENTS, _statement_rows(chunk.consent)
    largest = largest_customer_events(chunk.world.customers)
    events = draw_events(chunk.random("events"), chunk.traits, chunk.queries, largest, chunk.ids.app_is_own)
    uses, links = chunk.random("uses"), dict(chunk.ids.links)
    for name in list(events):
        yield CHANNELS[name], _event_rows(chunk, CHANNELS[name], events.pop(name), uses, links)
    for name, kinds in LINKED_KINDS.items():
        yield LINKS[name], _link_rows({kind: links[kind] for kind in kinds})


def _event_rows(
    chunk: Chunk, feed: Feed, frame: pd.DataFrame, uses: np.random.Generator, links: dict[str, Links]
) -> Rows:
    """Give the events of a channel the ids they were done with; uses of shared devices add to `links`."""
    owner, at = frame["owner"].to_numpy(), frame["at"].to_numpy()
    values = {name: frame[name].to_numpy() for name in ("word", "item", "number")}
    if feed.kind == "customer":
        return Rows(owner, at, None, owner, values)
    if feed.kind == "device":
        planted = frame["word"].isin(["plan", "compare_plans"]).to_numpy()
        number, links["device"] = use_shared(uses, chunk.ids, owner, at, planted)
    else:
        number = chunk.ids.held[feed.kind].at(owner, at)
    if feed.kind == "cookie":
        unseen = (frame["word"] == "devices").to_numpy() & (uses.random(len(owner)) < IDS.unseen)
        number = np.where(unseen, unlinked(chunk.first, owner), number)
    return Rows(owner, at, number, links[feed.kind].find(number, read_back(feed, at)), values)


def _link_rows(links: dict[str, Links]) -> Rows:
    owner, at = (np.concatenate([getattr(held, name) for held in links.values()]) for name in ("owner", "at"))
    spelled = [spell(kind, held.number) for kind, held in links.items()]
    kinds = [np.full(len(held.number), kind, dtype=object) for kind, held in links.items()]
    return Rows(owner, at, None, owner, {"token": np.concatenate(spelled), "kind": np.concatenate(kinds)})


def _statement_rows(consent: Consent) -> Rows:
    said = consent.statements
    owner, at = said["owner"].to_numpy(), said["at"].to_numpy()
    values = {
        "purpose": said["purpose"].to_numpy(),
        "state": said["state"].to_numpy(),
        "recorded_at": write_times("iso", at),
        "source": np.full(len(owner), "web form", dtype=object),
    }
    return Rows(owner, at, None, owner, values)


def _master_rows(traits: Traits) -> Rows:
    lists = {
        "contract_type": CONTRACT_TYPES,
        "plan": PLANS,
        "age_band": AGE_BANDS,
        "gender": GENDERS,
        "region": REGIONS,
    }
    everyone = np.arange(len(traits.number))
    values = {name: np.array(words, dtype=object)[getattr(traits, name)] for name, words in lists.items()}
    return Rows(everyone, DAY // 2 - traits.contract_days * DAY, None, everyone, values)
