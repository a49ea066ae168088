"""Runs stages for any caller: command line, jobs, notebooks, schedulers, tests.

Holds the workspace's lock, rolls back what a killed run left, appends an audit entry per stage.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Iterator, Sequence

from pyspark.sql import SparkSession
from rich.markup import escape

from lam_spark.config import Config
from lam_spark.errors import ConfigError, did_you_mean, without_values
from lam_spark.identity.pseudonyms import secret_from_environment
from lam_spark.runtime.audit import AuditChain, StageCost
from lam_spark.runtime.context import RunContext, utc_now
from lam_spark.runtime.lock import workspace_lock
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.monitor import Monitor
from lam_spark.runtime.results import StageResult
from lam_spark.runtime.session import active_session, spark_session
from lam_spark.runtime.signals import tracked
from lam_spark.stages import STAGES
from lam_spark.storage.tables.maintenance import compact
from lam_spark.storage.tables.publish import roll_back
from lam_spark.storage.tables.store import Tables


def new_run_id() -> str:
    """Unique id of a run, sortable by time."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def run_stages(
    config: Config,
    names: Sequence[str],
    *,
    session: SparkSession | None = None,
    clock: Callable[[], dt.datetime] | None = None,
    run_id: str | None = None,
) -> dict[str, StageResult]:
    """Run stages one after the other, under the workspace's lock.

    Args:
        config: Configuration of the data set.
        names: Stages, in this order.
        session: Spark session with Delta to use; without one the active session, else a new one, which is
            stopped at the end.
        clock: Gives the present instant (UTC); the start of the run is its first answer.
        run_id: Id of the run; made where not given.

    Returns:
        Stage -> its result.

    Raises:
        ConfigError: An unknown stage, a missing secret, a folder that cannot be written.
        ConcurrentRunError: Another run holds the workspace.
        LamSparkError: Whatever stopped a stage; it is in the audit and in the log.
    """
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}: {did_you_mean(name, STAGES)}")
    _require_prerequisites(config, names)
    run_id = run_id or new_run_id()
    clock = clock or utc_now
    workspace = config.workspace.absolute()
    config = config.model_copy(update={"root": str(workspace)})
    with contextlib.ExitStack() as stack:
        stack.enter_context(workspace_lock(workspace, run_id))
        log = RunLog(run_id, workspace / "logs")
        stack.callback(log.close)
        log.event("run started", stages=list(names), config_digest=config.digest(), root=str(workspace))
        spark = stack.enter_context(_session(config, session))
        stack.enter_context(tracked(spark))
        tables = Tables(spark, workspace / "tables")
        ctx = RunContext(config, run_id, clock(), spark, tables, log, clock)
        changed = roll_back(tables)
        if changed:
            log.event("unfinished publication rolled back", level="warning", tables=changed)
        chain = AuditChain(tables, config, run_id)
        return {name: _run_stage(ctx, chain, name) for name in names}


def _require_prerequisites(config: Config, names: Sequence[str]) -> None:
    """Check what a later stage needs, before an earlier one works for hours."""
    if any(STAGES[name].needs_secret for name in names):
        secret_from_environment(config.identity.secret_env)
    if "train" in names:
        from lam_spark.training.launch.launchers import require_launcher  # imports torch

        require_launcher(config.training.launcher)


@contextlib.contextmanager
def _session(config: Config, session: SparkSession | None) -> Iterator[SparkSession]:
    """The session to use; stopped at the end only if it was started here."""
    if session is not None:
        yield session
        return
    is_ours = active_session() is None
    spark = spark_session(config.spark)
    try:
        yield spark
    finally:
        if is_ours:
            spark.stop()


def _run_stage(ctx: RunContext, chain: AuditChain, name: str) -> StageResult:
    ctx.tables.read_versions.clear()
    ctx.tables.written_versions.clear()
    ctx.log.event("stage started", stage=name)
    monitor = Monitor(name, ctx.spark, ctx.log)

    def cost() -> StageCost:
        return StageCost(monitor.seconds, round(monitor.peak_memory_gib, 2))

    try:
        with monitor:
            result: StageResult = STAGES[name].load()(ctx)
    except BaseException as error:
        failure = without_values(error)
        ctx.log.event("stage failed", level="error", stage=name, error=failure, **vars(cost()))
        try:
            chain.append(name, None, cost(), failure)
        except Exception as second:  # the first error is the one to raise; this one is in the log
            ctx.log.event(
                "failure not recorded in audit", level="error", stage=name, error=without_values(second)
            )
        raise
    chain.append(name, result, cost())
    counts = dict(result.counts)
    ctx.log.event("stage done", stage=name, message=result.message, counts=counts, **vars(cost()))
    ctx.log.echo(
        f"[green]✓[/] [bold]{name:<10}[/] {monitor.seconds:6.1f} s {monitor.peak_memory_gib:5.1f} GiB  "
        f"{escape(result.message)}"
    )
    for line in result.details:
        ctx.log.echo(f"  {escape(line)}")
    for table in ctx.tables.written_versions:
        _compact(ctx, table)
    return result


def _compact(ctx: RunContext, table: str) -> None:
    """Join a table's small files; a failure does not fail the stage, which is done and recorded."""
    try:
        files = compact(ctx.tables, table)
    except Exception as error:
        ctx.log.event("small files not joined", level="warning", table=table, error=without_values(error))
        return
    if files:
        ctx.log.event("small files joined", table=table, files=files)
