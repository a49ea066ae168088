"""The configuration file: what is refused, in which words, and what an override does."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lam_spark.config import Config, ModelConfig
from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError
from lam_spark.training.spec import size_of
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout, Target

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the shipped configuration with one change."""

    def write(change: Change) -> Path:
        content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
        change(content)
        file = tmp_path / "changed.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    return write


def refusal(file: Path, *overrides: str) -> str:
    """The message with which the file is refused, without its first line."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=overrides)
    return str(caught.value).removeprefix(f"{file} is not a valid configuration:\n")


def test_the_shipped_configuration_loads() -> None:
    config = load_config(SHIPPED)
    assert config.name == "complete_journey"
    assert config.as_of == dt.date(2017, 12, 28)
    assert set(config.categorical) | set(config.numeric) | set(config.reference) == set(config.fields)
    assert config.inputs["products"].path == "out/complete_journey/raw/products.parquet"


def test_what_yaml_takes_for_a_number_may_stand_for_text(changed: Callable[[Change], Path]) -> None:
    def plain(content: dict[str, Any]) -> None:
        content["targets"]["coupon_redemption"]["horizon_days"] = 28
        content["inputs"]["campaigns"]["options"] = {"header": True, "maxColumns": 40, "sep": ";"}

    config = load_config(changed(plain), overrides=["spark.settings={spark.task.cpus: 2}"])
    assert config.targets["coupon_redemption"].horizon_days == "28"
    assert config.inputs["campaigns"].options == {"header": "true", "maxColumns": "40", "sep": ";"}
    assert config.spark.settings == {"spark.task.cpus": "2"}


def test_the_variables_that_hold_secrets_are_known(changed: Callable[[Change], Path]) -> None:
    crm = {
        "format": "jdbc",
        "options": {"url": "jdbc:postgresql://crm/crm", "dbtable": "people"},
        "secrets": {"password": "CRM_PASSWORD"},
        "columns": "person STRING",
    }
    file = changed(lambda c: c["inputs"].update(crm=crm))
    assert load_config(file).secret_variables == {"LAM_SPARK_SECRET", "CRM_PASSWORD"}


def test_an_unknown_top_level_key_names_the_nearest(changed: Callable[[Change], Path]) -> None:
    file = changed(lambda c: c.update(trainning={}))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == (
        f"{file} is not a valid configuration:\n  - unknown key 'trainning': did you mean 'training'?"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fields.item.knd=categorical", "unknown key 'fields.item.knd': did you mean 'kind'?"),
        ("channels.mailing.grian=campaigns", "unknown key 'channels.mailing.grian': did you mean 'grain'?"),
        ("training.micro_batch=2", "unknown key 'training.micro_batch': did you mean 'micro_batch_size'?"),
        ("inputs.products.formt=csv", "unknown key 'inputs.products.formt': did you mean 'format'?"),
        (
            "fields.item.value_embeddings={select: a, dim: 2, path: b}",
            "unknown key 'fields.item.value_embeddings.path': expected one of dim, select",
        ),
        ("fetch.argument=1", "unknown key 'fetch.argument': did you mean 'arguments'?"),
        (
            "split.zzzz=1",
            "unknown key 'split.zzzz': expected one of test_start, train_start, validation_start",
        ),
    ],
)
def test_an_unknown_nested_key_names_the_nearest(override: str, message: str) -> None:
    assert refusal(SHIPPED, override) == f"  - {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.world_size=many",
            "training.world_size: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        ),
        ("model.dropout=1", "model.dropout: Input should be less than 1, got 1"),
        (
            "fields.item.kind=word",
            "fields.item.kind: Input should be 'categorical', 'numeric' or 'reference'",
        ),
        (
            "fields.sales_value.value_embeddings={select: a, dim: 2}",
            "fields.sales_value: value_embeddings are for the values of categorical fields, this one is numeric",
        ),
        (
            "fields.item.value_embeddings={select: a, dim: 0}",
            "fields.item.value_embeddings.dim: Input should be greater than",
        ),
        ("inputs.products=[1]", "inputs.products: Input should be a valid dictionary"),
        (
            "time_zone=Mars/Base",
            "time_zone: expected an IANA time zone such as Europe/Lisbon, got 'Mars/Base'",
        ),
        (
            "scoring.target=coupon",
            "scoring.target 'coupon' is not declared: did you mean 'coupon_redemption'?",
        ),
        ("model.count_by=actoin", "model.count_by 'actoin' is not declared: did you mean 'action'?"),
        (
            "channels.mailing.grain=campains",
            "channels.mailing.grain 'campains' is not declared: did you mean 'campaigns'?",
        ),
        (
            "fields.customer_id={role: who, kind: reference}",
            "fields ['customer_id'] are reserved column names",
        ),
        ("fields.Item={role: what, kind: numeric}", "fields.Item: String should match pattern"),
        (
            "split.validation_start=2017-11-01",
            "split: expected train_start < validation_start < test_start",
        ),
        ("split.validation_start=2017-02-01", "split: expected train_start < validation_start < test_start"),
        ("split.validation_start=2017-10-02", "split: expected train_start < validation_start < test_start"),
        *(
            (
                f"targets.coupon_redemption.horizon_days='{days}'",
                f"targets.coupon_redemption.horizon_days: expected a whole number of days from 1, got '{days}'",
            )
            for days in ("1.5", "0.5", "0", "-28", "nan")
        ),
        ("model.d_model=36", "model: d_model 36 must be a multiple of 2 x n_heads (8)"),
        ("sequences.max_events=100", "sequences.max_events must not be below model.context_events"),
        ("snapshot.files=1", "snapshot.files 1 must not be below training.world_size 2"),
        ("training.launcher=in_process", "training: launcher in_process runs one rank, world_size is 2"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(override: str, message: str) -> None:
    assert refusal(SHIPPED, override).startswith(f"  - {message}")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"options": {"url": "jdbc:x:y"}},
            "a jdbc input has no path; its options name url, and dbtable or query",
        ),
        (
            {"options": {"url": "jdbc:x:y", "dbtable": "t", "password": "hush"}},
            "a password may not stand in the",
        ),
        (
            {"options": {"url": "jdbc:x:y?user=me&Password=hush", "dbtable": "t"}},
            "a password may not stand in",
        ),
        (
            {"options": {"url": "jdbc:x://y:1/z;trustStorePassword=hush", "dbtable": "t"}},
            "a password may not stand in",
        ),
        (
            {"options": {"url": "jdbc:databricks://y:443;UID=token;PWD=hush", "dbtable": "t"}},
            "a password may not stand in",
        ),
        (
            {"options": {"url": "jdbc:x:y", "dbtable": "t", "accessToken": "hush"}},
            "a password may not stand in",
        ),
        (
            {"options": {"url": "jdbc:mysql://me:hush@y:1/z", "dbtable": "t"}},
            "a password may not stand in",
        ),
        (
            {"options": {"url": "jdbc:oracle:thin:me/hush@//y:1/z", "dbtable": "t"}},
            "a password may not stand in",
        ),
        (
            {"format": "csv", "path": "x.csv", "secrets": {"password": "CRM"}},
            "secrets are for jdbc; other inputs",
        ),
        (
            {"format": "csv", "path": "x.csv", "watermark": "id"},
            "watermark is for jdbc: files and Delta tables know",
        ),
    ],
)
def test_a_wrong_database_is_refused_without_its_password(
    changed: Callable[[Change], Path], section: dict[str, Any], message: str
) -> None:
    given = {"format": "jdbc", "columns": "id BIGINT", **section}
    told = refusal(changed(lambda c: c["inputs"].update(crm=given)))
    assert told.startswith(f"  - inputs.crm: {message}")
    assert "hush" not in told


@pytest.mark.parametrize("name", ["query_kind", "label_kind", "event_amount", "event_item"])
def test_a_field_may_not_be_called_what_a_block_calls_another(
    changed: Callable[[Change], Path], name: str
) -> None:
    fields = {"amount": "numeric", "item": "categorical", name: "numeric"}
    told = refusal(
        changed(lambda c: c["fields"].update({n: {"role": "what", "kind": k} for n, k in fields.items()}))
    )
    assert f"fields ['{name}'] are reserved column names" in told


@pytest.mark.parametrize(
    "url",
    [
        "jdbc:postgresql://db.shop:5432/crm?user=me@shop&ssl=true",
        "jdbc:oracle:thin:@//db.shop:1521/crm",
        "jdbc:mysql://me@db.shop:3306/crm",
    ],
)
def test_the_place_of_a_database_is_no_password(changed: Callable[[Change], Path], url: str) -> None:
    crm = {"format": "jdbc", "columns": "id BIGINT", "options": {"url": url, "dbtable": "t"}}
    assert load_config(changed(lambda c: c["inputs"].update(crm=crm))).inputs["crm"].options["url"] == url


@pytest.mark.parametrize(
    "key",
    ["spark.hadoop.fs.s3a.secret.key", "spark.ssl.keyPassword", "fs.azure.account.key.mine.dfs", "a.token"],
)
def test_a_secret_among_sparks_settings_is_refused(changed: Callable[[Change], Path], key: str) -> None:
    told = refusal(changed(lambda c: c.update(spark={"settings": {key: "x"}})))
    assert f"{key}: a secret may not stand in the file" in told


def test_a_missing_key_is_named(changed: Callable[[Change], Path]) -> None:
    assert refusal(changed(lambda c: c.pop("as_of"))) == "  - missing key 'as_of'"
    assert refusal(changed(lambda c: c["split"].pop("test_start"))) == "  - missing key 'split.test_start'"


def test_every_problem_is_told_at_once(changed: Callable[[Change], Path]) -> None:
    told = refusal(changed(lambda c: c.pop("as_of")), "rot=x", "training.world_size=0")
    assert told.count("\n") == 2
    assert "missing key 'as_of'" in told
    assert "unknown key 'rot': did you mean 'root'?" in told
    assert "training.world_size: " in told


def test_as_of_is_replaced_and_must_be_a_date() -> None:
    assert load_config(SHIPPED, as_of="2017-11-30").as_of == dt.date(2017, 11, 30)
    with pytest.raises(ConfigError, match=r"  - as_of: .*, got '2017-13-01'"):
        load_config(SHIPPED, as_of="2017-13-01")


def test_set_replaces_nested_keys_and_makes_sections() -> None:
    config = load_config(SHIPPED, overrides=["training.world_size=1", "spark.settings.a=b", "root=/tmp/x"])
    assert config.training.world_size == 1
    assert config.spark.settings == {"a": "b"}
    assert config.inputs["products"].path == "/tmp/x/raw/products.parquet"


def test_set_splits_at_the_first_equals_sign_only() -> None:
    config = load_config(SHIPPED, overrides=["targets.coupon_redemption.outcome_filter=action = 'a=b'"])
    assert config.targets["coupon_redemption"].outcome_filter == "action = 'a=b'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name.first=x", "--set name.first: name holds a value, not a section"),
        ("training.world_size.of=1", "--set training.world_size.of: world_size holds a value, not a section"),
        ("training", "expected --set key=value with a dotted key, got 'training'"),
        ("=1", "expected --set key=value with a dotted key, got '=1'"),
        ("notes=[1", "--set notes: '[1' is not a YAML value"),
    ],
)
def test_a_malformed_set_is_refused(override: str, message: str) -> None:
    overrides = ["training.world_size=1", override]
    with pytest.raises(ConfigError) as caught:
        load_config(SHIPPED, overrides=overrides)
    assert str(caught.value) == message


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("a: 1")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "negate.yaml")
    assert str(caught.value) == (
        f"expected a configuration file at {tmp_path / 'negate.yaml'}, found none; {tmp_path} holds there.yaml"
    )


@pytest.mark.parametrize("content", ["- a list", "a: [1", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"expected a (mapping of keys|readable YAML file)"):
        load_config(file)


@pytest.mark.parametrize("zone", ["", "../etc", "America"])
def test_a_zone_that_is_no_zone_is_refused(zone: str) -> None:
    # 'America' is a folder of zones, not a zone: zoneinfo raises an OSError of its own for it.
    assert f"expected an IANA time zone such as Europe/Lisbon, got {zone!r}" in refusal(
        SHIPPED, f"time_zone='{zone}'"
    )


@pytest.mark.parametrize(
    "name",
    [
        "time",  # a block's event_time
        "window",  # a block's query_window
        "index",
        "row",
        "hour_of_week",
        "split",  # a column of the examples
        "label",
        "target",
        "query_id",
        "as_of",
        "baseline_score",
    ],
)
def test_a_field_may_not_take_the_name_of_a_column_that_the_stages_add(name: str) -> None:
    assert "reserved" in refusal(SHIPPED, f"fields.{name}={{role: what, kind: numeric}}")


def test_no_accepted_field_overwrites_a_column_of_a_block() -> None:
    config = load_config(SHIPPED)
    fields = (*config.categorical, *config.numeric)
    with_fields = Layout(
        config.categorical,
        (4,) * len(config.categorical),
        config.numeric,
        "action",
        (),
        (),
        8,
        4,
        (Target("t"),),
    )
    without = Layout((), (), (), "action", (), (), 8, 4, (Target("t"),))
    assert len(with_fields.columns) == len(without.columns) + 2 * len(fields)


def test_what_the_model_reads_of_the_role_who_stays_known() -> None:
    config = load_config(SHIPPED)
    sizes = dict.fromkeys(config.categorical, 9)
    assert layout_with(config, sizes).who_fields == (
        *("age", "income", "home_ownership", "marital_status"),
        *("household_size", "household_comp", "kids_count"),
    )
    more = (
        *("fields.visits={role: who, kind: numeric}", "fields.card={role: who, kind: reference}"),
        "fields.age={role: what, kind: categorical}",
    )
    who = layout_with(load_config(SHIPPED, overrides=more), sizes).who_fields
    assert who[0] == "income"
    assert who[-1] == "visits"


ASKED = "description: x, outcome_filter: 'true', horizon_days: '7'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (ASKED, "either a population of events or every_days"),
        (f"{ASKED}, population: 'true', every_days: 7", "either a population of events or every_days"),
        (f"{ASKED}, every_days: 7, kind: value", "value belongs to kind value"),
        (f"{ASKED}, every_days: 7, value: sum(outcome.quantity)", "value belongs to kind value"),
        (f"{ASKED}, every_days: 7, kind: next", "field belongs to kind next"),
        (f"{ASKED}, every_days: 7, kind: next, field: itm", "'itm' is not declared: did you mean 'item'?"),
        (f"{ASKED}, every_days: 7, kind: next, field: item, negate: true", "negate is for kind binary"),
        (f"{ASKED}, population: 'true', active_days: 7", "active_days goes with every_days"),
        (f"{ASKED}, population: 'true', active: action = 'x'", "active goes with every_days"),
        (f"{ASKED}, every_days: 7, top_k: 3", "top_k is for kind next"),
    ],
)
def test_a_target_asks_one_thing(target: str, message: str) -> None:
    assert message in refusal(SHIPPED, f"targets.more={{{target}}}")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("kind: numeric, min_count: 2", "min_count is for categorical fields, this one is numeric"),
        ("kind: reference, max_values: 9", "max_values is for categorical fields, this one is reference"),
    ],
)
def test_a_key_that_would_change_nothing_is_refused(field: str, message: str) -> None:
    assert message in refusal(SHIPPED, f"fields.more={{role: what, {field}}}")


def test_a_resolved_configuration_is_a_configuration(tmp_path: Path) -> None:
    """The one that is kept with a model: it gives every key, those of other kinds too."""
    config = load_config(SHIPPED)
    resolved = tmp_path / "configuration.json"
    resolved.write_text(config.model_dump_json())
    assert load_config(resolved).digest() == config.digest()


def test_only_a_binary_target_ranks_proposals() -> None:
    more = f"targets.more={{{ASKED}, every_days: 7, kind: value, value: sum(outcome.quantity)}}"
    said = refusal(SHIPPED, more, "scoring.target=more")
    assert "scoring.target 'more' must be of kind binary" in said


@pytest.mark.parametrize(
    ("day", "utc"),
    [
        (dt.date(2017, 3, 12), "2017-03-12T05:00:00+00:00"),  # clocks go forward on this day, after midnight
        (dt.date(2017, 3, 13), "2017-03-13T04:00:00+00:00"),
        (dt.date(2017, 11, 5), "2017-11-05T04:00:00+00:00"),  # clocks go back on this day
        (dt.date(2017, 11, 6), "2017-11-06T05:00:00+00:00"),
    ],
)
def test_a_day_starts_at_local_midnight_across_summer_time(day: dt.date, utc: str) -> None:
    config = load_config(SHIPPED)
    assert config.instant(day).isoformat() == utc
    assert config.instant(day).tzinfo is dt.UTC  # whatever the machine's own zone
    assert config.micros(day) == int(dt.datetime.fromisoformat(utc).timestamp() * 1e6)


def test_the_digest_tells_configurations_apart_and_nothing_else() -> None:
    same: list[Config] = [load_config(SHIPPED), load_config(SHIPPED, overrides=["training.world_size=2"])]
    assert same[0].digest() == same[1].digest()
    assert load_config(SHIPPED, overrides=["training.world_size=1"]).digest() != same[0].digest()


def test_every_key_of_the_model_reaches_the_network_or_its_blocks() -> None:
    """None is left at what it is by default."""
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
