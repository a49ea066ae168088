"""`lam-spark plan --train`: estimated cost of a training, from the workspace's tables or from given numbers."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lam_spark.config import Config
from lam_spark.config.flags import FlagParser
from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError, did_you_mean
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training.cost import (
    RECIPES,
    REFERENCE_GPU_HOURS,
    UTILISATION,
    Passes,
    Plan,
    Recipe,
    estimated_passes,
    plan,
)
from lam_spark.training.spec import size_of
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout

_FLAGS = (
    "--train --conf FILE --set key=value --size NAME --customers N --events N --queries N --values N --gpus N "
    "--utilisation SHARE"
)

# Defaults for given numbers: labelled queries per customer, values per categorical field.
_QUERIES, _VALUES = 4, 1000
# Configuration keys that a named size replaces.
_RECIPE_KEYS = {
    *(
        f"model.{name}"
        for name in ("d_model", "n_layers", "n_heads", "dropout", "numeric_bins", "context_events")
    ),
    *(f"training.{name}" for name in ("pretrain_epochs", "finetune_epochs", "micro_batch_size")),
}


def plan_training(arguments: Sequence[str]) -> dict[str, Any]:
    """Print the plan for people and return it for machines.

    Raises:
        ConfigError: a flag or the configuration is wrong, or there are neither tables nor numbers to plan from.
    """
    flags = _parse(arguments)
    config = load_config(flags.conf, None, flags.set)
    recipe = _recipe(config, flags.size, flags.set)
    layout, passes, source = _work(config, recipe, flags)
    estimate = plan(layout, recipe.size, passes, recipe.micro_batch_size, flags.utilisation, flags.gpus)
    lines = [
        *_work_lines(estimate, layout, recipe, passes, source),
        "",
        *_cost_lines(estimate, flags.gpus),
        "",
        *_assumption_lines(estimate, layout, recipe, flags.utilisation),
        "",
    ]
    print("\n".join(lines))
    return {
        "size": flags.size or "as configured",
        "parameters": estimate.parameters,
        "tokens": estimate.tokens,
        "slots": estimate.slots,
        "flops": estimate.flops,
        "utilisation": flags.utilisation,
        "gpu_hours": {need.accelerator.name: round(need.gpu_hours, 2) for need in estimate.requirements},
        "memory_gib": round(estimate.requirements[0].memory_gib, 2),
        "dollars": {need.accelerator.name: round(need.dollars, 2) for need in estimate.requirements},
        "reference_gpu_hours": REFERENCE_GPU_HOURS,
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = FlagParser("lam-spark plan", _FLAGS)
    parser.add_argument("--train", action="store_true", required=True, help="plan the training (required)")
    parser.add_argument("--conf", required=True, metavar="FILE", help="YAML file of the data set")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    parser.add_argument(
        "--size", metavar="NAME", help=f"use a named size instead of the configured one: {', '.join(RECIPES)}"
    )
    parser.add_argument("--customers", type=_count, help="number of customers, instead of the tables")
    parser.add_argument("--events", type=_count, help="events per customer")
    parser.add_argument("--queries", type=_count, help=f"labelled queries per customer (default {_QUERIES})")
    parser.add_argument(
        "--values",
        type=_count,
        help=f"values per categorical field, without a vocabulary (default {_VALUES})",
    )
    parser.add_argument("--gpus", type=_count, default=8, help="number of GPUs (default 8)")
    parser.add_argument(
        "--utilisation",
        type=_share,
        default=UTILISATION,
        help=f"share of the GPUs' peak FLOP/s (default {UTILISATION})",
    )
    flags = parser.parse_args(list(arguments))
    if (flags.customers is None) != (flags.events is None):
        parser.error("expected --customers and --events together")
    if flags.customers is None and (flags.queries or flags.values):
        parser.error("expected --queries and --values only with --customers and --events")
    flags.queries, flags.values = flags.queries or _QUERIES, flags.values or _VALUES
    return flags


def _count(text: str) -> int:
    if not text.replace("_", "").isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, found {text!r}")
    return share


def _recipe(config: Config, name: str | None, overrides: Sequence[str]) -> Recipe:
    if name is None:
        model, training = config.model, config.training
        epochs = (training.pretrain_epochs, training.finetune_epochs)
        return Recipe(size_of(config), model.context_events, *epochs, training.micro_batch_size)
    if name not in RECIPES:
        names = f"expected {', '.join(RECIPES)}"
        raise ConfigError(f"unknown size {name!r}: {did_you_mean(name, RECIPES, names)}")
    replaced = sorted(
        {key for key, _, _ in (override.partition("=") for override in overrides)} & _RECIPE_KEYS
    )
    if replaced:
        raise ConfigError(
            f"--set {', '.join(replaced)} has no effect with --size {name}: leave out one of them"
        )
    return RECIPES[name]


def _work(config: Config, recipe: Recipe, flags: argparse.Namespace) -> tuple[Layout, Passes, str]:
    """Layout, passes, and a description of where they come from."""
    tables = Path(config.workspace) / "tables"
    epochs = (recipe.pretrain_epochs, recipe.finetune_epochs, config.training.validation_blocks)
    if flags.customers is not None:
        has_vocabulary = (tables / "vocabulary").exists()
        sizes = dict.fromkeys(config.categorical, flags.values + FIRST_VALUE)
        layout = _layout_of_tables(config) if has_vocabulary else layout_with(config, sizes)
        layout = dataclasses.replace(layout, block_events=recipe.context_events)
        passes = estimated_passes(layout, flags.customers, flags.events, flags.queries, *epochs)
        source = (
            f"{flags.customers:,} customers of {flags.events:,} events and {flags.queries:,} labelled queries"
        )
        values = "" if has_vocabulary else f"; {flags.values:,} values a categorical field"
        return layout, passes, f"{source}{values}"
    blocks = tables / "training_blocks"
    if not blocks.exists():
        raise ConfigError(
            f"expected a table 'training_blocks' in {tables}, found none: run the stage 'snapshot' first, or give "
            "numbers with --customers N --events N"
        )
    return _layout_of_tables(config), _passes_of_tables(config, epochs), f"the table {blocks}"


def _layout_of_tables(config: Config) -> Layout:
    from lam_spark.training_data.columns import layout_of

    return layout_of(config, _tables(config).read("vocabulary"))


def _passes_of_tables(config: Config, epochs: tuple[int, int, int]) -> Passes:
    from lam_spark.training_data.stage import QUERIED

    counts = _tables(config).read("training_blocks").groupBy("block_kind").count()
    blocks = {row["block_kind"]: row["count"] for row in counts.toLocalIterator()}
    return Passes(sum(blocks.values()), blocks.get(QUERIED, 0), *epochs)


def _tables(config: Config) -> Any:
    # Imported late: without tables no JVM starts.
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables.store import Tables

    return Tables(spark_session(config.spark), config.workspace.absolute() / "tables")


def _work_lines(estimate: Plan, layout: Layout, recipe: Recipe, passes: Passes, source: str) -> list[str]:
    size = recipe.size
    validating = passes.validating_next + passes.validating_targets
    return [
        f"model        {size.d_model} wide, {size.n_layers} layers, {size.n_heads} heads: "
        f"{estimate.parameters:,} parameters",
        f"data         {source}",
        f"             = {passes.all_blocks:,} blocks of {layout.block_events} events and {layout.queries_per_block} "
        f"queries, {passes.queried_blocks:,} of them with queries",
        f"passes       pre-training {passes.pretrain_epochs}, fine-tuning {passes.finetune_epochs}, refit "
        f"{passes.finetune_epochs}; validation on {validating:,} blocks: {estimate.flops:.3g} FLOPs",
        f"             = {estimate.tokens:,} tokens (an event each), {estimate.slots:,} slots (an event or a query "
        "each)",
    ]


def _cost_lines(estimate: Plan, gpus: int) -> list[str]:
    lines = [f"{'':12} {'GPU-hours':>10} {f'hours on {gpus}':>12} {'memory a GPU':>18} {'dollars':>10}"]
    for need in estimate.requirements:
        kind, hours = need.accelerator, need.gpu_hours
        mark = " !" if need.memory_gib > kind.memory_gib else ""
        memory = f"{need.memory_gib:.1f} of {kind.memory_gib} GiB{mark}"
        lines.append(
            f"{kind.name:12} {hours:>10,.1f} {hours / gpus:>12,.1f} {memory:>18} {need.dollars:>10,.0f}"
        )
    return [*lines, f"{'reference':12} {REFERENCE_GPU_HOURS:>10,.1f} used by the reference system"]


def _assumption_lines(estimate: Plan, layout: Layout, recipe: Recipe, utilisation: float) -> list[str]:
    peaks = ", ".join(f"{need.accelerator.flops / 1e12:.0f}" for need in estimate.requirements)
    prices = ", ".join(f"{need.accelerator.dollars:.2f}" for need in estimate.requirements)
    sizes = ", ".join(f"{value:,}" for value in layout.sizes)
    return [
        f"assumed      bfloat16, compiled; {utilisation:.0%} of the makers' peak ({peaks} TFLOP/s) on every GPU:",
        f"             {UTILISATION:.0%} follows from 23 % measured on an H100 with 55 million parameters, less the",
        "             cost of parts added since; an A100 was not measured;",
        f"             {recipe.micro_batch_size} blocks a GPU and step;",
        "             every event has a next timestamp group, validation reads every block, no early stopping: an",
        "             upper bound;",
        f"             ids in use, by field: {sizes};",
        f"             dollars an hour: {prices} (list prices of 2025); reading, checkpoints and network not counted",
    ]
