"""The cost on paper: held against what torch counts, and against the target for the default large size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lam_spark.cli import main
from lam_spark.config.load import load_config
from lam_spark.model.attention import query_event_mask
from lam_spark.model.transformer import LargeActionModel, ModelSize, Normaliser
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training.cost import (
    ACCELERATORS,
    RECIPES,
    Passes,
    block_flops,
    forward_flops,
    imagined_passes,
    model_on_paper,
    plan,
)
from lam_spark.training.losses import Period, loss_of
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout, Target
from tests.support.tiny import DAY, START, batch_of, customer, layout, normaliser

SHAPE = layout(block_events=64, queries_per_block=8, sizes=(40, 300))
CONF = str(Path(__file__).parents[2] / "conf" / "telecom.yaml")


def full_batch(blocks: int, shape: Layout = SHAPE) -> dict[str, torch.Tensor]:
    """Blocks that are full: one customer each, every event at a time of its own, every query asked."""
    times = [START + day * DAY for day in range(64)]
    asked = [START + day * DAY + DAY // 2 for day in range(8)]
    return batch_of(shape, [customer(shape, times, asked, seed=n) for n in range(blocks)])


def counted_flops(shape: Layout, size: ModelSize, with_targets: bool) -> int:
    """What torch counts of learning from four blocks."""
    model, batch = LargeActionModel(shape, size, normaliser(shape)), full_batch(4, shape)
    assert batch["window"].shape[0] == 4
    # The CPU's own kernel of attention is not counted by torch; the plain products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        part = loss_of(model, batch, Period(0, 2**62, ("train",)), with_next=True, with_targets=with_targets)
        (part.next_sum + part.target_sums.sum()).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "target",
    [Target("reply"), Target("spent", "value"), Target("bought", "next", "item", 200)],
    ids=lambda target: target.kind,
)
def test_flops_are_those_that_torch_counts(target: Target) -> None:
    shape = dataclasses.replace(SHAPE, targets=(target,))
    size = ModelSize(d_model=64, n_layers=3, n_heads=4, dropout=0.0)
    whole, without = counted_flops(shape, size, True), counted_flops(shape, size, False)
    assert 4 * block_flops(shape, size) == pytest.approx(whole, rel=0.02)
    answers = 4 * (block_flops(shape, size) - block_flops(shape, size, with_targets=False))
    assert answers == pytest.approx(whole - without, rel=0.005)


def test_what_is_counted_is_not_learned() -> None:
    size = ModelSize(d_model=64, n_layers=3, n_heads=4, dropout=0.0)
    batch = full_batch(1)
    model = LargeActionModel(SHAPE, size, normaliser(SHAPE))
    with FlopCounterMode(display=False) as counter:
        model.decayed_counts(batch, query_event_mask(batch))
    linear = 2 * SHAPE.queries_per_block * len(SHAPE.aggregate_names)  # one answer's, of the aggregates
    once, learning = forward_flops(SHAPE, size), block_flops(SHAPE, size)
    assert 3 * once - learning == 2 * counter.get_total_flops() + linear
    assert counter.get_total_flops() > 0


def test_a_billion_parameters_take_no_memory_on_paper() -> None:
    model = model_on_paper(SHAPE, RECIPES["1b"].size)
    assert 0.9e9 < sum(p.numel() for p in model.parameters()) < 1.2e9
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_cost_follows_from_flops_peak_and_utilisation() -> None:
    size, passes = RECIPES["small"].size, Passes(1000, 200, 2, 3, 300)
    made = plan(SHAPE, size, passes, micro_batch_size=4, utilisation=0.5)
    assert (passes.pretraining, passes.answering) == (2 * 1000, 2 * 3 * 200)
    assert (made.tokens, made.slots) == (3200 * 64, 3200 * 72)
    learning = 2000 * block_flops(SHAPE, size, with_targets=False) + 1200 * block_flops(SHAPE, size)
    # Before the first epoch, and after each.
    judging = 3 * 300 * forward_flops(SHAPE, size, with_targets=False) + 4 * 200 * forward_flops(SHAPE, size)
    assert made.flops == pytest.approx(learning + judging, rel=1e-12)
    for need in made.needs:
        assert need.gpu_hours * 3600 * need.accelerator.flops * 0.5 == pytest.approx(made.flops)
        assert need.dollars == pytest.approx(need.gpu_hours * need.accelerator.dollars)
    half = plan(SHAPE, size, passes, micro_batch_size=4, utilisation=0.25)
    assert half.needs[0].gpu_hours == pytest.approx(2 * made.needs[0].gpu_hours)
    assert plan(SHAPE, size, passes, micro_batch_size=8).needs[0].memory_gib > made.needs[0].memory_gib
    together = plan(SHAPE, size, passes, micro_batch_size=4, gpus=8)
    assert together.needs[0].memory_gib - made.needs[0].memory_gib == pytest.approx(
        8 * made.parameters / 2**30
    )


def test_a_next_answer_keeps_a_logit_a_value() -> None:
    def memory(values: int) -> float:
        shape = dataclasses.replace(SHAPE, targets=(Target("bought", "next", "item", values),))
        made = plan(shape, RECIPES["small"].size, Passes(1000, 200, 1, 1, 1), micro_batch_size=4)
        return made.needs[0].memory_gib * 2**30 - 20 * made.parameters

    # Blocks, queries, values, bytes.
    assert memory(200) - memory(100) == pytest.approx(4 * 8 * 100 * 12)


@pytest.mark.parametrize(
    ("events", "queries", "blocks"),
    [
        (64, 8, 10),  # one block each
        (32, 4, 5),  # two customers share one
        (65, 8, 20),  # a second window, half of it seen before
        (96, 0, 20),
        (97, 0, 30),
        (8, 16, 20),  # the queries fill them first
    ],
)
def test_imagined_customers_fill_blocks(events: int, queries: int, blocks: int) -> None:
    passes = imagined_passes(SHAPE, 10, events, queries, 1, 1, 1)
    assert (passes.all_blocks, passes.queried_blocks) == (blocks, blocks if queries else 0)


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and what people see."""
    code = main(["plan", *flags])
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    return code, json.loads(last), "\n".join(lines)


def test_the_large_size_for_eighty_million_customers_is_cheaper_than_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, summary, text = planned(
        capsys, "--train", "--conf", CONF, "--size", "large", "--customers", "80_000_000", "--events", "500"
    )
    assert code == 0
    assert 30 < summary["gpu_hours"]["A100-40GB"] < summary["reference_gpu_hours"] == 145
    assert summary["gpu_hours"]["H100-80GB"] < summary["gpu_hours"]["A100-40GB"]
    assert summary["memory_gib"] < 40
    config = load_config(CONF)
    shape = layout_with(config, dict.fromkeys(config.categorical, 1000 + FIRST_VALUE))
    shape = dataclasses.replace(shape, block_events=512)
    size, blocks = RECIPES["large"].size, -(-80_000_000 * 500 // 512)
    parameters = sum(p.numel() for p in LargeActionModel(shape, size, Normaliser.neutral(shape)).parameters())
    # One pass without answers, fine-tuning and refit with them; a million blocks judge, twice each.
    flops = blocks * (block_flops(shape, size, with_targets=False) + 2 * block_flops(shape, size))
    flops += 2e6 * (forward_flops(shape, size, with_targets=False) + forward_flops(shape, size))
    told = {
        "parameters": parameters,
        "tokens": 3 * blocks * 512,
        "slots": 3 * blocks * (512 + 8),
        "flops": flops,
    }
    assert {name: summary[name] for name in told} == pytest.approx(told, rel=1e-12)
    for said in (
        "80,000,000 customers of 500 events",
        f"{parameters:,} parameters",
        f"{told['tokens']:,} tokens",
        f"{told['slots']:,} slots",
        f"{flops:.3g} FLOPs",
        "judging 4,000,000 blocks",
        "20% of the makers' peak",
        "an A100's was not measured",
        "32 blocks a GPU and step",
        "145",
        *(a.name for a in ACCELERATORS),
    ):
        assert said in text


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--conf", CONF], "the following arguments are required: --train"),
        (["--train", "--conf", CONF, "--size", "larg"], "unknown size 'larg': did you mean 'large'?"),
        (["--train", "--conf", CONF, "--customers", "5"], "--customers and --events go together"),
        (["--train", "--conf", CONF, "--customers", "0", "--events", "5"], "'0' is not a number from 1"),
        (["--train", "--conf", CONF, "--utilisation", "2"], "'2' is not a share between 0 and 1"),
        (
            ["--train", "--conf", CONF, "--size", "large", "--set", "model.d_model=64", "--set", "root=/x"],
            "--set model.d_model: --size large says that",
        ),
        (["--train", "--conf", CONF, "--queries", "5"], "--queries and --values go with --customers"),
        (
            ["--train", "--conf", CONF, "--set", "root=/nowhere"],
            "there is no table 'training_blocks' in /nowhere/tables",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], error: str
) -> None:
    code, summary, _ = planned(capsys, *flags)
    assert code == summary["exit_code"] == 2
    assert error in summary["error"]
