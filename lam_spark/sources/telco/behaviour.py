"""Hidden traits of customers, what they want at each query, and every true event that follows from it.

A chunk of customers at a time, in numpy; nothing here knows of files or dirt. `n` customers, `w` waves (a
customer's queries). Times are seconds after `START`, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lam_spark.sources.telco.planted import (
    AGE_BANDS,
    BROWSE_LAST,
    BROWSE_LAST_NOT,
    DAY,
    FAMILY,
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

Array = npt.NDArray[Any]
CHANNELS = ("app", "web", "shop", "call_centre", "telemarketing", "mail", "point_of_sale")

# Lisbon is an hour ahead of UTC from day 90 (31 March) to day 299 (26 October).
_SUMMER_DAYS = (90, 300)
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


@dataclass(frozen=True)
class Traits:
    """Arrays (n,). `churn_at` is `NEVER` for those who stay; `activity` multiplies app and web use."""

    number: Array
    age_band: Array
    gender: Array
    region: Array
    contract_type: Array
    contract_days: Array
    plan: Array
    parent: Array
    reluctant: Array
    churn_at: Array
    decoy: Array
    activity: Array


@dataclass(frozen=True)
class Queries:
    """Arrays (n, w): a customer's state at each query, who was chosen and called, and what came of it.

    Attributes:
        live: the customer had not left.
        p_control, p_treated: true probability of an upgrade within the horizon without and with a call of
            the drawn offer; 0 for those who leave within the horizon.
        ordered_at: the upgrade, `NEVER` where there is none.
    """

    at: Array
    state: Array
    live: Array
    p_select: Array
    selected: Array
    treated: Array
    offer: Array
    answered: Array
    p_control: Array
    p_treated: Array
    ordered_at: Array


def draw_traits(rng: np.random.Generator, first: int, count: int) -> Traits:
    """Draw the customers `first` to `first + count - 1`, who they are and whether they will leave."""
    number = np.arange(first, first + count)
    u = rng.random(count)
    heavy = rng.random(count) < PLANTED.heavy
    pareto = np.minimum(20 * (1 - u) ** (-1 / 1.1), 150.0)
    leaves = (rng.random(count) < PLANTED.churners) & (number > 0)  # customer 0 is the largest: stays
    churn_at = rng.integers(100 * DAY, 360 * DAY, count)
    return Traits(
        number=number,
        age_band=rng.choice(len(AGE_BANDS), count, p=[0.12, 0.20, 0.30, 0.22, 0.16]),
        gender=rng.choice(2, count),
        region=rng.choice(len(REGIONS), count, p=[0.35, 0.25, 0.20, 0.10, 0.10]),
        contract_type=rng.choice(3, count, p=[0.3, 0.3, 0.4]),
        contract_days=rng.integers(60, 1500, count),
        plan=rng.choice(len(PLANS), count, p=[0.5, 0.35, 0.15]),
        parent=rng.random(count) < PLANTED.parents,
        reluctant=rng.random(count) < PLANTED.reluctant,
        churn_at=np.where(leaves, churn_at, NEVER),
        decoy=~leaves & (rng.random(count) < PLANTED.decoys),
        activity=np.where(heavy, pareto, np.exp(0.5 * rng.standard_normal(count))),
    )


def draw_queries(rng: np.random.Generator, traits: Traits) -> Queries:
    """Draw the waves: what went before each query, the biased selection, the random arm, the outcome."""
    shape = (len(traits.number), PLANTED.waves)
    first = PLANTED.wave_first_day + PLANTED.wave_every_days * np.arange(PLANTED.waves)
    at = local_time(rng, first + rng.integers(0, PLANTED.wave_jitter_days, shape), 10, 19)
    state = rng.choice(len(PLANTED.state_shares), shape, p=PLANTED.state_shares)
    live = at < traits.churn_at[:, None]
    parent, reluctant = traits.parent[:, None], traits.reluctant[:, None]

    need = (state == BROWSE_LAST) | (state == SILENT)
    p_select = _sigmoid(
        PLANTED.select_base_logit
        + PLANTED.select_need_logit * need
        + PLANTED.select_lisboa_logit * (traits.region == 0)[:, None]
        + PLANTED.select_age_65_logit * (traits.age_band == len(AGE_BANDS) - 1)[:, None]
    )
    selected = live & (rng.random(shape) < p_select)
    treated = selected & (rng.random(shape) >= PLANTED.control_share)
    offer = rng.integers(0, len(OFFERS), shape)

    logit = PLANTED.base_logit + np.asarray(PLANTED.state_logits)[state]
    effect = (
        PLANTED.effect_logit
        + PLANTED.effect_parent_logit * parent
        + PLANTED.effect_family_offer_parent_logit * (parent & (offer == FAMILY))
        + PLANTED.effect_reluctant_logit * reluctant
    )
    stays = live & (traits.churn_at[:, None] >= at + PLANTED.horizon_days * DAY)
    p_control, p_answered = _sigmoid(logit) * stays, _sigmoid(logit + effect) * stays
    p_answer = PLANTED.answer + PLANTED.answer_parent * parent + PLANTED.answer_reluctant * reluctant
    answered = treated & (rng.random(shape) < p_answer)
    ordered = rng.random(shape) < np.where(answered, p_answered, p_control)
    wait = rng.integers(DAY // 4, int((PLANTED.horizon_days - 1.5) * DAY), shape)
    return Queries(
        at=at,
        state=state,
        live=live,
        p_select=p_select,
        selected=selected,
        treated=treated,
        offer=offer,
        answered=answered,
        p_control=p_control,
        p_treated=p_answer * p_answered + (1 - p_answer) * p_control,
        ordered_at=np.where(ordered, at + wait, NEVER),
    )


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
    _draw_churn(rng, log, traits)
    _draw_contacts(rng, log, queries)
    return {channel: log.frame(channel, traits.churn_at) for channel in CHANNELS}


def local_time(rng: np.random.Generator, day: Array, first_hour: float, last_hour: float) -> Array:
    """A time on each day between two hours of Lisbon's clock."""
    hour = rng.uniform(first_hour, last_hour, np.shape(day))
    summer = (day >= _SUMMER_DAYS[0]) & (day < _SUMMER_DAYS[1])
    return np.asarray(day * DAY + ((hour - summer) * 3600).astype(np.int64))


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


def _sigmoid(logit: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _choose(rng: np.random.Generator, shares: dict[str, float], count: int) -> Array:
    """Words drawn by their shares."""
    return np.array(list(shares), dtype=object)[rng.choice(len(shares), count, p=list(shares.values()))]


def _plans(rng: np.random.Generator, count: int) -> Array:
    return np.array(PLANS, dtype=object)[rng.integers(0, len(PLANS), count)]


def _own_acts(rng: np.random.Generator, counts: Array, queries: Queries, hours: tuple[int, int]) -> Any:
    """Owners and times of background acts, with those left out that fall into a planted silence."""
    owner = np.repeat(np.arange(len(counts)), counts)
    at = local_time(rng, rng.integers(0, SPAN // DAY, len(owner)), *hours)
    heard = ~_in_silence(queries, owner, at)
    return owner[heard], at[heard]


def _in_silence(queries: Queries, owner: Array, at: Array) -> Array:
    # A silence lies in the 23 days that follow this start of its wave, and waves are further apart.
    start = (PLANTED.wave_first_day - 12) * DAY
    wave = np.clip((at - start) // (PLANTED.wave_every_days * DAY), 0, PLANTED.waves - 1)
    query = queries.at[owner, wave]
    silent = (queries.state[owner, wave] == SILENT) & queries.live[owner, wave]
    return np.asarray(silent & (at >= query - int(PLANTED.silent_days * DAY)) & (at < query))


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
        owner, at = owner[opened], sent[opened] + rng.integers(60, 2 * DAY, int(opened.sum()))
        heard = ~_in_silence(queries, owner, at)
        owner, at = owner[heard], at[heard]
        log.add("mail", owner, at, "open", kind)
        clicked = rng.random(len(owner)) < 0.25
        log.add("mail", owner[clicked], at[clicked] + rng.integers(2, 50, int(clicked.sum())), "click", kind)


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
    third = queries.at[owner, wave] - rng.integers(DAY, 5 * DAY, count)
    second = third - rng.integers(DAY, 6 * DAY, count)
    first = second - rng.integers(DAY, 6 * DAY, count)
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
    at, silent = queries.at[owner, wave], queries.state[owner, wave] == SILENT
    again = np.repeat(np.arange(len(owner)), rng.integers(3, 7, len(owner)))
    _browse(
        rng,
        log,
        owner[again],
        at[again] - rng.integers(12 * DAY, 28 * DAY, len(again)),
        "compare_plans",
        app_is_own,
    )
    other = np.repeat(np.arange(len(owner)), rng.integers(3, 6, len(owner)))
    early = rng.integers(12 * DAY, 28 * DAY, len(other))
    recent = rng.integers(DAY // 2, 11 * DAY, len(other))
    log.add(
        "web",
        owner[other],
        at[other] - np.where(silent[other], early, recent),
        np.where(rng.random(len(other)) < 0.5, "home", "help").astype(object),
    )


def _draw_churn(rng: np.random.Generator, log: _Log, traits: Traits) -> None:
    """Rising calls and looks at the cancel page before the cancellation; decoys that stay do both too."""
    warned = PLANTED.warned_days * DAY
    leaves = np.flatnonzero(traits.churn_at < SPAN)
    decoys = np.flatnonzero(traits.decoy)
    end = traits.churn_at.copy()
    end[decoys] = rng.integers(warned, SPAN, len(decoys))
    for who, calls, looks in ((leaves, 3.0, 1.8), (decoys, 1.5, 0.8)):
        owner = np.repeat(who, rng.poisson(calls, len(who)))
        before = warned * (1 - np.sqrt(rng.random(len(owner))))  # ever more of them towards the end
        _add_calls(rng, log, owner, end[owner] - 1 - before.astype(np.int64), "technical")
        owner = np.repeat(who, rng.poisson(looks, len(who)))
        log.add("web", owner, end[owner] - rng.integers(1, 30 * DAY, len(owner)), "cancel_info")
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
