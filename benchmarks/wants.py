"""The telecom world's planted wants: the model beside gradient boosting, chains of actions, and the truth itself.

    python benchmarks/wants.py [--small] [--folder FOLDER] [--seeds 0 1 2 3 4]

100,000 drawn customers (--small: 4,000) through all stages up to the snapshot, then trained with five seeds (--small:
one), each half an hour on two cores. With --folder, what is finished stays there, and the same command goes on from it.
The target is asked of both arms of the telemarketing: of those whom chance had called and of those whom it held back.
On the contacts of the test period, the same rows on all sides; the model's figures are means over the seeds
(`..._low`, `..._high`: the lowest and highest; `..._seeds_averaged`: of their mean answers), `lead_...` what it is
better by than LightGBM, 95 % over customers, by one seed, since what a user runs is one model:

- the order-dependent want: AUC of an upgrade by those called. `way` is how far from the best that counts can do
  (by the truth file's probabilities of these very rows, or LightGBM on counts alone, if better) to that file's best;
- lift of orders in the first tenth of those called;
- uplift: the answer to the query with the call less that without it, against the true effect of each contact:
  rank correlation, and the Qini area by the true effects as a share of the best ranking's;
- `knows_...`: which of what is planted the answers tell apart: the two orders, silence from going on, parents (whom a
  call helps) and the reluctant (whom it puts off) from others;
- the next action of a sample of customers in the test period, beside the commonest one and Markov chains.

LightGBM gets what its own users would make of the same events: counts by action, touchpoint, place, subject, item and
hour of the day over 7/28/91/365 days, money, demographics, the offer; once with days since each of them, once without.
Chains are counted over everybody whom the model learned from.

How much of the way can be gone at all, two more LightGBMs say (`wants_peers.py`): `informed` has features made by
somebody who knows what is planted, from the same events; `knowing` is told each contact's planted state and traits, so
that only who is about to leave is left for it to find out. `best` knows that, too, which nobody can.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from common import (
    REPOSITORY,
    UP_TO_SNAPSHOT,
    command_line,
    kept_folder,
    kept_secret,
    lam_spark,
    open_run,
    origin_digest,
    report,
    stage_records,
)
from coupon import pseudonyms
from pyspark.sql import functions as F
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from wants_peers import PLANTED_STATE, Histories, both_answers

from lam_spark.consent.eligibility import eligible
from lam_spark.model.artifact import Artifact, as_batch, open_artifact
from lam_spark.model.transformer import module_key
from lam_spark.runtime.context import Run
from lam_spark.scoring.udf import Champion, champion, predict
from lam_spark.training.losses import Period, next_groups
from lam_spark.training_data.columns import collect_queries, customers, event_columns, layout_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, Packer, prepare, unfold

Array = npt.NDArray[Any]
CONF = REPOSITORY / "conf/telecom.yaml"
BOTH_ARMS = "targets.upgrade.population=\"action IN ('propose', 'hold_back')\""
# Whose next actions are predicted: enough for a tenth of a percent.
SAMPLED = 4_000
# Of an event, what chains know.
CHAINED = ("action", "touchpoint", "subject")
# Draws of customers with return.
DRAWS = 200


class ProcessGroup:
    """A workspace of the telecom world up to the snapshot, and a session to look into it."""

    def __init__(self, folder: Path, customers: int) -> None:
        self.secret = os.environ["LAM_SPARK_SECRET"] = kept_secret(folder)
        self.folder, self.root = folder, folder / "telecom"
        self.settings = (BOTH_ARMS, f"fetch.arguments.customers={customers}")
        finished = folder / "stages.json"
        seconds: dict[str, float] = json.loads(finished.read_text()) if finished.exists() else {}
        for name in UP_TO_SNAPSHOT:
            if name not in seconds:
                seconds[name] = self._stage(name)
                finished.write_text(json.dumps(seconds))

    def _stage(self, name: str, *settings: str) -> float:
        """Its seconds."""
        run_id = lam_spark(name, CONF, self.root, *self.settings, *settings)["run_id"]
        made = stage_records(self.root, run_id)[name]
        print(f"  {name:<10} {made['seconds']:7.0f} s  {made['says']}", flush=True)
        return float(made["seconds"])

    def open(self) -> None:
        """Begin the session: not beside a training, which wants the memory."""
        self.run: Run = open_run(CONF, self.root, *self.settings)

    def trained(self, seed: int) -> dict[str, float]:
        """Train with a seed, unless it has been: seconds, and how often the next action was right.

        The two answers to each held-out contact go to `_answers(seed)`.
        """
        kept = self.folder / f"seed_{seed}.json"
        if kept.exists():
            told: dict[str, float] = json.loads(kept.read_text())
            return told
        seconds = self._stage("train", f"training.seed={seed}")
        self.open()
        model = champion(self.run, [self.run.config.scoring.target])
        self._ask(model).to_parquet(self._answers(seed))
        figures = NextActions(self, model.layout).of_model(model) | {"train_seconds": seconds}
        self.run.spark.stop()
        kept.write_text(json.dumps(figures))
        return figures

    def _answers(self, seed: int) -> Path:
        return self.folder / f"answers_{seed}.parquet"

    def _ask(self, model: Champion) -> pd.DataFrame:
        """Grain: a held-out contact, with the answers to the call (`called`) and to none (`held_back`)."""
        held = self.run.tables.read("examples").where("split = 'test'")
        ids = {
            row["value"]: row["token_id"]
            for row in self.run.tables.read("vocabulary").where("field = 'action'").toLocalIterator()
        }
        sequences = self.run.tables.read("sequences").select("customer_key", *event_columns(model.layout))
        answers = []
        for answer, action in (("called", "propose"), ("held_back", "hold_back")):
            asked = held.withColumn("action", F.lit(ids[action]))
            queries = sequences.join(collect_queries(asked, model.layout), "customer_key")
            told = predict(self.run, queries, model).select("customer_key", "query_id", "calibrated")
            answers.append(
                told.toPandas().set_index(["customer_key", "query_id"])["calibrated"].rename(answer)
            )
        return pd.concat(answers, axis=1).reset_index()

    def contacts(self) -> pd.DataFrame:
        """Grain: a contact, with its period, label and arm, and what is planted in it."""
        examples = self.run.tables.read("examples")
        rows = examples.select("customer_key", "query_id", "as_of", "split", "label", "arm").toPandas()
        return self._with_truth(rows)

    def answers(self, seed: int, test: pd.DataFrame) -> tuple[Array, Array]:
        """The model's two answers to the held-out contacts, in their order."""
        told = pd.read_parquet(self._answers(seed))
        both = test[["customer_key", "query_id"]].merge(told, how="left", validate="one_to_one")
        assert both.notna().all().all(), "every held-out contact is answered"
        return both.called.to_numpy(), both.held_back.to_numpy()

    def _with_truth(self, rows: pd.DataFrame) -> pd.DataFrame:
        queries = pd.read_parquet(self.root / "truth/queries")
        people = pd.read_parquet(
            self.root / "truth/customers", columns=["customer_id", "parent", "reluctant", "churn_at"]
        )
        queries = queries[queries.arm.notna()].merge(people, on="customer_id", validate="many_to_one")
        horizon = pd.Timedelta(days=28)
        stays = (queries.churn_at.isna() | (queries.churn_at >= queries["at"] + horizon)).astype(float)
        queries["best"] = queries.p_treated * stays
        queries["true_effect"] = queries.effect * stays
        state = queries.state.replace({"browse_inquire_buy": "triple", "inquire_buy_browse": "triple"})
        known = [queries.parent, queries.reluctant, queries.offer == "family"]
        queries["best_by_counts"] = queries.groupby([state, *known])["best"].transform("mean")
        queries["best_before_churn"] = queries.groupby([queries.state, *known])["best"].transform("mean")
        queries["known_effect"] = queries.groupby([queries.state, *known])["true_effect"].transform("mean")
        queries["customer_key"] = pseudonyms(self.secret, queries.customer_id)
        told = queries.rename(columns={"at": "as_of"})
        told["as_of"] = told.as_of.dt.tz_convert(None).astype("datetime64[us]")
        rows["as_of"] = rows.as_of.astype("datetime64[us]")
        columns = ["best", "best_by_counts", "best_before_churn", "true_effect", "known_effect", "offer"]
        columns += PLANTED_STATE
        both = rows.merge(told[["customer_key", "as_of", *columns]], on=["customer_key", "as_of"], how="left")
        assert len(both) == len(rows), "a contact is planted once"
        assert both.best.notna().all(), "every contact stands in the truth file"
        return both

    def events(self, folder: Path) -> Path:
        """The events of the contacted, as plain Parquet for the peers."""
        contacted = self.run.tables.read("examples").select("customer_key").distinct()
        events = self.run.tables.read("events").join(contacted, "customer_key", "left_semi")
        events.drop("attributes").write.mode("overwrite").parquet(str(folder / "events"))
        return folder / "events"


def qini(score: Array, effect: Array) -> float:
    """Area between the true gain of calling in the order of a score and a random order's line; ties in one step."""
    values, group = np.unique(-score, return_inverse=True)
    share = np.bincount(group, minlength=len(values)) / len(score)
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(group, effect, len(values))) / len(score)])
    return float((share * (gain[1:] + gain[:-1]) / 2).sum() - gain[-1] / 2)


def rank_correlation(score: Array, effect: Array) -> float:
    """Spearman's; 0 for a score that is the same for all."""
    return float(spearmanr(score, effect).statistic) if np.ptp(score) > 0 else 0.0


def lift(score: Array, label: Array) -> float:
    """Orders in the first tenth over those of a random tenth."""
    first = np.argsort(-score, kind="stable")[: len(score) // 10]
    return float(label[first].mean() / label.mean())


class NextActions:
    """The next action of sampled customers in the test period: the model's first guess and what chains would guess."""

    def __init__(self, world: ProcessGroup, layout: Layout) -> None:
        run = world.run
        self.layout = layout
        allowed = eligible(run, run.config.consent.training_purpose)
        self.everybody = run.tables.read("sequences").join(allowed, "customer_key", "left_semi")
        self.cut = run.config.micros(run.config.split.test_start)
        self.end = run.config.micros(run.config.as_of)

    def of_model(self, parts: Champion) -> dict[str, float]:
        """How often its first guess is right, over the events of moments in the test period; and of how many."""
        artifact: Artifact = open_artifact(parts.weights, parts.card, parts.digest)
        right = total = 0
        for block, source, at in self._moments():
            with torch.inference_mode():
                hidden = artifact.model(as_batch(block), with_targets=False).event_hidden_BTD.flatten(0, 1)
                guess = artifact.model.next_value[module_key("action")](hidden[source]).argmax(-1).numpy()
            right += int((guess == block["event_action"].reshape(-1)[at]).sum())
            total += len(at)
        return {"next_action_lam": right / total, "next_actions": total}

    def of_chains(self) -> dict[str, float]:
        """The same of the commonest action, and of Markov chains."""
        commonest, chains = self._chains()
        right: Counter[str] = Counter()
        total = 0
        for block, source, at in self._moments():
            flat = {name: block[f"event_{name}"].reshape(-1) for name in CHAINED}
            happened = flat["action"][at]
            total += len(at)
            right["commonest"] += int((happened == commonest).sum())
            for name, keys in states(flat, block["window"].reshape(-1), source).items():
                told = [chains[name].get(key, commonest) for key in keys]
                right[name] += int((np.array(told) == happened).sum())
        return {f"next_action_{name}": count / total for name, count in right.items()}

    def _moments(self) -> Iterator[tuple[Block, Array, Array]]:
        """Some blocks at once; the slots from which their events are to be guessed, and the slots of these events."""
        rows = self.everybody.orderBy(F.xxhash64("customer_key")).limit(SAMPLED)
        no_queries = {name: None for name, _ in self.layout.query_columns.items()}
        blocks = self._blocks(rows.select(*event_columns(self.layout)).toPandas().assign(**no_queries))
        while held := [block for _, block in zip(range(8), blocks, strict=False)]:
            block = unfold(self.layout, {name: np.stack([one[name] for one in held]) for name in held[0]})
            source, counted = next_groups(as_batch(block), Period(self.cut, self.end, ()))
            yield block, source[counted].numpy(), np.flatnonzero(counted.numpy())

    def _chains(self) -> tuple[int, dict[str, dict[tuple[int, ...], int]]]:
        """The commonest action, and what follows each state most often: of everybody, before the test period."""
        rows = self.everybody.select("event_time", *CHAINED).toPandas()
        seen = [int(np.searchsorted(times, self.cut)) for times in rows.event_time]
        flat = {
            name: np.concatenate(
                [np.asarray(ids)[:count] for ids, count in zip(rows[name], seen, strict=True)]
            )
            for name in CHAINED
        }
        customer = np.repeat(np.arange(1, len(seen) + 1), seen)
        at = np.flatnonzero(customer[1:] == customer[:-1])
        then = flat["action"][at + 1].tolist()
        chains: dict[str, dict[tuple[int, ...], int]] = {}
        for name, keys in states(flat, customer, at).items():
            counted = Counter(zip(keys, then, strict=True))
            # The most frequent last: it is the one that stays.
            chains[name] = {key: action for (key, action), _ in reversed(counted.most_common())}
        return int(np.bincount(flat["action"]).argmax()), chains

    def _blocks(self, rows: pd.DataFrame) -> Iterator[Block]:
        packer = Packer(self.layout)
        for customer in customers(self.layout, rows):
            prepared = prepare(self.layout, customer)
            for window in prepared.windows:
                yield from packer.add_window(prepared, window, with_loss=True)
        yield from packer.flush()


def states(flat: dict[str, Array], window: Array, at: Array) -> dict[str, list[tuple[int, ...]]]:
    """What a chain knows after each slot of `at`: the last action; the last two; the last event's three fields."""
    action = flat["action"]
    earlier = np.maximum(at - 1, 0)
    second = np.where((at > 0) & (window[earlier] == window[at]), action[earlier], 0)
    last = action[at].tolist()
    return {
        "markov": [(a,) for a in last],
        "markov_of_two": list(zip(second.tolist(), last, strict=True)),
        "markov_of_events": list(
            zip(last, flat["touchpoint"][at].tolist(), flat["subject"][at].tolist(), strict=True)
        ),
    }


class Held:
    """The held-out contacts, as measures want them."""

    def __init__(self, test: pd.DataFrame) -> None:
        self.test = test
        self.treated = (test.arm == "treated").to_numpy()
        self.label = test.label.to_numpy()[self.treated]
        self.best_qini = qini(test.known_effect.to_numpy(), test.true_effect.to_numpy())

    def measures(self, answers: tuple[Array, Array]) -> dict[str, float]:
        """Of the two answers to each contact."""
        called, held_back = answers
        every = self.test.true_effect.to_numpy()
        return {
            "auc": float(roc_auc_score(self.label, called[self.treated])),
            "lift": lift(called[self.treated], self.label),
            "effect_correlation": rank_correlation(called - held_back, every),
            "qini_share": qini(called - held_back, every) / self.best_qini,
        }

    def knows(self, answers: tuple[Array, Array]) -> dict[str, float]:
        """AUC of telling apart, by the answers, what is planted: of states by the answer to the call, of people by what
        the call changes (log odds).
        """
        called, held_back = answers
        state, want, change = self.test.state, logit(called), logit(called) - logit(held_back)
        told = {}
        for name, more, less in (
            ("order", "inquire_buy_browse", "browse_inquire_buy"),
            ("silence", "compare_then_silent", "compare_and_go_on"),
        ):
            rows = state.isin([more, less]).to_numpy()
            told[name] = float(roc_auc_score(state[rows] == more, want[rows]))
        told["parents"] = float(roc_auc_score(self.test.parent, change))
        told["reluctant"] = float(roc_auc_score(self.test.reluctant, -change))
        return told

    def leads(self, ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> dict[str, float]:
        """How much better each of ours is: 95 % over customers drawn with return, both on the same draw."""
        _, member = np.unique(self.test.customer_key.to_numpy(), return_inverse=True)
        rng, drawn = np.random.default_rng(0), []
        for _ in range(DRAWS):
            times = rng.poisson(1.0, member.max() + 1)[member]
            rows = np.repeat(np.arange(len(member)), times)
            held = Held(self.test.iloc[rows])
            mine, other = (held.measures((a[rows], b[rows])) for a, b in (ours, theirs))
            drawn.append({name: mine[name] - other[name] for name in mine})
        table = pd.DataFrame(drawn)
        return {
            f"lead_{name}_{end}": float(np.percentile(table[name], percent))
            for name in table
            for end, percent in (("low", 2.5), ("high", 97.5))
        }


def main() -> None:
    parser = command_line(__doc__, keeps_folder=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="to train with")
    asked = parser.parse_args()
    size, seeds = (4_000, asked.seeds[:1]) if asked.small else (100_000, asked.seeds)
    with kept_folder(asked.folder, "wants-", origin_digest(asked.small)) as folder:
        world = ProcessGroup(folder, size)
        by_seed = [world.trained(seed) for seed in seeds]
        world.open()
        contacts = world.contacts()
        started = time.monotonic()
        histories = Histories(contacts, world.events(folder))
        table, plain = histories.features()
        print(
            f"  {len(contacts):,} contacts, {table.shape[1]} features in {time.monotonic() - started:.0f} s"
        )
        every = np.ones(len(contacts), bool)
        theirs: dict[str, tuple[Array, Array]] = {}
        started = time.monotonic()
        theirs["lightgbm"] = both_answers(contacts, table, every)
        boosting_seconds = time.monotonic() - started
        theirs["counts"] = both_answers(contacts, table[plain], every)
        arms = [
            both_answers(contacts, table, (contacts.arm == arm).to_numpy()) for arm in ("treated", "control")
        ]
        theirs["two_models"] = (arms[0][0], arms[1][1])
        theirs["informed"] = both_answers(contacts, histories.informed_features(), every)
        theirs["knowing"] = both_answers(contacts, histories.knowing_features(contacts), every)
        test = contacts[contacts.split == "test"]
        ours = [world.answers(seed, test) for seed in seeds]
        layout = layout_of(world.run.config, world.run.tables.read("vocabulary"))
        chains = NextActions(world, layout).of_chains()
    held = Held(test)
    known = {name: test[name].to_numpy() for name in ("best", "best_before_churn", "best_by_counts")}
    figures: dict[str, float] = {
        "customers": size,
        "seeds": len(seeds),
        "test_called": int(held.treated.sum()),
        "test_orders": float(held.label.sum()),
        **{f"auc_{n}": float(roc_auc_score(held.label, p[held.treated])) for n, p in known.items()},
    }
    by_seed = [told | held.measures(answers) for told, answers in zip(by_seed, ours, strict=True)]
    for seed, told in zip(seeds, by_seed, strict=True):
        print(f"  seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in told.items()))
    for name in ("auc", "lift", "effect_correlation", "qini_share", "next_action_lam"):
        values = [told[name] for told in by_seed]
        key = name if name.endswith("lam") else f"{name}_lam"
        figures |= {key: float(np.mean(values)), f"{key}_low": min(values), f"{key}_high": max(values)}
    if len(seeds) > 1:  # what the chance of one training costs: all models' answers averaged
        called, held_back = np.mean(ours, axis=0)
        theirs["seeds_averaged"] = (called, held_back)
    for name, answers in theirs.items():
        figures |= {f"{key}_{name}": value for key, value in held.measures(answers).items()}
    figures |= held.leads(ours[0], theirs["lightgbm"])
    knows = pd.DataFrame([held.knows(answers) for answers in ours]).mean()
    figures |= {f"knows_{name}_lam": float(value) for name, value in knows.items()}
    for name, value in held.knows(theirs["lightgbm"]).items():
        figures[f"knows_{name}_lightgbm"] = value
    true_effect = test.true_effect.to_numpy()
    figures["effect_correlation_best"] = rank_correlation(test.known_effect.to_numpy(), true_effect)
    figures["qini_share_by_chance"] = qini(ours[0][0], true_effect) / held.best_qini
    by_counts = max(figures["auc_best_by_counts"], figures["auc_counts"])
    for limit in ("best", "knowing", "informed"):
        way = (figures["auc_lam"] - by_counts) / (figures[f"auc_{limit}"] - by_counts)
        figures["way" if limit == "best" else f"way_to_{limit}"] = way
    figures["lift_vs_lightgbm"] = figures["lift_lam"] / figures["lift_lightgbm"]
    figures |= chains
    figures["next_actions"] = by_seed[0]["next_actions"]
    figures["next_action_vs_chains"] = figures["next_action_lam"] / max(chains.values())
    figures["train_seconds"] = float(np.median([told["train_seconds"] for told in by_seed]))
    figures["lightgbm_seconds"] = boosting_seconds
    report(
        "wants",
        figures,
        {
            "way": (">=", 0.9),
            "lift_lam": (">=", 2.0),
            "lift_vs_lightgbm": (">=", 1.0),
            "next_action_vs_chains": (">=", 1.0),
        },
    )


if __name__ == "__main__":
    main()
