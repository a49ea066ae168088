"""Estimated cost: compared with the FLOPs that torch counts, and with the reference system for the large size."""

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
    estimated_passes,
    forward_flops,
    meta_model,
    plan,
)
from lam_spark.training.losses import Period, loss_of
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout, Target
from tests.support.tiny import DAY, START, batch_of, customer, layout, normaliser

SHAPE = layout(block_events=64, queries_per_block=8, sizes=(40, 300))
CONF = str(Path(__file__).parents[2] / "conf" / "telecom.yaml")


def full_batch(blocks: int, shape: Layout = SHAPE) -> dict[str, torch.Tensor]:
    """Full blocks of one customer each, without events at the same time."""
    times = [START + day * DAY for day in range(64)]
    queries = [START + day * DAY + DAY // 2 for day in range(8)]
    return batch_of(shape, [customer(shape, times, queries, seed=n) for n in range(blocks)])


def counted_flops(shape: Layout, size: ModelSize, with_targets: bool) -> int:
    """FLOPs that torch counts for training on four blocks."""
    model, batch = LargeActionModel(shape, size, normaliser(shape)), full_batch(4, shape)
    assert batch["window"].shape[0] == 4
    # torch does not count the CPU's attention kernel, but it counts plain matrix products.
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
    of_targets = 4 * (block_flops(shape, size) - block_flops(shape, size, with_targets=False))
    assert of_targets == pytest.approx(whole - without, rel=0.005)


def test_decayed_counts_and_aggregates_have_no_backward_pass() -> None:
    size = ModelSize(d_model=64, n_layers=3, n_heads=4, dropout=0.0)
    batch = full_batch(1)
    model = LargeActionModel(SHAPE, size, normaliser(SHAPE))
    with FlopCounterMode(display=False) as counter:
        model.decayed_counts(batch, query_event_mask(batch))
    linear = 2 * SHAPE.queries_per_block * len(SHAPE.aggregate_names)  # one output, from the aggregates
    forward, training = forward_flops(SHAPE, size), block_flops(SHAPE, size)
    assert 3 * forward - training == 2 * counter.get_total_flops() + linear
    assert counter.get_total_flops() > 0


def test_a_model_of_a_billion_parameters_is_planned_without_memory() -> None:
    model = meta_model(SHAPE, RECIPES["1b"].size)
    assert 0.9e9 < sum(p.numel() for p in model.parameters()) < 1.2e9
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_cost_follows_from_flops_peak_and_utilisation() -> None:
    size, passes = RECIPES["small"].size, Passes(1000, 200, 2, 3, 300)
    estimate = plan(SHAPE, size, passes, micro_batch_size=4, utilisation=0.5)
    assert (passes.pretraining, passes.fine_tuning) == (2 * 1000, 2 * 3 * 200)
    assert (estimate.tokens, estimate.slots) == (3200 * 64, 3200 * 72)
    training = 2000 * block_flops(SHAPE, size, with_targets=False) + 1200 * block_flops(SHAPE, size)
    # Validation runs before the first epoch and after each.
    validation = 3 * 300 * forward_flops(SHAPE, size, with_targets=False) + 4 * 200 * forward_flops(
        SHAPE, size
    )
    assert estimate.flops == pytest.approx(training + validation, rel=1e-12)
    for need in estimate.requirements:
        assert need.gpu_hours * 3600 * need.accelerator.flops * 0.5 == pytest.approx(estimate.flops)
        assert need.dollars == pytest.approx(need.gpu_hours * need.accelerator.dollars)
    half = plan(SHAPE, size, passes, micro_batch_size=4, utilisation=0.25)
    assert half.requirements[0].gpu_hours == pytest.approx(2 * estimate.requirements[0].gpu_hours)
    larger = plan(SHAPE, size, passes, micro_batch_size=8)
    memory = estimate.requirements[0].memory_gib
    assert larger.requirements[0].memory_gib > memory
    eight_gpus = plan(SHAPE, size, passes, micro_batch_size=4, gpus=8)
    assert eight_gpus.requirements[0].memory_gib - memory == pytest.approx(8 * estimate.parameters / 2**30)


def test_a_next_target_needs_memory_for_a_logit_per_value() -> None:
    def memory(values: int) -> float:
        shape = dataclasses.replace(SHAPE, targets=(Target("bought", "next", "item", values),))
        estimate = plan(shape, RECIPES["small"].size, Passes(1000, 200, 1, 1, 1), micro_batch_size=4)
        return estimate.requirements[0].memory_gib * 2**30 - 20 * estimate.parameters

    # Blocks, queries, values, bytes.
    assert memory(200) - memory(100) == pytest.approx(4 * 8 * 100 * 12)


@pytest.mark.parametrize(
    ("events", "queries", "blocks"),
    [
        (64, 8, 10),  # one block each
        (32, 4, 5),  # two customers share one
        (65, 8, 20),  # a second window, half of it repeated
        (96, 0, 20),
        (97, 0, 30),
        (8, 16, 20),  # queries need more blocks than events
    ],
)
def test_estimated_passes_fill_blocks(events: int, queries: int, blocks: int) -> None:
    passes = estimated_passes(SHAPE, 10, events, queries, 1, 1, 1)
    assert (passes.all_blocks, passes.queried_blocks) == (blocks, blocks if queries else 0)


def run_plan(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and printed text."""
    code = main(["plan", *flags])
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    return code, json.loads(last), "\n".join(lines)


def test_the_large_size_for_eighty_million_customers_costs_less_than_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, summary, text = run_plan(
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
    # One pass without targets, fine-tuning and refit with targets; a million blocks validate, twice each.
    flops = blocks * (block_flops(shape, size, with_targets=False) + 2 * block_flops(shape, size))
    flops += 2e6 * (forward_flops(shape, size, with_targets=False) + forward_flops(shape, size))
    expected = {
        "parameters": parameters,
        "tokens": 3 * blocks * 512,
        "slots": 3 * blocks * (512 + 8),
        "flops": flops,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    for part in (
        "80,000,000 customers of 500 events",
        f"{parameters:,} parameters",
        f"{expected['tokens']:,} tokens",
        f"{expected['slots']:,} slots",
        f"{flops:.3g} FLOPs",
        "validation on 4,000,000 blocks",
        "20% of the makers' peak",
        "an A100 was not measured",
        "32 blocks a GPU and step",
        "145",
        *(a.name for a in ACCELERATORS),
    ):
        assert part in text


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--conf", CONF], "the following arguments are required: --train"),
        (["--train", "--conf", CONF, "--size", "larg"], "unknown size 'larg': did you mean 'large'?"),
        (["--train", "--conf", CONF, "--customers", "5"], "expected --customers and --events together"),
        (
            ["--train", "--conf", CONF, "--customers", "0", "--events", "5"],
            "expected a whole number from 1, found '0'",
        ),
        (
            ["--train", "--conf", CONF, "--utilisation", "2"],
            "expected a share above 0 and up to 1, found '2'",
        ),
        (
            ["--train", "--conf", CONF, "--size", "large", "--set", "model.d_model=64", "--set", "root=/x"],
            "--set model.d_model has no effect with --size large: leave out one of them",
        ),
        (
            ["--train", "--conf", CONF, "--queries", "5"],
            "expected --queries and --values only with --customers and --events",
        ),
        (
            ["--train", "--conf", CONF, "--set", "root=/nowhere"],
            "expected a table 'training_blocks' in /nowhere/tables, found none: run the stage 'snapshot' first, or "
            "give numbers with --customers N --events N",
        ),
    ],
)
def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str], error: str) -> None:
    code, summary, _ = run_plan(capsys, *flags)
    assert code == summary["exit_code"] == 2
    assert error in summary["error"]
