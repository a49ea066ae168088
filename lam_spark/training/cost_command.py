"""`lam-spark plan --train`: what the training of a configuration would cost, from its tables or from numbers given."""

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
    imagined_passes,
    plan,
)
from lam_spark.training.spec import size_of
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout

_FLAGS = (
    "--train --conf FILE --set key=value --size NAME --customers N --events N --queries N --values N --gpus N "
    "--utilisation SHARE"
)

# Of customers who are only given as a number.
_QUERIES, _VALUES = 4, 1000
# Keys in whose place a named size stands.
_OF_A_RECIPE = {
    *(f"model.{name}" for name in ("width", "layers", "heads", "dropout", "numeric_bins", "context_events")),
    *(f"training.{name}" for name in ("pretrain_epochs", "finetune_epochs", "micro_batch_size")),
}


def plan_training(arguments: Sequence[str]) -> dict[str, Any]:
    """Print the plan for people; returns it for machines.

    Raises:
        ConfigError: a wrong flag or configuration, or neither tables nor numbers to plan from.
    """
    flags = _parse(arguments)
    config = load_config(flags.conf, None, flags.set)
    recipe = _recipe(config, flags.size, flags.set)
    layout, passes, source = _work(config, recipe, flags)
    made = plan(layout, recipe.size, passes, recipe.micro_batch_size, flags.utilisation, flags.gpus)
    for line in _told(made, layout, recipe, passes, source, flags):
        print(line)
    return {
        "size": flags.size or "as configured",
        "parameters": made.parameters,
        "tokens": made.tokens,
        "slots": made.slots,
        "flops": made.flops,
        "utilisation": flags.utilisation,
        "gpu_hours": {need.accelerator.name: round(need.gpu_hours, 2) for need in made.needs},
        "memory_gib": round(made.needs[0].memory_gib, 2),
        "dollars": {need.accelerator.name: round(need.dollars, 2) for need in made.needs},
        "reference_gpu_hours": REFERENCE_GPU_HOURS,
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = FlagParser("lam-spark plan", _FLAGS)
    parser.add_argument("--train", action="store_true", required=True, help="plan the training")
    parser.add_argument("--conf", required=True, metavar="FILE", help="YAML file of the data set")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one key")
    parser.add_argument(
        "--size", metavar="NAME", help=f"in place of the configured size: {', '.join(RECIPES)}"
    )
    parser.add_argument("--customers", type=_count, help="in place of the tables' own")
    parser.add_argument("--events", type=_count, help="a customer")
    parser.add_argument("--queries", type=_count, help=f"labelled, a customer ({_QUERIES})")
    parser.add_argument(
        "--values", type=_count, help=f"a categorical field, where no table tells ({_VALUES})"
    )
    parser.add_argument("--gpus", type=_count, default=8, help="that share the work (8)")
    parser.add_argument(
        "--utilisation", type=_share, default=UTILISATION, help=f"of their peak ({UTILISATION})"
    )
    flags = parser.parse_args(list(arguments))
    if (flags.customers is None) != (flags.events is None):
        parser.error("--customers and --events go together")
    if flags.customers is None and (flags.queries or flags.values):
        parser.error("--queries and --values go with --customers and --events")
    flags.queries, flags.values = flags.queries or _QUERIES, flags.values or _VALUES
    return flags


def _count(text: str) -> int:
    if not text.replace("_", "").isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _recipe(config: Config, name: str | None, overrides: Sequence[str]) -> Recipe:
    if name is None:
        model, training = config.model, config.training
        epochs = (training.pretrain_epochs, training.finetune_epochs)
        return Recipe(size_of(config), model.context_events, *epochs, training.micro_batch_size)
    if name not in RECIPES:
        every = f"expected {', '.join(RECIPES)}"
        raise ConfigError(f"unknown size {name!r}: {did_you_mean(name, RECIPES, every)}")
    idle = sorted({key for key, _, _ in (override.partition("=") for override in overrides)} & _OF_A_RECIPE)
    if idle:
        raise ConfigError(f"--set {', '.join(idle)}: --size {name} says that; leave one of them out")
    return RECIPES[name]


def _work(config: Config, recipe: Recipe, flags: argparse.Namespace) -> tuple[Layout, Passes, str]:
    """Layout, passes, and where they are from."""
    tables = Path(config.workspace) / "tables"
    how_often = (recipe.pretrain_epochs, recipe.finetune_epochs, config.training.validation_blocks)
    if flags.customers is not None:
        known = (tables / "vocabulary").exists()
        sizes = dict.fromkeys(config.categorical, flags.values + FIRST_VALUE)
        layout = _layout_of_tables(config) if known else layout_with(config, sizes)
        layout = dataclasses.replace(layout, block_events=recipe.context_events)
        passes = imagined_passes(layout, flags.customers, flags.events, flags.queries, *how_often)
        source = (
            f"{flags.customers:,} customers of {flags.events:,} events and {flags.queries:,} labelled queries"
        )
        return layout, passes, source if known else f"{source}; {flags.values:,} values a categorical field"
    if not (tables / "training_blocks").exists():
        raise ConfigError(
            f"there is no table 'training_blocks' in {tables}: run the stage 'snapshot' first, or say what to plan for "
            "with --customers N --events N"
        )
    return (
        _layout_of_tables(config),
        _passes_of_tables(config, how_often),
        f"the table {tables / 'training_blocks'}",
    )


def _layout_of_tables(config: Config) -> Layout:
    from lam_spark.training_data.columns import layout_of

    return layout_of(config, _tables(config).read("vocabulary"))


def _passes_of_tables(config: Config, how_often: tuple[int, int, int]) -> Passes:
    from lam_spark.training_data.stage import QUERIED

    counted = _tables(config).read("training_blocks").groupBy("block_kind").count()
    blocks = {row["block_kind"]: row["count"] for row in counted.toLocalIterator()}
    return Passes(sum(blocks.values()), blocks.get(QUERIED, 0), *how_often)


def _tables(config: Config) -> Any:
    # Imported late: with numbers given and no tables, no JVM starts.
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables.store import Tables

    return Tables(spark_session(config.spark), config.workspace.absolute() / "tables")


def _told(
    made: Plan,
    layout: Layout,
    recipe: Recipe,
    passes: Passes,
    source: str,
    flags: argparse.Namespace,
) -> list[str]:
    size, sizes = recipe.size, ", ".join(f"{value:,}" for value in layout.sizes)
    lines = [
        f"model        {size.d_model} wide, {size.n_layers} layers, {size.n_heads} heads: {made.parameters:,} parameters",
        f"data         {source}",
        f"             = {passes.all_blocks:,} blocks of {layout.block_events} events and {layout.queries_per_block} "
        f"queries, {passes.queried_blocks:,} of them with queries",
        f"passes       pre-training {passes.pretrain_epochs}, fine-tuning {passes.finetune_epochs}, refit "
        f"{passes.finetune_epochs}; judging {passes.validating_next + passes.validating_targets:,} blocks: "
        f"{made.flops:.3g} FLOPs",
        f"             = {made.tokens:,} tokens (an event each), {made.slots:,} slots (an event or a query each)",
        "",
        f"{'':12} {'GPU-hours':>10} {f'hours on {flags.gpus}':>12} {'memory a GPU':>18} {'dollars':>10}",
    ]
    for need in made.needs:
        kind, hours = need.accelerator, need.gpu_hours
        full = " !" if need.memory_gib > kind.memory_gib else ""
        fits = f"{need.memory_gib:.1f} of {kind.memory_gib} GiB{full}"
        lines.append(
            f"{kind.name:12} {hours:>10,.1f} {hours / flags.gpus:>12,.1f} {fits:>18} {need.dollars:>10,.0f}"
        )
    peaks = ", ".join(f"{need.accelerator.flops / 1e12:.0f}" for need in made.needs)
    prices = ", ".join(f"{need.accelerator.dollars:.2f}" for need in made.needs)
    return [
        *lines,
        f"{'reference':12} {REFERENCE_GPU_HOURS:>10,.1f} what the system that this one follows took",
        "",
        f"assumed      bfloat16, compiled; {flags.utilisation:.0%} of the makers' peak ({peaks} TFLOP/s);",
        f"             on every kind the same share: {UTILISATION:.0%} is an H100's 23 % at 55 million parameters,",
        "             less what models compute besides since then; an A100's was not measured;",
        f"             {recipe.micro_batch_size} blocks a GPU and step;",
        "             every event predicts a next moment, every block judges, no early stop: dearer than it will be;",
        f"             ids in use, by field: {sizes};",
        f"             dollars an hour: {prices} (list prices of 2025); reading, checkpoints and network not counted",
        "",
    ]
