"""Next action of sampled customers in the test period: the model's first guess, and those of Markov chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import eligible_customers
from lam_spark.model.artifact import as_batch, open_artifact
from lam_spark.model.transformer import module_key
from lam_spark.runtime.context import RunContext
from lam_spark.training.losses import Period, next_groups
from lam_spark.training_data.columns import customers, event_columns
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, Packer, prepare, unfold

Array = npt.NDArray[Any]
# Customers whose next actions are predicted; the standard error is a tenth of a percent.
SAMPLE = 4_000
# Fields of an event that chains condition on.
CHAIN_FIELDS = ("action", "touchpoint", "subject")
# Blocks a forward pass.
_BATCH = 8


class NextActions:
    """Accuracy of the first guess of the next action, over events in timestamp groups of the test period.

    Args:
        ctx: run context of a workspace with `sequences`.
        layout: of the model.
    """

    def __init__(self, ctx: RunContext, layout: Layout) -> None:
        self.layout = layout
        config, purpose = ctx.config, ctx.config.consent.training_purpose
        allowed = eligible_customers(ctx.tables, ctx.cache, purpose, ctx.started_at)
        self.sequences = ctx.tables.read("sequences").join(allowed, "customer_key", "left_semi")
        self.test_start = config.micros(config.periods.test_start)
        self.end = config.micros(config.as_of)

    def of_model(self, weights: bytes, card: bytes, digest: str) -> dict[str, float]:
        """Accuracy of a model, and the number of predicted events."""
        model = open_artifact(weights, card, digest).model
        correct = total = 0
        for block, source, slots in self._groups():
            with torch.inference_mode():
                hidden = model(as_batch(block), with_targets=False).event_hidden_BTD.flatten(0, 1)
                guess = model.next_value[module_key("action")](hidden[source]).argmax(-1).numpy()
            correct += int((guess == block["event_action"].reshape(-1)[slots]).sum())
            total += len(slots)
        return {"next_action_lam": correct / total, "next_actions": total}

    def of_chains(self) -> dict[str, float]:
        """Accuracy of the commonest action and of Markov chains counted over all training customers."""
        commonest, chains = self._chains()
        correct: Counter[str] = Counter()
        total = 0
        for block, source, slots in self._groups():
            flat = {name: block[f"event_{name}"].reshape(-1) for name in CHAIN_FIELDS}
            actions = flat["action"][slots]
            total += len(slots)
            correct["commonest"] += int((actions == commonest).sum())
            for name, keys in chain_states(flat, block["window"].reshape(-1), source).items():
                guesses = [chains[name].get(key, commonest) for key in keys]
                correct[name] += int((np.array(guesses) == actions).sum())
        return {f"next_action_{name}": count / total for name, count in correct.items()}

    def _groups(self) -> Iterator[tuple[Block, Array, Array]]:
        """Batches of blocks, with the slot that each event is predicted from, and the event's own slot."""
        rows = self.sequences.orderBy(F.xxhash64("customer_key")).limit(SAMPLE)
        no_queries = {name: None for name, _ in self.layout.query_columns.items()}
        blocks = self._blocks(rows.select(*event_columns(self.layout)).toPandas().assign(**no_queries))
        while batch := [block for _, block in zip(range(_BATCH), blocks, strict=False)]:
            block = unfold(self.layout, {name: np.stack([one[name] for one in batch]) for name in batch[0]})
            source, counted = next_groups(as_batch(block), Period(self.test_start, self.end, ()))
            yield block, source[counted].numpy(), np.flatnonzero(counted.numpy())

    def _chains(self) -> tuple[int, dict[str, dict[tuple[int, ...], int]]]:
        """The commonest action, and the commonest successor of each chain state, before the test period."""
        rows = self.sequences.select("known_at", *CHAIN_FIELDS).toPandas()
        seen = [int(np.searchsorted(times, self.test_start)) for times in rows.known_at]
        flat = {
            name: np.concatenate(
                [np.asarray(ids)[:count] for ids, count in zip(rows[name], seen, strict=True)]
            )
            for name in CHAIN_FIELDS
        }
        customer = np.repeat(np.arange(1, len(seen) + 1), seen)
        slots = np.flatnonzero(customer[1:] == customer[:-1])
        successors = flat["action"][slots + 1].tolist()
        chains: dict[str, dict[tuple[int, ...], int]] = {}
        for name, keys in chain_states(flat, customer, slots).items():
            counts = Counter(zip(keys, successors, strict=True))
            # In ascending frequency, so that the most frequent successor overwrites the others.
            chains[name] = {key: action for (key, action), _ in reversed(counts.most_common())}
        return int(np.bincount(flat["action"]).argmax()), chains

    def _blocks(self, rows: pd.DataFrame) -> Iterator[Block]:
        packer = Packer(self.layout)
        for customer in customers(self.layout, rows):
            prepared = prepare(self.layout, customer)
            for window in prepared.windows:
                yield from packer.add_window(prepared, window, with_loss=True)
        yield from packer.flush()


def chain_states(flat: dict[str, Array], window: Array, slots: Array) -> dict[str, list[tuple[int, ...]]]:
    """Chain -> state after each slot: the last action, the last two, or the last event's three fields."""
    action = flat["action"]
    previous = np.maximum(slots - 1, 0)
    has_previous = (slots > 0) & (window[previous] == window[slots])
    second = np.where(has_previous, action[previous], 0).tolist()
    last = action[slots].tolist()
    fields = (flat[name][slots].tolist() for name in CHAIN_FIELDS)
    return {
        "markov": [(a,) for a in last],
        "markov_of_two": list(zip(second, last, strict=True)),
        "markov_of_events": list(zip(*fields, strict=True)),
    }
