"""Which keys define tables and models, and how a difference is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lam_spark.config import Config
from lam_spark.config.definition import (
    Definition,
    differences,
    examples_definition,
    model_definition,
    scores_definition,
    sequences_definition,
    snapshot_definition,
)
from lam_spark.config.load import load_config
from tests.support.shop import settings

Define = Callable[[Config], Definition]

ALL: dict[str, Define] = {
    "sequences": sequences_definition,
    "examples": examples_definition,
    "snapshot": snapshot_definition,
    "model": model_definition,
    "scores": scores_definition,
}
LABELLED = {"examples", "snapshot", "model", "scores"}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small shop's configuration."""
    root = tmp_path_factory.mktemp("definition") / "shop"
    root.with_suffix(".yaml").write_text(yaml.safe_dump(settings(root)))
    return root.with_suffix(".yaml")


def changed(conf: Path, *overrides: str) -> dict[str, str]:
    """Definition -> keys that differ after a change."""
    before, after = load_config(conf), load_config(conf, overrides=overrides)
    keys = {name: differences(define(before), define(after)) for name, define in ALL.items()}
    return {name: text for name, text in keys.items() if text}


@pytest.mark.parametrize(
    ("override", "key", "where"),
    [
        ("targets.lapse.horizon_days=14", "targets.lapse.horizon_days", LABELLED),
        ("targets.lapse.every_days=14", "targets.lapse.every_days", LABELLED),
        ("targets.response.population='1 = 0'", "targets.response.population", LABELLED),
        ("targets.response.label='1 = 1'", "targets.response.label", LABELLED),
        ("split.test_start=2023-10-02", "split.test_start", LABELLED),
        ("targets.response.baseline_filter='1 = 1'", "targets.response.baseline_filter", {"examples"}),
        ("targets.items.top_k=2", "targets.items.top_k", {"snapshot", "model", "scores"}),
        ("fields.item.min_count=9", "fields.item.min_count", {"sequences"}),
        ("fields.item.role=who", "fields.item.role", {"snapshot", "model", "scores"}),
        ("fields.page={role: where, kind: categorical}", "fields.page (added)", {*LABELLED, "sequences"}),
        ("fields.note={role: where, kind: reference}", "fields.note (added)", {"examples"}),
        ("model.window_days=[7]", "model.window_days", {"snapshot"}),
        ("time_zone=UTC", "time_zone", {*LABELLED, "sequences"}),
        ("scoring.proposals=SELECT 1", "scoring.proposals", {"scores"}),
        ("scoring.target=lapse", "", set()),
        ("model.d_model=32", "", set()),
        ("training.finetune_epochs=9", "", set()),
        ("targets.response.description=answers", "", set()),
        ("targets.response.weight=2", "", set()),
        ("as_of=2023-12-21", "", set()),
    ],
)
def test_a_changed_key_is_named_where_it_matters(
    conf: Path, override: str, key: str, where: set[str]
) -> None:
    assert changed(conf, override) == dict.fromkeys(where, key)


def test_several_differences_are_named_and_a_target_of_one_side_only_once(conf: Path) -> None:
    added = "targets.again={description: again, population: 'true', outcome_filter: 'true', horizon_days: 7}"
    keys = changed(conf, added, "targets.lapse.horizon_days=7", "targets.lapse.negate=false")
    text = "targets.again (added), targets.lapse.horizon_days, targets.lapse.negate"
    assert keys == dict.fromkeys(LABELLED, text)
    define = model_definition
    with_target = define(load_config(conf, overrides=[added]))
    assert differences(with_target, define(load_config(conf))) == "targets.again (removed)"


def test_relative_dates_are_the_same_question_every_night(conf: Path) -> None:
    relative = ("split.train_start=-300d", "split.validation_start=-150d", "split.test_start=-60d")
    tonight, tomorrow = (
        load_config(conf, as_of=day, overrides=relative) for day in ("2023-12-19", "2023-12-20")
    )
    assert tonight.periods != tomorrow.periods
    assert examples_definition(tonight) == examples_definition(tomorrow)
    assert "split.test_start" in differences(
        examples_definition(load_config(conf)), examples_definition(tonight)
    )


def test_the_order_of_fields_matters_to_blocks_and_models(conf: Path) -> None:
    content = settings(Path("/unused"))
    fields = content["fields"]
    before = Config.model_validate(content)
    after = Config.model_validate(content | {"fields": {name: fields[name] for name in reversed(fields)}})
    assert differences(model_definition(before), model_definition(after)) == "fields (order)"
    assert differences(examples_definition(before), examples_definition(after)) == ""
