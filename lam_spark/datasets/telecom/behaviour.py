"""Every true event that follows from who the customers are and what they want.

A chunk of customers at a time, in numpy; nothing here knows of ids, files or defects. `n` customers, `w` waves
(a customer's queries). Times are seconds after `START`, UTC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, Queries, Traits, local_time
from lam_spark.datasets.telecom.parameters import (
    AUTUMN,
    BROWSE_LAST,
    BROWSE_LAST_NOT,
    DAY,
    GOES_ON,
    NEVER,
    OFFERS,
    PLAN_PRICES,
    PLANS,
    PLANTED,
    REGIONS,
    SILENT,
    SPAN,
)

CHANNELS = ("app", "web", "shop", "call_centre", "telemarketing", "mail", "point_of_sale")

_MONTH_DAYS = np.array([0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335])

# What people do on an ordinary day: word of the channel -> share.
_SCREENS = {"usage": 0.45, "bill": 0.25, "home": 0.15, "support": 0.08, "plan": 0.04, "compare_plans": 0.03}
_PAGES = {
    "home": 0.40,
    "help": 0.34,
    "devices": 0.20,
    "plan": 0.03,
    "compare_plans": 0.02,
    "cancel_info": 0.01,
}
_VISITS = {"visit": 0.65, "ask": 0.15, "buy": 0.20}
_REASONS = {"bill": 0.45, "technical": 0.35, "other": 0.17, "plan": 0.03}
_ORDERS = {"device": 0.4, "addon": 0.6}
# Mean events a customer and year, before the customer's own activity.
_APP, _WEB, _SHOP, _CALLS, _ORDERED = 22.0, 10.0, 2.5, 2.0, 1.2


def draw_events(
    rng: np.random.Generator, traits: Traits, queries: Queries, largest: int, app_is_own: Array
) -> dict[str, pd.DataFrame]:
    """Draw every true event.

    Args:
        rng: the chunk's generator for events.
        traits: n customers.
        queries: their queries.
        largest: app and web events of customer 0.
        app_is_own: (n,) whether the customer has a device alone; the others' planted acts are on the web.

    Returns:
        A frame a channel, ordered by (owner, at): `owner` (position in the chunk), `at`, `word` (the
        channel's own word for what was done), `item`, `number` (seconds or euros).
    """
    log = _Log()
    _draw_background(rng, log, traits, queries, largest)
    _draw_mail(rng, log, traits, queries)
    _draw_triples(rng, log, traits, queries, app_is_own)
    _draw_comparisons(rng, log, queries, app_is_own)
    _draw_churn(rng, log, traits, queries)
    _draw_contacts(rng, log, queries)
    return {channel: log.frame(channel, traits.churn_at) for channel in CHANNELS}


class _Log:
    """Collects events of all channels as arrays."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Array, ...]]] = {channel: [] for channel in CHANNELS}

    def add(
        self, channel: str, owner: Array, at: Array, word: Any, item: Any = None, number: Any = 0
    ) -> None:
        """Add one event for each owner; `word`, `item` and `number` are arrays or one value for all."""
        texts = [np.broadcast_to(np.asarray(value, dtype=object), owner.shape) for value in (word, item)]
        self._parts[channel].append(
            (owner, at, *texts, np.broadcast_to(np.asarray(number, dtype=np.float64), owner.shape))
        )

    def frame(self, channel: str, churn_at: Array) -> pd.DataFrame:
        """A channel's events within the year and before their customer left, by (owner, at)."""
        columns = [np.concatenate(part) for part in zip(*self._parts[channel], strict=True)]
        names = ("owner", "at", "word", "item", "number")
        owner, at = columns[0], columns[1]
        kept = np.flatnonzero((at >= 0) & (at < SPAN) & (at <= churn_at[owner]))
        order = kept[np.lexsort((at[kept], owner[kept]))]
        return pd.DataFrame({name: column[order] for name, column in zip(names, columns, strict=True)})


def _choose(rng: np.random.Generator, shares: dict[str, float], count: int) -> Array:
    """Words drawn by their shares."""
    chosen = rng.choice(len(shares), count, p=list(shares.values()))
    return np.asarray(np.array(list(shares), dtype=object)[chosen])


def _plans(rng: np.random.Generator, count: int) -> Array:
    return np.asarray(np.array(PLANS, dtype=object)[rng.integers(0, len(PLANS), count)])


def _own_acts(
    rng: np.random.Generator, counts: Array, queries: Queries, hours: tuple[int, int]
) -> tuple[Array, Array]:
    """Owners and times of background acts, with those left out that fall into a planted silence."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return _heard(queries, owner, local_time(rng, rng.integers(0, SPAN // DAY, len(owner)), *hours))


def _heard(queries: Queries, owner: Array, at: Array) -> tuple[Array, Array]:
    """The acts that do not fall into a silence of their owner."""
    # A silence lies in the 20 days that follow this start of its wave, and waves are further apart.
    start = (PLANTED.wave_first_day - 12) * DAY
    wave = np.clip((at - start) // (PLANTED.wave_every_days * DAY), 0, PLANTED.waves - 1)
    query = queries.at[owner, wave]
    silent = (queries.state[owner, wave] == SILENT) & queries.live[owner, wave]
    heard = ~(silent & (at >= query - int(PLANTED.silent_days * DAY)) & (at < query))
    return owner[heard], at[heard]


def _draw_background(
    rng: np.random.Generator, log: _Log, traits: Traits, queries: Queries, largest: int
) -> None:
    app, web = rng.poisson(_APP * traits.activity), rng.poisson(_WEB * traits.activity)
    app[traits.number == 0], web[traits.number == 0] = largest * 7 // 10, largest * 3 // 10
    # Parents of small children use the app when these sleep.
    by_night = np.where(traits.parent, app * 7 // 10, app // 10)
    for counts, hours in ((app - by_night, (7, 20)), (by_night, (21, 25))):
        owner, at = _own_acts(rng, counts, queries, hours)
        # Before they leave, customers use less and less.
        left = (traits.churn_at[owner] - at) / (PLANTED.warned_days * DAY)
        used = rng.random(len(owner)) < left
        owner, at = owner[used], at[used]
        seconds = rng.integers(2, 240, len(owner))
        log.add("app", owner, at, _choose(rng, _SCREENS, len(owner)), None, seconds)
    owner, at = _own_acts(rng, web, queries, (7, 24))
    log.add("web", owner, at, _choose(rng, _PAGES, len(owner)))
    shops = np.array([f"shop_{region}" for region in REGIONS], dtype=object)
    visits = rng.poisson(_SHOP, len(traits.number)) * ~traits.parent
    owner, at = _own_acts(rng, visits, queries, (10, 20))
    log.add("shop", owner, at, _choose(rng, _VISITS, len(owner)), shops[traits.region[owner]])
    owner, at = _own_acts(rng, rng.poisson(_CALLS, len(traits.number)), queries, (8, 20))
    _add_calls(rng, log, owner, at, _choose(rng, _REASONS, len(owner)))
    complaints = rng.poisson(1.0, len(traits.number)) * traits.reluctant
    owner, at = _own_acts(rng, complaints, queries, (8, 20))
    _add_calls(rng, log, owner, at, "unwanted_calls")
    owner, at = _own_acts(rng, rng.poisson(_ORDERED, len(traits.number)), queries, (9, 22))
    _add_orders(rng, log, owner, at, _choose(rng, _ORDERS, len(owner)))
    # A sale in the night that sets the clocks back: half of it in an hour that they show twice.
    buyers = np.flatnonzero(rng.random(len(traits.number)) < PLANTED.night_sale)
    owner, at = _heard(queries, buyers, AUTUMN - 3_600 + rng.integers(0, 7_200, len(buyers)))
    _add_orders(rng, log, owner, at, "addon")


def _add_calls(rng: np.random.Generator, log: _Log, owner: Array, at: Array, reason: Any) -> None:
    """Inbound calls; one in ten is given up before anyone answers."""
    answered = rng.random(len(owner)) < 0.9
    seconds = rng.integers(30, 1200, len(owner)) * answered
    log.add("call_centre", owner, at, reason, np.where(answered, "yes", "no").astype(object), seconds)


def _add_orders(rng: np.random.Generator, log: _Log, owner: Array, at: Array, kind: Any) -> None:
    """Orders of devices and add-ons, in euros."""
    device = np.broadcast_to(np.asarray(kind, dtype=object), owner.shape) == "device"
    price = np.where(
        device, 150 * np.exp(0.6 * rng.standard_normal(len(owner))), rng.integers(5, 21, len(owner))
    )
    item = np.where(device, "phone", "data_pack").astype(object)
    log.add("point_of_sale", owner, at, kind, item, price.round(2))


def _draw_mail(rng: np.random.Generator, log: _Log, traits: Traits, queries: Queries) -> None:
    """A bill a month, a newsletter every other month; the reluctant open none."""
    everyone = np.arange(len(traits.number))
    for kind, days, open_share in (("bill", _MONTH_DAYS, 0.10), ("newsletter", _MONTH_DAYS[1::2] + 14, 0.35)):
        owner = np.repeat(everyone, len(days))
        day = np.tile(days, len(everyone)) + rng.integers(0, 3, len(owner))
        sent = local_time(rng, day, 6, 9)
        log.add("mail", owner, sent, "send", kind)
        opened = (rng.random(len(owner)) < open_share) & ~traits.reluctant[owner]
        at = sent[opened] + rng.integers(60, 2 * DAY, int(opened.sum()))
        owner, at = _heard(queries, owner[opened], at)
        log.add("mail", owner, at, "open", kind)
        clicked = rng.random(len(owner)) < 0.25
        at = at[clicked] + rng.integers(2, 50, int(clicked.sum()))
        owner, at = _heard(queries, owner[clicked], at)
        log.add("mail", owner, at, "click", kind)


def _browse(
    rng: np.random.Generator, log: _Log, owner: Array, at: Array, word: str, app_is_own: Array
) -> None:
    """Look at plans, on the web or on an app that nobody else uses."""
    on_app = (rng.random(len(owner)) < 0.5) & app_is_own[owner]
    plans = _plans(rng, len(owner))
    log.add("app", owner[on_app], at[on_app], word, plans[on_app], rng.integers(5, 240, int(on_app.sum())))
    log.add("web", owner[~on_app], at[~on_app], word, plans[~on_app])


def _draw_triples(
    rng: np.random.Generator, log: _Log, traits: Traits, queries: Queries, app_is_own: Array
) -> None:
    """Browse, inquire and buy once each before a query: both orders from the same gaps."""
    triple = (queries.state == BROWSE_LAST) | (queries.state == BROWSE_LAST_NOT)
    owner, wave = np.nonzero(triple & queries.live)
    count = len(owner)
    days = queries.at[owner, wave] // DAY - np.cumsum(rng.integers(1, [[5], [6], [6]], (3, count)), axis=0)
    third, second, first = local_time(rng, days, 10, 20)
    browse_last = queries.state[owner, wave] == BROWSE_LAST
    _browse(rng, log, owner, np.where(browse_last, third, first), "plan", app_is_own)
    inquired = np.where(browse_last, first, second)
    in_shop = (rng.random(count) < 0.3) & ~traits.parent[owner]
    shops = np.array([f"shop_{region}" for region in REGIONS], dtype=object)[traits.region[owner]]
    log.add("shop", owner[in_shop], inquired[in_shop], "ask", shops[in_shop])
    _add_calls(rng, log, owner[~in_shop], inquired[~in_shop], "plan")
    _add_orders(rng, log, owner, np.where(browse_last, second, third), "addon")


def _draw_comparisons(rng: np.random.Generator, log: _Log, queries: Queries, app_is_own: Array) -> None:
    """Several comparisons of plans; then silence, or as many acts as the silent had before theirs."""
    compares = (queries.state == SILENT) | (queries.state == GOES_ON)
    owner, wave = np.nonzero(compares & queries.live)
    day, silent = queries.at[owner, wave] // DAY, queries.state[owner, wave] == SILENT
    again = np.repeat(np.arange(len(owner)), rng.integers(3, 7, len(owner)))
    at = local_time(rng, day[again] - rng.integers(12, 28, len(again)), 8, 20)
    _browse(rng, log, owner[again], at, "compare_plans", app_is_own)
    other = np.repeat(np.arange(len(owner)), rng.integers(3, 6, len(owner)))
    before = np.where(silent[other], rng.integers(12, 28, len(other)), rng.integers(1, 11, len(other)))
    word = np.where(rng.random(len(other)) < 0.5, "home", "help").astype(object)
    log.add("web", owner[other], local_time(rng, day[other] - before, 8, 20), word)


def _draw_churn(rng: np.random.Generator, log: _Log, traits: Traits, queries: Queries) -> None:
    """Rising calls and looks at the cancel page before the cancellation; decoys that stay do both too."""
    warned = PLANTED.warned_days * DAY
    leaves = np.flatnonzero(traits.churn_at < SPAN)
    decoys = np.flatnonzero(traits.decoy)
    end = traits.churn_at.copy()
    end[decoys] = rng.integers(warned, SPAN, len(decoys))
    for who, calls, looks in ((leaves, 3.0, 1.8), (decoys, 1.5, 0.8)):
        owner = np.repeat(who, rng.poisson(calls, len(who)))
        before = warned * (1 - np.sqrt(rng.random(len(owner))))  # ever more of them towards the end
        at = local_time(rng, (end[owner] - before.astype(np.int64)) // DAY, 8, 20)
        owner, at = _heard(queries, owner, at)
        _add_calls(rng, log, owner, at, "technical")
        owner = np.repeat(who, rng.poisson(looks, len(who)))
        at = local_time(rng, end[owner] // DAY - rng.integers(0, 30, len(owner)), 8, 23)
        owner, at = _heard(queries, owner, at)
        log.add("web", owner, at, "cancel_info")
    log.add("point_of_sale", leaves, traits.churn_at[leaves], "cancel", "contract")


def _draw_contacts(rng: np.random.Generator, log: _Log, queries: Queries) -> None:
    """The selected with their arm, the calls of the treated as the switchboard logs them, the upgrades."""
    owner, wave = np.nonzero(queries.selected)
    at = queries.at[owner, wave]
    arm = np.where(queries.treated[owner, wave], "treated", "control").astype(object)
    offers = np.array(OFFERS, dtype=object)[queries.offer[owner, wave]]
    log.add("telemarketing", owner, at, offers, arm)
    owner, wave = np.nonzero(queries.treated)
    answered = queries.answered[owner, wave]
    seconds = rng.integers(20, 600, len(owner)) * answered
    ring = queries.at[owner, wave] + rng.integers(5, 60, len(owner))
    log.add("call_centre", owner, ring, "outbound", np.where(answered, "yes", "no").astype(object), seconds)
    owner, wave = np.nonzero(queries.ordered_at < NEVER)
    plan = rng.integers(1, len(PLANS), len(owner))
    price = np.asarray(PLAN_PRICES)[plan]
    log.add(
        "point_of_sale",
        owner,
        queries.ordered_at[owner, wave],
        "upgrade",
        np.array(PLANS, dtype=object)[plan],
        price,
    )
