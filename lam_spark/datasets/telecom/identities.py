"""The ids that systems know customers by, the statements that link them to customers, and who is found by them.

An id is a number here: eight for each customer, so that no chunk needs to know of another; `spell` writes it as
the system does. Ids pass between neighbours of a chunk only; a kiosk's device is used from everywhere.
`n` customers of a chunk; times are seconds after `START`, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, Traits, local_time
from lam_spark.datasets.telecom.parameters import DAY, IDS, SPAN

# What finds any raw id in a file that should hold none.
RAW_ID_PATTERN = r"MEMBER-\d{8}|dev-[0-9a-f]{16}|ck\.[0-9a-f]{16}|\+3519\d{8}|LC\d{16}|@mail\.example"
KINDS = ("device", "cookie", "phone", "card", "address")
LOOKBACK_DAYS, MAX_CUSTOMERS = 30, 5
MOST_CUSTOMERS = 10_000_000  # phone numbers have eight digits, and a customer has eight of them
KIOSK = 8 * MOST_CUSTOMERS  # the device's number
NOBODY = -1
_UNLINKED = 7  # the last of a customer's eight numbers is never linked
_ALWAYS = -(1 << 31)  # seconds: long before the first contract
_REACH = 1 << 41  # seconds: composite keys of an owner and a time


@dataclass(frozen=True)
class Held:
    """From `since` on, `owner` uses the id `number`; ordered by (owner, since)."""

    owner: Array
    since: Array
    number: Array

    def at(self, owner: Array, at: Array) -> Array:
        """The id that each owner uses at a time."""
        keys = self.owner * _REACH + (self.since - _ALWAYS)
        return np.asarray(self.number[np.searchsorted(keys, owner * _REACH + (at - _ALWAYS), "right") - 1])


@dataclass(frozen=True)
class Links:
    """Statements that the id `number` belongs to `owner` from `at` on, each once, in order of time."""

    number: Array
    owner: Array
    at: Array

    def find(self, number: Array, at: Array) -> Array:
        """Who an event with this id at this time belongs to, by the rules of `identity`; or `NOBODY`.

        The latest link at or before the event counts; before the first one, that one if it is at most
        `LOOKBACK_DAYS` later. Two customers linked at one instant, or more than `MAX_CUSTOMERS` in all: nobody.
        """
        if not len(self.number) or not len(number):
            return np.full(len(number), NOBODY)
        links = pd.DataFrame({"number": self.number, "owner": self.owner, "at": self.at})
        at_once = links.groupby(["number", "at"], as_index=False)["owner"].agg(["min", "max"])
        owner = np.where(at_once["min"] == at_once["max"], at_once["min"], NOBODY)
        known, code = np.unique(at_once["number"], return_inverse=True)
        # The kiosk's users are in all chunks.
        common = (links.groupby("number")["owner"].nunique().to_numpy() > MAX_CUSTOMERS) | (known == KIOSK)
        owner = np.where(common[code], NOBODY, owner)
        since = at_once["at"].to_numpy()
        position = np.minimum(np.searchsorted(known, number), len(known) - 1)
        sought = np.searchsorted(
            code * _REACH + (since - _ALWAYS), position * _REACH + (at - _ALWAYS), "right"
        )
        last, first = sought - 1, np.minimum(sought, len(code) - 1)
        has_last = (last >= 0) & (code[last] == position)
        near = (code[first] == position) & (since[first] - at <= LOOKBACK_DAYS * DAY)
        found = np.where(has_last, owner[last], np.where(near, owner[first], NOBODY))
        return np.where(known[position] == number, found, NOBODY)


@dataclass(frozen=True)
class Identities:
    """A chunk's ids.

    Attributes:
        held, links: by kind.
        app_is_own: (n,) has a device that nobody else uses.
        at_kiosk: (n,) uses the kiosk now and then.
    """

    held: dict[str, Held]
    links: dict[str, Links]
    app_is_own: Array
    at_kiosk: Array


def draw_identities(rng: np.random.Generator, traits: Traits) -> Identities:
    """Draw which ids the customers use and when these are linked; uses of shared devices link more later."""
    number, count = traits.number, len(traits.number)
    pair = np.arange(count) // 2
    complete = (2 * pair + 1 < count) & (number[2 * pair] > 0)  # customer 0 shares nothing
    role = rng.random(count)[2 * pair]
    family = complete & (rng.random(count)[2 * pair] < IDS.families)
    handed_on = complete & (role < IDS.handed_on)
    doubly = complete & ~handed_on & (role < IDS.handed_on + IDS.doubly_owned)
    held, links = {}, {}
    held["device"], links["device"] = _devices(rng, number, np.where(family, 2 * pair, np.arange(count)))
    held["cookie"], links["cookie"] = _cookies(rng, number)
    signed = 12 * 3600 - traits.contract_days * DAY
    first = np.arange(count) % 2 == 0
    held["phone"], links["phone"] = _phones(rng, number, signed, handed_on, doubly, first)
    late = rng.random(count) < IDS.late_cards
    registered = local_time(rng, rng.integers(0, IDS.registered_by_day, count), 10, 20)
    issued = np.where(late, registered, signed)
    held["card"], links["card"] = _replaced(rng, number, IDS.new_card, issued, 0)
    held["address"], links["address"] = _replaced(
        rng, number, IDS.new_address, signed, IDS.linked_within_days
    )
    at_kiosk = ((rng.random(count) < IDS.kiosk) & (number > 0)) | (
        (number >= 1) & (number <= MAX_CUSTOMERS + 1)
    )
    using = np.flatnonzero(at_kiosk)
    shown = local_time(rng, rng.integers(0, 30, len(using)), 10, 20)
    links["device"] = _joined(links["device"], np.full(len(using), KIOSK), using, shown)
    return Identities(held, links, ~family, at_kiosk)


def use_shared(
    rng: np.random.Generator, ids: Identities, owner: Array, at: Array, planted: Array
) -> tuple[Array, Links]:
    """The device of each app event, and the links of the kind with the logins that these uses bring.

    Args:
        rng: the chunk's generator for this.
        ids: drawn before.
        owner, at: of all app events.
        planted: events whose intent is planted: never at the kiosk, where they would be lost.
    """
    number = ids.held["device"].at(owner, at)
    kiosk = ids.at_kiosk[owner] & ~planted & (rng.random(len(owner)) < IDS.kiosk_use)
    number = np.where(kiosk, KIOSK, number)
    logs_in = kiosk | (~ids.app_is_own[owner] & (rng.random(len(owner)) < IDS.family_login))
    before = at[logs_in] - rng.integers(1, 30, int(logs_in.sum()))
    return number, _joined(ids.links["device"], number[logs_in], owner[logs_in], before)


def unlinked(first: int, owner: Array) -> Array:
    """An id of each owner that no statement ever links; `first` is the chunk's first customer."""
    return (first + owner) * 8 + _UNLINKED


def member(number: Array) -> Array:
    """The member numbers: the ids of kind `customer`."""
    return np.array([f"MEMBER-{n:08d}" for n in number.tolist()], dtype=object)


def spell(kind: str, number: Array) -> Array:
    """Ids as their system writes them: no two alike, in no visible order."""
    if kind in ("device", "cookie"):
        start = "dev-" if kind == "device" else "ck."
        mixed = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd: every number gets its own
        return np.array([f"{start}{n:016x}" for n in mixed.tolist()], dtype=object)
    # Coprime with ten: every number gets its own digits.
    if kind == "card":
        return np.array([f"LC{n:016d}" for n in (number * 61_803_398_877 % 10**16).tolist()], dtype=object)
    digits = (number * 61_803_399 % 10**8).tolist()
    form = "+3519{:08d}" if kind == "phone" else "cliente.{:08d}@mail.example"
    return np.array([form.format(n) for n in digits], dtype=object)


def _joined(links: Links, number: Array, owner: Array, at: Array) -> Links:
    """More statements; one that is said twice is one."""
    both = pd.DataFrame(
        {
            "at": np.concatenate([links.at, at]),
            "number": np.concatenate([links.number, number]),
            "owner": np.concatenate([links.owner, owner]),
        }
    )
    once = both.drop_duplicates().sort_values(["at", "number", "owner"])
    return Links(once["number"].to_numpy(), once["owner"].to_numpy(), once["at"].to_numpy())


_NO_LINKS = Links(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _ordered(owner: Array, since: Array, number: Array) -> Held:
    order = np.lexsort((since, owner))
    return Held(owner[order], since[order], number[order])


def _devices(rng: np.random.Generator, number: Array, keeper: Array) -> tuple[Held, Links]:
    """A device each (the keeper's, in a family), perhaps a new one in the year, and a login now and then."""
    everyone = np.arange(len(number))
    alone = (keeper == everyone) & np.isin(everyone, keeper[keeper != everyone], invert=True)
    new = np.flatnonzero((rng.random(len(number)) < IDS.new_device) & alone)
    bought = local_time(rng, rng.integers(60, 300, len(new)), 9, 20)
    held = _ordered(
        np.concatenate([everyone, new]),
        np.concatenate([np.full(len(number), _ALWAYS), bought]),
        np.concatenate([number[keeper] * 8, number[new] * 8 + 1]),
    )
    again = rng.integers(0, len(number), len(number))
    logged = local_time(rng, rng.integers(0, SPAN // DAY, len(number)), 8, 22)
    linked = bought + rng.integers(0, IDS.linked_within_days * DAY, len(new))
    first = local_time(rng, rng.integers(0, IDS.registered_by_day, len(number)), 8, 22)
    links = _joined(_NO_LINKS, number[keeper] * 8, everyone, first)
    links = _joined(links, number[new] * 8 + 1, new, linked)
    return held, _joined(links, held.at(again, logged), again, logged)


def _cookies(rng: np.random.Generator, number: Array) -> tuple[Held, Links]:
    """A cookie until it is cleared; each is linked by a login while it is in use."""
    everyone = np.arange(len(number))
    cleared = np.repeat(everyone, np.minimum(rng.poisson(IDS.cleared, len(number)), 5))
    when = local_time(rng, rng.integers(60, 360, len(cleared)), 8, 23)
    owner = np.concatenate([everyone, cleared])
    since = np.concatenate([np.full(len(number), _ALWAYS), when])
    order = np.lexsort((since, owner))
    owner, since = owner[order], since[order]
    serial = np.arange(len(owner)) - np.searchsorted(owner, owner)
    held = Held(owner, since, number[owner] * 8 + serial)
    until = np.where(np.append(owner[1:] == owner[:-1], False), np.append(since[1:], 0), SPAN)
    login = since + (rng.random(len(owner)) * np.minimum(IDS.linked_within_days * DAY, until - since)).astype(
        np.int64
    )
    first = local_time(rng, rng.integers(0, IDS.registered_by_day, len(owner)), 8, 23)
    login = np.where(serial == 0, first, login)
    return held, _joined(_NO_LINKS, held.number, owner, login)


def _phones(
    rng: np.random.Generator, number: Array, signed: Array, handed_on: Array, doubly: Array, first: Array
) -> tuple[Held, Links]:
    """A number from the contract on; some pass from the first of a pair to the second."""
    giver, taker = np.flatnonzero(handed_on & first), np.flatnonzero(handed_on & ~first)
    given = local_time(rng, rng.integers(40, 300, len(giver)), 9, 18)
    taken = given + rng.integers(5 * DAY, 40 * DAY, len(giver))
    everyone = np.arange(len(number))
    held = _ordered(
        np.concatenate([everyone, giver, taker]),
        np.concatenate([np.full(len(number), _ALWAYS), given, taken]),
        np.concatenate([number * 8, number[giver] * 8 + 1, number[giver] * 8]),
    )
    links = _joined(_NO_LINKS, number * 8, everyone, signed)
    links = _joined(links, number[giver] * 8 + 1, giver, given)
    links = _joined(links, number[giver] * 8, taker, taken)
    # Two owners at one instant; some weeks later the first is said to be the owner again.
    both, other = np.flatnonzero(doubly & first), np.flatnonzero(doubly & ~first)
    said = local_time(rng, rng.integers(40, 300, len(both)), 9, 18)
    for owner, at in (
        (both, said),
        (other, said),
        (both, said + rng.integers(10 * DAY, 30 * DAY, len(both))),
    ):
        links = _joined(links, number[both] * 8, owner, at)
    return held, links


def _replaced(
    rng: np.random.Generator, number: Array, share: float, linked: Array, late_days: int
) -> tuple[Held, Links]:
    """One id each, and a new one in the year for some, linked up to some days after its first use."""
    everyone = np.arange(len(number))
    new = np.flatnonzero(rng.random(len(number)) < share)
    since = local_time(rng, rng.integers(60, 300, len(new)), 9, 20)
    held = _ordered(
        np.concatenate([everyone, new]),
        np.concatenate([np.full(len(number), _ALWAYS), since]),
        np.concatenate([number * 8, number[new] * 8 + 1]),
    )
    links = _joined(_NO_LINKS, number * 8, everyone, linked)
    late = rng.integers(0, late_days * DAY + 1, len(new))
    return held, _joined(links, number[new] * 8 + 1, new, since + late)
