"""Loading a configuration file: values, overrides, and the key that each error names."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError
from tests.config.shipped import SHIPPED, Write, error_text


def test_the_shipped_configuration_loads() -> None:
    config = load_config(SHIPPED)
    assert config.name == "complete_journey"
    assert config.as_of == dt.date(2017, 12, 28)
    assert set(config.categorical) | set(config.numeric) | set(config.reference) == set(config.fields)
    assert config.inputs["products"].path == "out/complete_journey/raw/products.parquet"


def test_text_values_may_be_yaml_numbers_and_booleans(write_changed: Write) -> None:
    def unquote(content: dict[str, Any]) -> None:
        content["targets"]["coupon_redemption"]["horizon_days"] = 28
        content["inputs"]["campaigns"]["options"] = {"header": True, "maxColumns": 40, "sep": ";"}

    config = load_config(write_changed(unquote), overrides=["spark.settings={spark.task.cpus: 2}"])
    assert config.targets["coupon_redemption"].horizon_days == "28"
    assert config.inputs["campaigns"].options == {"header": "true", "maxColumns": "40", "sep": ";"}
    assert config.spark.settings == {"spark.task.cpus": "2"}


def test_an_unknown_top_level_key_suggests_the_nearest(write_changed: Write) -> None:
    file = write_changed(lambda content: content.update(trainning={}))
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
            "fields.item.value_embeddings={select: SELECT 1, dim: 2, path: b}",
            "unknown key 'fields.item.value_embeddings.path': expected one of dim, select",
        ),
        ("fetch.argument=1", "unknown key 'fetch.argument': did you mean 'arguments'?"),
        (
            "split.zzzz=1",
            "unknown key 'split.zzzz': expected one of test_start, train_start, validation_start",
        ),
    ],
)
def test_an_unknown_nested_key_suggests_the_nearest(override: str, message: str) -> None:
    assert error_text(SHIPPED, override) == f"  - {message}"


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
            "fields.item.kind: Input should be 'categorical', 'numeric' or 'reference', got 'word'",
        ),
        (
            "fields.item.value_embeddings={select: SELECT 1, dim: 0}",
            "fields.item.value_embeddings.dim: Input should be greater than or equal to 1, got 0",
        ),
        (
            "inputs.products=[1]",
            "inputs.products: Input should be a valid dictionary or instance of InputConfig, got [1]",
        ),
        (
            "fields.Item={role: what, kind: numeric}",
            "fields.Item: String should match pattern '^[a-z][a-z0-9_]*$', got 'Item'",
        ),
        *(
            (
                f"split.validation_start={day}",
                "split: expected train_start < validation_start < test_start, "
                f"got 2017-02-01, {day}, 2017-10-02",
            )
            for day in ("2017-11-01", "2017-02-01", "2017-10-02")
        ),
        ("model.d_model=36", "model: expected d_model to be a multiple of 2 x n_heads (8), got 36"),
        (
            "training.launcher=in_process",
            "training: expected world_size 1 with launcher in_process, got 2",
        ),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_key(override: str, message: str) -> None:
    assert error_text(SHIPPED, override) == f"  - {message}"


@pytest.mark.parametrize(
    ("text", "delay", "written"),
    [
        ("90m", dt.timedelta(minutes=90), "90m"),
        ("6h", dt.timedelta(hours=6), "6h"),
        ("48h", dt.timedelta(days=2), "2d"),
        ("0", dt.timedelta(0), "0h"),
    ],
)
def test_a_duration_has_a_unit_and_is_written_in_the_largest(
    text: str, delay: dt.timedelta, written: str
) -> None:
    channel = load_config(SHIPPED, overrides=[f"channels.mailing.arrival_delay={text}"]).channels["mailing"]
    assert channel.arrival_delay == delay
    assert channel.model_dump(mode="json")["arrival_delay"] == written


@pytest.mark.parametrize("text", ["2", "1.5d", "-6h", "6 hours", "false"])
def test_another_duration_is_an_error(text: str) -> None:
    message = "expected a duration in minutes, hours or days such as 90m, 6h or 2d, got "
    error = error_text(SHIPPED, f"channels.mailing.arrival_delay={text}")
    assert error.startswith(f"  - channels.mailing.arrival_delay: {message}")


@pytest.mark.parametrize("zone", ["", "../etc", "America", "Mars/Base"])
def test_an_unknown_time_zone_is_an_error(zone: str) -> None:
    # 'America' is a folder of zones: zoneinfo raises another error for it.
    message = f"  - time_zone: expected an IANA time zone such as Europe/Lisbon, got {zone!r}"
    assert error_text(SHIPPED, f"time_zone='{zone}'") == message


def test_a_missing_key_is_named(write_changed: Write) -> None:
    assert error_text(write_changed(lambda content: content.pop("as_of"))) == "  - missing key 'as_of'"
    file = write_changed(lambda content: content["split"].pop("test_start"))
    assert error_text(file) == "  - missing key 'split.test_start'"


def test_all_problems_are_reported_at_once(write_changed: Write) -> None:
    file = write_changed(lambda content: content.pop("as_of"))
    text = error_text(file, "rot=x", "training.world_size=0")
    assert text.count("\n") == 2
    assert "missing key 'as_of'" in text
    assert "unknown key 'rot': did you mean 'root'?" in text
    assert "training.world_size: " in text


def test_the_argument_as_of_replaces_the_key_and_must_be_a_date() -> None:
    assert load_config(SHIPPED, as_of="2017-11-30").as_of == dt.date(2017, 11, 30)
    with pytest.raises(ConfigError, match=r"  - as_of: .*, got '2017-13-01'"):
        load_config(SHIPPED, as_of="2017-13-01")


def test_overrides_replace_nested_keys_and_create_sections() -> None:
    config = load_config(SHIPPED, overrides=["training.world_size=1", "spark.settings.a=b", "root=/tmp/x"])
    assert config.training.world_size == 1
    assert config.spark.settings == {"a": "b"}
    assert config.inputs["products"].path == "/tmp/x/raw/products.parquet"


def test_overrides_are_split_at_the_first_equals_sign() -> None:
    config = load_config(SHIPPED, overrides=["targets.coupon_redemption.outcome_filter=action = 'a=b'"])
    assert config.targets["coupon_redemption"].outcome_filter == "action = 'a=b'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name.first=x", "--set name.first: name is a value, not a section"),
        ("training.world_size.of=1", "--set training.world_size.of: world_size is a value, not a section"),
        ("training", "expected --set key=value with a dotted key, got 'training'"),
        ("=1", "expected --set key=value with a dotted key, got '=1'"),
        ("notes=[1", "--set notes: '[1' is not a YAML value"),
    ],
)
def test_a_malformed_override_is_an_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SHIPPED, overrides=["training.world_size=1", override])
    assert str(caught.value) == message


def test_the_error_of_a_missing_file_lists_the_files_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("a: 1")
    file = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == (
        f"expected a configuration file at {file}, found none; {tmp_path} contains there.yaml"
    )


@pytest.mark.parametrize("content", ["- a list", "a: [1", "just words", ""])
def test_a_file_that_is_not_a_mapping_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "invalid.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"expected a (mapping of keys|readable YAML file)"):
        load_config(file)


def test_a_resolved_configuration_is_a_valid_configuration(tmp_path: Path) -> None:
    """The copy that a model contains has every key, including those of other kinds."""
    config = load_config(SHIPPED)
    resolved = tmp_path / "configuration.json"
    resolved.write_text(config.model_dump_json())
    assert load_config(resolved).digest() == config.digest()
