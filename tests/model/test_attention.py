"""Dense and windowed attention agree in values and gradients, alone and in a model; selection between the two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lam_spark.model import attention
from lam_spark.model.attention import (
    DenseAttention,
    WindowedAttention,
    query_event_mask,
    select_attention,
)
from lam_spark.model.transformer import Batch
from lam_spark.training.losses import Period, loss_of
from tests.support.tiny import DAY, START, batch_of, customer, layout, random_model

WHOLE = Period(0, START + 10_000 * DAY, ("train",))
# Window lengths by block, 0 for an empty slot: long and short windows, single events, gaps, empty slots at the end.
BLOCKS = {
    "mixed": [[70, 1, 130, 3, 96], [300], [64, 0, 65, 0, 0, 100]],
    "alike": [[100, 100, 100]] * 2,
    "an empty block": [[], [150, 20]],
    "nothing at all": [[], []],
}
EVENTS, QUERIES = 300, 5


def blocks_of_lengths(lengths: list[list[int]]) -> Batch:
    """Windows of these lengths, with queries before the first event, in the middle or after the last event."""
    window = torch.zeros(len(lengths), EVENTS, dtype=torch.int32)
    query_window = torch.zeros(len(lengths), QUERIES, dtype=torch.int32)
    query_index = torch.zeros(len(lengths), QUERIES, dtype=torch.int32)
    for block, window_lengths in enumerate(lengths):
        slot = query = 0
        for number, length in enumerate(window_lengths, 1):
            window[block, slot : slot + length] = number
            if length and query < QUERIES:
                query_window[block, query] = number
                query_index[block, query] = slot + (0, length // 2, length)[query % 3]
                query += 1
            slot += length or 1
    return {"window": window, "query_window": query_window, "query_index": query_index}


def run_attention(
    implementation: type[DenseAttention] | type[WindowedAttention], batch: Batch
) -> tuple[Tensor, list[Tensor]]:
    """Output of the slots in use, and the gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(1)
    blocks = len(batch["window"])
    qkv = [
        torch.randn(blocks, EVENTS + QUERIES, 2, 8, generator=generator, requires_grad=True) for _ in range(3)
    ]
    output = implementation(batch["window"], query_event_mask(batch))(*qkv)
    assert output.shape == qkv[0].shape
    in_use = torch.cat([batch["window"], batch["query_window"]], dim=1) > 0
    weights = torch.randn(output.shape, generator=generator)
    (output * weights)[in_use].sum().backward()  # type: ignore[no-untyped-call]
    return output[in_use].detach(), [x.grad for x in qkv if x.grad is not None]


@pytest.mark.parametrize("lengths", BLOCKS.values(), ids=BLOCKS)
def test_windowed_attention_equals_dense_attention(lengths: list[list[int]]) -> None:
    batch = blocks_of_lengths(lengths)
    dense, windowed = run_attention(DenseAttention, batch), run_attention(WindowedAttention, batch)
    torch.testing.assert_close(windowed[0], dense[0], atol=1e-5, rtol=1e-5)
    assert len(dense[1]) == 3
    for expected, actual in zip(dense[1], windowed[1], strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_model_has_the_same_loss_and_gradients_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = layout(block_events=320, queries_per_block=16)
    customers = [
        customer(
            shape,
            [START + day * DAY for day in range(events)],
            [START + day * DAY for day in (1, events // 2, events)],
            seed=events,
        )
        for events in (40, 250, 7, 130, 1, 90)
    ]
    batch = batch_of(shape, customers)
    results = []
    for max_dense in (10_000, 0):
        monkeypatch.setattr(attention, "_MAX_DENSE_EVENTS", max_dense)
        model = random_model(shape)
        loss = loss_of(model, batch, WHOLE, with_next=True, with_targets=True)
        total = loss.next_sum + loss.target_sums.sum()
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((total.detach(), torch.cat(gradients)))
    assert float(loss.target_counts.sum()) == 18
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)


def test_short_blocks_and_compilers_use_dense_attention_and_long_blocks_windowed() -> None:
    batch = blocks_of_lengths(BLOCKS["mixed"])
    short = {name: values[:, :256] for name, values in batch.items()}
    assert isinstance(select_attention(batch, query_event_mask(batch)), WindowedAttention)
    assert isinstance(select_attention(short, query_event_mask(short)), DenseAttention)

    def is_dense(values: Batch) -> Tensor:
        selected = select_attention(values, query_event_mask(values))
        return values["window"] + isinstance(selected, DenseAttention)

    compiled = torch.compile(is_dense, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), batch["window"] + 1)
