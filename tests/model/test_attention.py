"""Two ways of attention that must give the same: values, gradients, whole models; and which one is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lam_spark.model import attention
from lam_spark.model.attention import Dense, WindowedAttention, query_event_mask, select_attention
from lam_spark.model.transformer import Batch
from lam_spark.training.losses import Period, loss_of
from tests.support.tiny import DAY, START, batch_of, customer, layout, random_model

WHOLE = Period(0, START + 10_000 * DAY, ("train",))
# Lengths of a block's windows, 0 an empty slot: long and short ones, one event alone, a gap, nothing at the end.
BLOCKS = {
    "mixed": [[70, 1, 130, 3, 96], [300], [64, 0, 65, 0, 0, 100]],
    "alike": [[100, 100, 100]] * 2,
    "an empty block": [[], [150, 20]],
    "nothing at all": [[], []],
}
EVENTS, QUERIES = 300, 5


def blocks_of_lengths(lengths: list[list[int]]) -> Batch:
    """Windows, and queries of some of them: before the first event, in the middle, behind the last one."""
    window = torch.zeros(len(lengths), EVENTS, dtype=torch.int32)
    asked = torch.zeros(len(lengths), QUERIES, dtype=torch.int32)
    index = torch.zeros(len(lengths), QUERIES, dtype=torch.int32)
    for block, row in enumerate(lengths):
        at = query = 0
        for number, length in enumerate(row, 1):
            window[block, at : at + length] = number
            if length and query < QUERIES:
                asked[block, query] = number
                index[block, query] = at + (0, length // 2, length)[query % 3]
                query += 1
            at += length or 1
    return {"window": window, "query_window": asked, "query_index": index}


def attended(way: type[Dense] | type[WindowedAttention], batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """What each slot that is in use takes, and the gradients of queries, keys and values."""
    draw = torch.Generator().manual_seed(1)
    blocks = len(batch["window"])
    given = [
        torch.randn(blocks, EVENTS + QUERIES, 2, 8, generator=draw, requires_grad=True) for _ in range(3)
    ]
    mixed = way(batch["window"], query_event_mask(batch))(*given)
    assert mixed.shape == given[0].shape
    used = torch.cat([batch["window"], batch["query_window"]], dim=1) > 0
    weights = torch.randn(mixed.shape, generator=draw)
    (mixed * weights)[used].sum().backward()  # type: ignore[no-untyped-call]
    return mixed[used].detach(), [x.grad for x in given if x.grad is not None]


@pytest.mark.parametrize("lengths", BLOCKS.values(), ids=BLOCKS)
def test_by_history_gives_what_all_pairs_give(lengths: list[list[int]]) -> None:
    batch = blocks_of_lengths(lengths)
    dense, by_history = attended(Dense, batch), attended(WindowedAttention, batch)
    torch.testing.assert_close(by_history[0], dense[0], atol=1e-5, rtol=1e-5)
    assert len(dense[1]) == 3
    for theirs, ours in zip(dense[1], by_history[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_model_learns_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = layout(block_events=320, queries_per_block=16)
    people = [
        customer(
            shape,
            [START + day * DAY for day in range(events)],
            [START + day * DAY for day in (1, events // 2, events)],
            seed=events,
        )
        for events in (40, 250, 7, 130, 1, 90)
    ]
    batch = batch_of(shape, people)
    found = []
    for most in (10_000, 0):
        monkeypatch.setattr(attention, "_DENSE_EVENTS", most)
        model = random_model(shape)
        loss = loss_of(model, batch, WHOLE, with_next=True, with_targets=True)
        total = loss.next_sum + loss.target_sums.sum()
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((total.detach(), torch.cat(gradients)))
    assert float(loss.target_counts.sum()) == 18
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_short_blocks_and_compilers_get_one_call_and_long_blocks_their_histories() -> None:
    batch = blocks_of_lengths(BLOCKS["mixed"])
    short = {name: values[:, :256] for name, values in batch.items()}
    assert isinstance(select_attention(batch, query_event_mask(batch)), WindowedAttention)
    assert isinstance(select_attention(short, query_event_mask(short)), Dense)

    def is_dense(values: Batch) -> Tensor:
        way = select_attention(values, query_event_mask(values))
        return values["window"] + isinstance(way, Dense)

    compiled = torch.compile(is_dense, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), batch["window"] + 1)
