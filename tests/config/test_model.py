"""Every key of the section `model` is used."""

from __future__ import annotations

import dataclasses

from lam_spark.config import ModelConfig
from lam_spark.config.load import load_config
from lam_spark.training.spec import size_of
from lam_spark.training_data.columns import layout_with
from tests.config.shipped import SHIPPED


def test_every_key_of_the_model_reaches_the_transformer_or_its_blocks() -> None:
    # Each value differs from its default.
    model = {
        "d_model": 24,
        "n_layers": 5,
        "n_heads": 3,
        "dropout": 0.25,
        "context_events": 100,
        "count_by": "touchpoint",
        "window_days": (3, 9),
        "numeric_bins": 6,
        "half_life_days": (2.0, 8.0),
    }
    defaults = ModelConfig().model_dump()
    assert {name for name, value in model.items() if value != defaults[name]} == set(defaults)
    overrides = [f"model.{name}={list(v) if isinstance(v, tuple) else v}" for name, v in model.items()]
    config = load_config(SHIPPED, overrides=overrides)
    size = dataclasses.asdict(size_of(config))
    layout = layout_with(config, dict.fromkeys(config.categorical, 9))
    shapes = {
        "context_events": layout.block_events,
        "count_by": layout.count_by,
        "window_days": layout.window_days,
        "half_life_days": layout.half_life_days,
    }
    assert size | shapes == model
