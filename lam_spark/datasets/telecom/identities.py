"""Ids of the customers, the links from ids to customers, and the resolution of ids by these links.

Ids are numbers here, eight per customer, so that chunks do not depend on each other; `format_ids` writes them as the
systems do. Ids pass between neighbours of a chunk only; the kiosk's device is used by customers of all chunks.
Shapes: `n` customers of a chunk. Times are seconds after `START`, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, Traits, draw_local_times
from lam_spark.datasets.telecom.parameters import DAY, IDENTITY, SPAN

# Matches every raw id, to check files that must not contain any.
RAW_ID_PATTERN = r"MEMBER-\d{8}|dev-[0-9a-f]{16}|ck\.[0-9a-f]{16}|\+3519\d{8}|LC\d{16}|@mail\.example"
ID_KINDS = ("device", "cookie", "phone", "card", "address")
LOOKBACK_DAYS, MAX_CUSTOMERS_PER_ID = 30, 5
MAX_CUSTOMERS = 10_000_000  # phone numbers have eight digits, and every customer owns eight numbers
KIOSK = 8 * MAX_CUSTOMERS  # id number of the kiosk's device
UNASSIGNED = -1
_NEVER_LINKED = 7  # the last of a customer's eight id numbers is never linked
_BEGINNING = -(1 << 31)  # seconds; long before the first contract
_KEY_STRIDE = 1 << 41  # seconds; factor of composite keys (owner, time)


@dataclass(frozen=True)
class IdUsage:
    """`owner` uses the id `number` from `since` on; ordered by (owner, since)."""

    owner: Array
    since: Array
    number: Array

    def at(self, owner: Array, at: Array) -> Array:
        """Return the id that each owner uses at a time."""
        keys = self.owner * _KEY_STRIDE + (self.since - _BEGINNING)
        position = np.searchsorted(keys, owner * _KEY_STRIDE + (at - _BEGINNING), "right") - 1
        return np.asarray(self.number[position])


@dataclass(frozen=True)
class Links:
    """Distinct statements that the id `number` belongs to `owner` from `at` on, ordered by time."""

    number: Array
    owner: Array
    at: Array

    def resolve(self, number: Array, at: Array) -> Array:
        """Resolve ids at given times to owners, by the rules of `identity`.

        The latest link at or before the event decides. Before the first link, that link decides if it is at most
        `LOOKBACK_DAYS` later.

        Returns:
            Owners; `UNASSIGNED` without a deciding link, if several customers are linked at the deciding
            instant, or if more than `MAX_CUSTOMERS_PER_ID` customers are linked in total.
        """
        if not len(self.number) or not len(number):
            return np.full(len(number), UNASSIGNED)
        links = pd.DataFrame({"number": self.number, "owner": self.owner, "at": self.at})
        instants = links.groupby(["number", "at"], as_index=False)["owner"].agg(["min", "max"])
        owner = np.where(instants["min"] == instants["max"], instants["min"], UNASSIGNED)
        linked, code = np.unique(instants["number"], return_inverse=True)
        customers_per_id = links.groupby("number")["owner"].nunique().to_numpy()
        # The kiosk has users in all chunks, so a chunk cannot count them.
        shared = (customers_per_id > MAX_CUSTOMERS_PER_ID) | (linked == KIOSK)
        owner = np.where(shared[code], UNASSIGNED, owner)
        since = instants["at"].to_numpy()
        position = np.minimum(np.searchsorted(linked, number), len(linked) - 1)
        next_link = np.searchsorted(
            code * _KEY_STRIDE + (since - _BEGINNING), position * _KEY_STRIDE + (at - _BEGINNING), "right"
        )
        last, first = next_link - 1, np.minimum(next_link, len(code) - 1)
        has_last = (last >= 0) & (code[last] == position)
        within_lookback = (code[first] == position) & (since[first] - at <= LOOKBACK_DAYS * DAY)
        resolved = np.where(has_last, owner[last], np.where(within_lookback, owner[first], UNASSIGNED))
        return np.where(linked[position] == number, resolved, UNASSIGNED)


@dataclass(frozen=True)
class Identities:
    """Ids of a chunk.

    Attributes:
        usage: id kind -> which id each customer uses.
        links: id kind -> links from ids to customers.
        has_own_device: (n,) whether the customer's device is unshared.
        uses_kiosk: (n,) whether the customer sometimes uses the kiosk.
    """

    usage: dict[str, IdUsage]
    links: dict[str, Links]
    has_own_device: Array
    uses_kiosk: Array


def draw_identities(rng: np.random.Generator, traits: Traits) -> Identities:
    """Draw the ids of the customers and their links; `draw_device_use` adds links of shared devices later."""
    number, count = traits.number, len(traits.number)
    pair = np.arange(count) // 2
    complete = (2 * pair + 1 < count) & (number[2 * pair] > 0)  # customer 0 shares nothing
    pair_type = rng.random(count)[2 * pair]
    family = complete & (rng.random(count)[2 * pair] < IDENTITY.family_share)
    transferred = complete & (pair_type < IDENTITY.transferred_number_share)
    conflicting_below = IDENTITY.transferred_number_share + IDENTITY.conflicting_number_share
    conflicting = complete & ~transferred & (pair_type < conflicting_below)
    usage, links = {}, {}
    keeper = np.where(family, 2 * pair, np.arange(count))
    usage["device"], links["device"] = _draw_devices(rng, number, keeper)
    usage["cookie"], links["cookie"] = _draw_cookies(rng, number)
    signed = 12 * 3600 - traits.contract_days * DAY
    is_first = np.arange(count) % 2 == 0
    usage["phone"], links["phone"] = _draw_phones(rng, number, signed, transferred, conflicting, is_first)
    late = rng.random(count) < IDENTITY.late_card_share
    registered = draw_local_times(rng, rng.integers(0, IDENTITY.registered_by_day, count), 10, 20)
    issued = np.where(late, registered, signed)
    usage["card"], links["card"] = _draw_replaceable(rng, number, IDENTITY.new_card_share, issued, 0)
    usage["address"], links["address"] = _draw_replaceable(
        rng, number, IDENTITY.new_address_share, signed, IDENTITY.linked_within_days
    )
    uses_kiosk = ((rng.random(count) < IDENTITY.kiosk_share) & (number > 0)) | (
        (number >= 1) & (number <= MAX_CUSTOMERS_PER_ID + 1)
    )
    users = np.flatnonzero(uses_kiosk)
    first_use = draw_local_times(rng, rng.integers(0, 30, len(users)), 10, 20)
    links["device"] = _with_links(links["device"], np.full(len(users), KIOSK), users, first_use)
    return Identities(usage, links, ~family, uses_kiosk)


def draw_device_use(
    rng: np.random.Generator, ids: Identities, owner: Array, at: Array, keeps_device: Array
) -> tuple[Array, Links]:
    """Draw the device of each app event, and the device links with the logins on shared devices.

    Args:
        rng: the chunk's generator for device use.
        ids: ids of the chunk.
        owner, at: all app events.
        keeps_device: events that may show intent; never on the kiosk, where they would stay unassigned.
    """
    number = ids.usage["device"].at(owner, at)
    on_kiosk = ids.uses_kiosk[owner] & ~keeps_device & (rng.random(len(owner)) < IDENTITY.kiosk_event_share)
    number = np.where(on_kiosk, KIOSK, number)
    family_login = rng.random(len(owner)) < IDENTITY.family_login_probability
    logs_in = on_kiosk | (~ids.has_own_device[owner] & family_login)
    login_at = at[logs_in] - rng.integers(1, 30, int(logs_in.sum()))
    return number, _with_links(ids.links["device"], number[logs_in], owner[logs_in], login_at)


def never_linked_ids(first: int, owner: Array) -> Array:
    """Return an id of each owner that is never linked; `first` is the chunk's first customer number."""
    return (first + owner) * 8 + _NEVER_LINKED


def member_numbers(number: Array) -> Array:
    """Format customer numbers as member numbers, the ids of kind `customer`."""
    return np.array([f"MEMBER-{n:08d}" for n in number.tolist()], dtype=object)


def format_ids(id_kind: str, number: Array) -> Array:
    """Format ids as their system writes them: unique and without a visible order."""
    if id_kind in ("device", "cookie"):
        prefix = "dev-" if id_kind == "device" else "ck."
        mixed = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # an odd factor is a bijection
        return np.array([f"{prefix}{n:016x}" for n in mixed.tolist()], dtype=object)
    # Factors coprime with ten are bijections on a fixed number of digits.
    if id_kind == "card":
        return np.array([f"LC{n:016d}" for n in (number * 61_803_398_877 % 10**16).tolist()], dtype=object)
    digits = (number * 61_803_399 % 10**8).tolist()
    template = "+3519{:08d}" if id_kind == "phone" else "cliente.{:08d}@mail.example"
    return np.array([template.format(n) for n in digits], dtype=object)


def _with_links(links: Links, number: Array, owner: Array, at: Array) -> Links:
    """Add links and remove duplicates."""
    both = pd.DataFrame(
        {
            "at": np.concatenate([links.at, at]),
            "number": np.concatenate([links.number, number]),
            "owner": np.concatenate([links.owner, owner]),
        }
    )
    distinct = both.drop_duplicates().sort_values(["at", "number", "owner"])
    return Links(distinct["number"].to_numpy(), distinct["owner"].to_numpy(), distinct["at"].to_numpy())


_NO_LINKS = Links(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _ordered(owner: Array, since: Array, number: Array) -> IdUsage:
    order = np.lexsort((since, owner))
    return IdUsage(owner[order], since[order], number[order])


def _draw_devices(rng: np.random.Generator, number: Array, keeper: Array) -> tuple[IdUsage, Links]:
    """Draw one device per customer (in a family the keeper's), new devices in the year, and logins."""
    everyone = np.arange(len(number))
    alone = (keeper == everyone) & np.isin(everyone, keeper[keeper != everyone], invert=True)
    new = np.flatnonzero((rng.random(len(number)) < IDENTITY.new_device_share) & alone)
    bought = draw_local_times(rng, rng.integers(60, 300, len(new)), 9, 20)
    usage = _ordered(
        np.concatenate([everyone, new]),
        np.concatenate([np.full(len(number), _BEGINNING), bought]),
        np.concatenate([number[keeper] * 8, number[new] * 8 + 1]),
    )
    user = rng.integers(0, len(number), len(number))
    login_at = draw_local_times(rng, rng.integers(0, SPAN // DAY, len(number)), 8, 22)
    linked = bought + rng.integers(0, IDENTITY.linked_within_days * DAY, len(new))
    first = draw_local_times(rng, rng.integers(0, IDENTITY.registered_by_day, len(number)), 8, 22)
    links = _with_links(_NO_LINKS, number[keeper] * 8, everyone, first)
    links = _with_links(links, number[new] * 8 + 1, new, linked)
    return usage, _with_links(links, usage.at(user, login_at), user, login_at)


def _draw_cookies(rng: np.random.Generator, number: Array) -> tuple[IdUsage, Links]:
    """Draw cookies, each used until it is cleared and linked by a login during its use."""
    everyone = np.arange(len(number))
    cleared = np.repeat(everyone, np.minimum(rng.poisson(IDENTITY.cleared_cookies, len(number)), 5))
    cleared_at = draw_local_times(rng, rng.integers(60, 360, len(cleared)), 8, 23)
    owner = np.concatenate([everyone, cleared])
    since = np.concatenate([np.full(len(number), _BEGINNING), cleared_at])
    order = np.lexsort((since, owner))
    owner, since = owner[order], since[order]
    serial = np.arange(len(owner)) - np.searchsorted(owner, owner)
    usage = IdUsage(owner, since, number[owner] * 8 + serial)
    until = np.where(np.append(owner[1:] == owner[:-1], False), np.append(since[1:], 0), SPAN)
    login_within = np.minimum(IDENTITY.linked_within_days * DAY, until - since)
    login = since + (rng.random(len(owner)) * login_within).astype(np.int64)
    first = draw_local_times(rng, rng.integers(0, IDENTITY.registered_by_day, len(owner)), 8, 23)
    login = np.where(serial == 0, first, login)
    return usage, _with_links(_NO_LINKS, usage.number, owner, login)


def _draw_phones(
    rng: np.random.Generator,
    number: Array,
    signed: Array,
    transferred: Array,
    conflicting: Array,
    is_first: Array,
) -> tuple[IdUsage, Links]:
    """Draw phone numbers, valid from the contract on; some pass from the first of a pair to the second."""
    giver, taker = np.flatnonzero(transferred & is_first), np.flatnonzero(transferred & ~is_first)
    released = draw_local_times(rng, rng.integers(40, 300, len(giver)), 9, 18)
    acquired = released + rng.integers(5 * DAY, 40 * DAY, len(giver))
    everyone = np.arange(len(number))
    usage = _ordered(
        np.concatenate([everyone, giver, taker]),
        np.concatenate([np.full(len(number), _BEGINNING), released, acquired]),
        np.concatenate([number * 8, number[giver] * 8 + 1, number[giver] * 8]),
    )
    links = _with_links(_NO_LINKS, number * 8, everyone, signed)
    links = _with_links(links, number[giver] * 8 + 1, giver, released)
    links = _with_links(links, number[giver] * 8, taker, acquired)
    # Two owners at one instant; a later link corrects it in favour of the first.
    owner, second_owner = np.flatnonzero(conflicting & is_first), np.flatnonzero(conflicting & ~is_first)
    conflict_at = draw_local_times(rng, rng.integers(40, 300, len(owner)), 9, 18)
    for customer, at in (
        (owner, conflict_at),
        (second_owner, conflict_at),
        (owner, conflict_at + rng.integers(10 * DAY, 30 * DAY, len(owner))),
    ):
        links = _with_links(links, number[owner] * 8, customer, at)
    return usage, links


def _draw_replaceable(
    rng: np.random.Generator, number: Array, share: float, linked: Array, late_days: int
) -> tuple[IdUsage, Links]:
    """Draw one id per customer, and for some a new one that is linked at most `late_days` after first use."""
    everyone = np.arange(len(number))
    new = np.flatnonzero(rng.random(len(number)) < share)
    since = draw_local_times(rng, rng.integers(60, 300, len(new)), 9, 20)
    usage = _ordered(
        np.concatenate([everyone, new]),
        np.concatenate([np.full(len(number), _BEGINNING), since]),
        np.concatenate([number * 8, number[new] * 8 + 1]),
    )
    links = _with_links(_NO_LINKS, number * 8, everyone, linked)
    delay = rng.integers(0, late_days * DAY + 1, len(new))
    return usage, _with_links(links, number[new] * 8 + 1, new, since + delay)
