"""Local times of a source's clock as instants; the same for channels and the consent ledger."""

from __future__ import annotations

from pyspark.errors.exceptions.base import PySparkException
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from lam_spark.config import ClockConfig
from lam_spark.errors import ConfigError, first_line

# A text with a time of day that names its zone, such as `2024-05-01T10:00:00+02:00`, is an instant already.
_NAMES_ZONE = r":\d\d(\.\d+)?\s*[A-Za-z+-]"
_HOUR_MICROS = 3_600_000_000


def require_clock_format(spark: SparkSession, key: str, clock: ClockConfig) -> None:
    """Check that Spark knows the pattern of a clock.

    Args:
        spark: Active session.
        key: Key of the pattern in the configuration, for the message.
        clock: The clock.

    Raises:
        ConfigError: It does not.
    """
    if clock.format is None:
        return
    try:
        spark.range(1).select(F.date_format(F.current_timestamp(), clock.format)).first()
    except PySparkException as error:
        raise ConfigError(f"{key} {clock.format!r}: {first_line(error)}") from error


def read_local_time(
    local: Column, clock: ClockConfig, *, is_later: Column | None = None
) -> tuple[Column, Column]:
    """The instant of a local time of a clock; a text that names a zone is the instant that it says.

    A local time that occurs twice in autumn is read as the earlier instant (as `to_utc_timestamp` does).

    Args:
        local: A timestamp, date or text.
        clock: The clock.
        is_later: Where true, a local time that occurs twice is read as the later instant.

    Returns:
        The instant (TIMESTAMP, null if it is not a time), and whether the local time existed.
    """
    if clock.format is None:
        wall_clock = local.try_cast("timestamp")
        names_zone = local.try_cast("string").rlike(_NAMES_ZONE)
    else:
        wall_clock = F.try_to_timestamp(local.cast("string"), F.lit(clock.format))
        names_zone = F.lit(False)
    instant = F.to_utc_timestamp(wall_clock, clock.zone)
    exists = F.from_utc_timestamp(instant, clock.zone) == wall_clock
    if is_later is not None:
        second = F.timestamp_micros(F.unix_micros(instant) + _HOUR_MICROS)
        occurs_twice = F.from_utc_timestamp(second, clock.zone) == wall_clock
        instant = F.when(is_later & occurs_twice, second).otherwise(instant)
    return F.when(names_zone, wall_clock).otherwise(instant), F.coalesce(names_zone, F.lit(False)) | exists
