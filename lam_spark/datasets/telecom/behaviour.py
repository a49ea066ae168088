"""True events of a chunk of customers, derived from their traits, queries and outcomes.

Ids, files and defects are added by other modules. Shapes: `n` customers, `w` waves (queries per customer). Times are
seconds after `START`, UTC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, Queries, Traits, draw_local_times
from lam_spark.datasets.telecom.parameters import (
    ACTIVE,
    AUTUMN,
    BEHAVIOUR,
    BROWSE_LAST,
    BUY_LAST,
    DAY,
    NEVER,
    OFFERS,
    PLAN_PRICES,
    PLANS,
    REGIONS,
    SILENT,
    SPAN,
)

CHANNELS = ("app", "web", "shop", "call_centre", "telemarketing", "mail", "point_of_sale")

_MONTH_DAYS = np.array([0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335])

# Background actions of each channel -> share.
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
# Mean background events per customer and year, before the factor `activity`.
_APP, _WEB, _SHOP, _CALLS, _ORDERED = 22.0, 10.0, 2.5, 2.0, 1.2


def draw_events(
    rng: np.random.Generator, traits: Traits, queries: Queries, largest: int, has_own_device: Array
) -> dict[str, pd.DataFrame]:
    """Draw all true events.

    Args:
        rng: the chunk's generator for events.
        traits: traits of n customers.
        queries: queries of these customers.
        largest: number of app and web events of customer 0.
        has_own_device: (n,) whether the customer uses an unshared device. Other customers show the
            behaviour before a query on the web only.

    Returns:
        One frame per channel, ordered by (owner, at): `owner` (position in the chunk), `at`, `action` (the
        channel's own code of the action; for telemarketing the offer), `item`, `number` (seconds or euros).
    """
    log = _EventLog()
    _draw_background(rng, log, traits, queries, largest)
    _draw_mail(rng, log, traits, queries)
    _draw_triples(rng, log, traits, queries, has_own_device)
    _draw_comparisons(rng, log, queries, has_own_device)
    _draw_churn(rng, log, traits, queries)
    _draw_contacts(rng, log, queries)
    return {channel: log.frame(channel, traits.churn_at) for channel in CHANNELS}


class _EventLog:
    """Collects the events of all channels as arrays."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Array, ...]]] = {channel: [] for channel in CHANNELS}

    def add(
        self, channel: str, owner: Array, at: Array, action: Any, item: Any = None, number: Any = 0
    ) -> None:
        """Add one event per owner; `action`, `item` and `number` are arrays or one value for all events."""
        texts = [np.broadcast_to(np.asarray(value, dtype=object), owner.shape) for value in (action, item)]
        self._parts[channel].append(
            (owner, at, *texts, np.broadcast_to(np.asarray(number, dtype=np.float64), owner.shape))
        )

    def frame(self, channel: str, churn_at: Array) -> pd.DataFrame:
        """Return a channel's events within the year and before the cancellation, ordered by (owner, at)."""
        columns = [np.concatenate(part) for part in zip(*self._parts[channel], strict=True)]
        names = ("owner", "at", "action", "item", "number")
        owner, at = columns[0], columns[1]
        valid = np.flatnonzero((at >= 0) & (at < SPAN) & (at <= churn_at[owner]))
        order = valid[np.lexsort((at[valid], owner[valid]))]
        return pd.DataFrame({name: column[order] for name, column in zip(names, columns, strict=True)})


def _choose(rng: np.random.Generator, shares: dict[str, float], count: int) -> Array:
    """Draw actions with the given shares."""
    chosen = rng.choice(len(shares), count, p=list(shares.values()))
    return np.asarray(np.array(list(shares), dtype=object)[chosen])


def _draw_plans(rng: np.random.Generator, count: int) -> Array:
    return np.asarray(np.array(PLANS, dtype=object)[rng.integers(0, len(PLANS), count)])


def _draw_background_times(
    rng: np.random.Generator, counts: Array, queries: Queries, hours: tuple[int, int]
) -> tuple[Array, Array]:
    """Draw owners and times of background events outside silent periods."""
    owner = np.repeat(np.arange(len(counts)), counts)
    at = draw_local_times(rng, rng.integers(0, SPAN // DAY, len(owner)), *hours)
    return _outside_silence(queries, owner, at)


def _outside_silence(queries: Queries, owner: Array, at: Array) -> tuple[Array, Array]:
    """Drop the events that fall into a silent period of their owner."""
    # A silent period ends at most 20 days after this start of its wave; waves are further apart.
    start = (BEHAVIOUR.wave_first_day - 12) * DAY
    wave = np.clip((at - start) // (BEHAVIOUR.wave_every_days * DAY), 0, BEHAVIOUR.waves - 1)
    query_at = queries.at[owner, wave]
    has_silence = (queries.state[owner, wave] == SILENT) & queries.live[owner, wave]
    silent_from = query_at - int(BEHAVIOUR.silent_days * DAY)
    allowed = ~(has_silence & (at >= silent_from) & (at < query_at))
    return owner[allowed], at[allowed]


def _draw_background(
    rng: np.random.Generator, log: _EventLog, traits: Traits, queries: Queries, largest: int
) -> None:
    """Add the ordinary use of app, web, shop, call centre and point of sale."""
    count = len(traits.number)
    app, web = rng.poisson(_APP * traits.activity), rng.poisson(_WEB * traits.activity)
    app[traits.number == 0], web[traits.number == 0] = largest * 7 // 10, largest * 3 // 10
    # Parents use the app at night, when small children sleep.
    by_night = np.where(traits.parent, app * 7 // 10, app // 10)
    for counts, hours in ((app - by_night, (7, 20)), (by_night, (21, 25))):
        owner, at = _draw_background_times(rng, counts, queries, hours)
        # Use declines before a cancellation.
        remaining = (traits.churn_at[owner] - at) / (BEHAVIOUR.churn_signal_days * DAY)
        used = rng.random(len(owner)) < remaining
        owner, at = owner[used], at[used]
        seconds = rng.integers(2, 240, len(owner))
        log.add("app", owner, at, _choose(rng, _SCREENS, len(owner)), None, seconds)
    owner, at = _draw_background_times(rng, web, queries, (7, 24))
    log.add("web", owner, at, _choose(rng, _PAGES, len(owner)))
    shops = np.array([f"shop_{region}" for region in REGIONS], dtype=object)
    visits = rng.poisson(_SHOP, count) * ~traits.parent
    owner, at = _draw_background_times(rng, visits, queries, (10, 20))
    log.add("shop", owner, at, _choose(rng, _VISITS, len(owner)), shops[traits.region[owner]])
    owner, at = _draw_background_times(rng, rng.poisson(_CALLS, count), queries, (8, 20))
    _add_calls(rng, log, owner, at, _choose(rng, _REASONS, len(owner)))
    complaints = rng.poisson(1.0, count) * traits.reluctant
    owner, at = _draw_background_times(rng, complaints, queries, (8, 20))
    _add_calls(rng, log, owner, at, "unwanted_calls")
    owner, at = _draw_background_times(rng, rng.poisson(_ORDERED, count), queries, (9, 22))
    _add_orders(rng, log, owner, at, _choose(rng, _ORDERS, len(owner)))
    # A sale in the night in which the clocks are set back: half of it in the repeated local hour.
    buyers = np.flatnonzero(rng.random(count) < BEHAVIOUR.night_sale_share)
    owner, at = _outside_silence(queries, buyers, AUTUMN - 3_600 + rng.integers(0, 7_200, len(buyers)))
    _add_orders(rng, log, owner, at, "addon")


def _add_calls(rng: np.random.Generator, log: _EventLog, owner: Array, at: Array, reason: Any) -> None:
    """Add inbound calls; one in ten is abandoned before it is answered."""
    answered = rng.random(len(owner)) < 0.9
    seconds = rng.integers(30, 1200, len(owner)) * answered
    log.add("call_centre", owner, at, reason, np.where(answered, "yes", "no").astype(object), seconds)


def _add_orders(rng: np.random.Generator, log: _EventLog, owner: Array, at: Array, kind: Any) -> None:
    """Add orders of devices and add-ons, in euros."""
    device = np.broadcast_to(np.asarray(kind, dtype=object), owner.shape) == "device"
    price = np.where(
        device, 150 * np.exp(0.6 * rng.standard_normal(len(owner))), rng.integers(5, 21, len(owner))
    )
    item = np.where(device, "phone", "data_pack").astype(object)
    log.add("point_of_sale", owner, at, kind, item, price.round(2))


def _draw_mail(rng: np.random.Generator, log: _EventLog, traits: Traits, queries: Queries) -> None:
    """Add a monthly bill and a newsletter every other month; reluctant customers open neither."""
    everyone = np.arange(len(traits.number))
    for kind, days, open_share in (("bill", _MONTH_DAYS, 0.10), ("newsletter", _MONTH_DAYS[1::2] + 14, 0.35)):
        owner = np.repeat(everyone, len(days))
        day = np.tile(days, len(everyone)) + rng.integers(0, 3, len(owner))
        sent = draw_local_times(rng, day, 6, 9)
        log.add("mail", owner, sent, "send", kind)
        opened = (rng.random(len(owner)) < open_share) & ~traits.reluctant[owner]
        at = sent[opened] + rng.integers(60, 2 * DAY, int(opened.sum()))
        owner, at = _outside_silence(queries, owner[opened], at)
        log.add("mail", owner, at, "open", kind)
        clicked = rng.random(len(owner)) < 0.25
        at = at[clicked] + rng.integers(2, 50, int(clicked.sum()))
        owner, at = _outside_silence(queries, owner[clicked], at)
        log.add("mail", owner, at, "click", kind)


def _add_plan_views(
    rng: np.random.Generator, log: _EventLog, owner: Array, at: Array, action: str, has_own_device: Array
) -> None:
    """Add views of plans on the web, or in the app of an unshared device."""
    on_app = (rng.random(len(owner)) < 0.5) & has_own_device[owner]
    plans = _draw_plans(rng, len(owner))
    log.add("app", owner[on_app], at[on_app], action, plans[on_app], rng.integers(5, 240, int(on_app.sum())))
    log.add("web", owner[~on_app], at[~on_app], action, plans[~on_app])


def _draw_triples(
    rng: np.random.Generator, log: _EventLog, traits: Traits, queries: Queries, has_own_device: Array
) -> None:
    """Add one browse, one inquiry and one purchase before a query, in two orders with the same gaps."""
    triple = (queries.state == BROWSE_LAST) | (queries.state == BUY_LAST)
    owner, wave = np.nonzero(triple & queries.live)
    count = len(owner)
    days = queries.at[owner, wave] // DAY - np.cumsum(rng.integers(1, [[5], [6], [6]], (3, count)), axis=0)
    third, second, first = draw_local_times(rng, days, 10, 20)
    browse_last = queries.state[owner, wave] == BROWSE_LAST
    _add_plan_views(rng, log, owner, np.where(browse_last, third, first), "plan", has_own_device)
    inquired = np.where(browse_last, first, second)
    in_shop = (rng.random(count) < 0.3) & ~traits.parent[owner]
    shops = np.array([f"shop_{region}" for region in REGIONS], dtype=object)[traits.region[owner]]
    log.add("shop", owner[in_shop], inquired[in_shop], "ask", shops[in_shop])
    _add_calls(rng, log, owner[~in_shop], inquired[~in_shop], "plan")
    _add_orders(rng, log, owner, np.where(browse_last, second, third), "addon")


def _draw_comparisons(
    rng: np.random.Generator, log: _EventLog, queries: Queries, has_own_device: Array
) -> None:
    """Add several comparisons of plans, followed by silence or by an equal number of other web views."""
    compares = (queries.state == SILENT) | (queries.state == ACTIVE)
    owner, wave = np.nonzero(compares & queries.live)
    day, silent = queries.at[owner, wave] // DAY, queries.state[owner, wave] == SILENT
    comparison = np.repeat(np.arange(len(owner)), rng.integers(3, 7, len(owner)))
    at = draw_local_times(rng, day[comparison] - rng.integers(12, 28, len(comparison)), 8, 20)
    _add_plan_views(rng, log, owner[comparison], at, "compare_plans", has_own_device)
    other = np.repeat(np.arange(len(owner)), rng.integers(3, 6, len(owner)))
    days_before = np.where(silent[other], rng.integers(12, 28, len(other)), rng.integers(1, 11, len(other)))
    action = np.where(rng.random(len(other)) < 0.5, "home", "help").astype(object)
    log.add("web", owner[other], draw_local_times(rng, day[other] - days_before, 8, 20), action)


def _draw_churn(rng: np.random.Generator, log: _EventLog, traits: Traits, queries: Queries) -> None:
    """Add an increasing rate of calls and cancel-page views before a cancellation; decoys show both but stay."""
    signal_seconds = BEHAVIOUR.churn_signal_days * DAY
    churning = np.flatnonzero(traits.churn_at < SPAN)
    decoys = np.flatnonzero(traits.decoy)
    end = traits.churn_at.copy()
    end[decoys] = rng.integers(signal_seconds, SPAN, len(decoys))
    for group, mean_calls, mean_views in ((churning, 3.0, 1.8), (decoys, 1.5, 0.8)):
        owner = np.repeat(group, rng.poisson(mean_calls, len(group)))
        before = signal_seconds * (1 - np.sqrt(rng.random(len(owner))))  # the rate rises towards the end
        at = draw_local_times(rng, (end[owner] - before.astype(np.int64)) // DAY, 8, 20)
        owner, at = _outside_silence(queries, owner, at)
        _add_calls(rng, log, owner, at, "technical")
        owner = np.repeat(group, rng.poisson(mean_views, len(group)))
        at = draw_local_times(rng, end[owner] // DAY - rng.integers(0, 30, len(owner)), 8, 23)
        owner, at = _outside_silence(queries, owner, at)
        log.add("web", owner, at, "cancel_info")
    log.add("point_of_sale", churning, traits.churn_at[churning], "cancel", "contract")


def _draw_contacts(rng: np.random.Generator, log: _EventLog, queries: Queries) -> None:
    """Add selected customers with their arm, the outbound calls of treated customers, and the upgrades."""
    owner, wave = np.nonzero(queries.selected)
    at = queries.at[owner, wave]
    arm = np.where(queries.treated[owner, wave], "treated", "control").astype(object)
    offers = np.array(OFFERS, dtype=object)[queries.offer[owner, wave]]
    log.add("telemarketing", owner, at, offers, arm)
    owner, wave = np.nonzero(queries.treated)
    answered = queries.answered[owner, wave]
    seconds = rng.integers(20, 600, len(owner)) * answered
    call_at = queries.at[owner, wave] + rng.integers(5, 60, len(owner))
    log.add(
        "call_centre", owner, call_at, "outbound", np.where(answered, "yes", "no").astype(object), seconds
    )
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
