"""What needs the JVM or the SparkContext: the only module that uses `_jvm` and `sparkContext`."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Generic, TypeVar

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession

Value = TypeVar("Value")

# Milliseconds between two cancellations: a call that was between two jobs starts another one after the first.
_BETWEEN_CANCELLATIONS = 200
# Seconds to wait for what cancelled jobs leave running; a task that calls a slow library notices its end late.
_WAIT_FOR_THE_REST = 30
# Adaptive execution computes the last part of a query, commands that write included, in threads of this name.
_LAST_PART = "ResultQueryStageExecution"


class Broadcast(Generic[Value]):
    """A value that Spark sends to every executor once; read it as `value` inside a UDF."""

    def __init__(self, spark: SparkSession, value: Value) -> None:
        self._broadcast = spark.sparkContext.broadcast(value)

    @property
    def value(self) -> Value:
        """The value, on the driver or in a task."""
        return self._broadcast.value


def java_version(spark: SparkSession) -> str:
    """Version of the Java machine behind the session."""
    context: Any = spark.sparkContext
    return str(context._jvm.System.getProperty("java.version"))


def jvm_pid(spark: SparkSession) -> int | None:
    """Process id of the session's JVM if it ends with this process; None for a platform's, which may live on."""
    context: Any = spark.sparkContext
    launched = getattr(context._gateway, "proc", None)
    if launched is not None:
        return int(launched.pid)
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return None
    with contextlib.suppress(psutil.Error):  # spark-submit: the JVM has started this process
        parent = psutil.Process().parent()
        if parent is not None and parent.name() == "java":
            return int(parent.pid)
    return None


def ignore_signals(spark: SparkSession) -> None:
    """Let the JVM that this process started ignore SIGTERM and SIGHUP, which a service or a terminal sends to both.

    The run needs the JVM for its audit entry; the JVM ends with this process. PySpark does so for SIGINT.
    """
    context: Any = spark.sparkContext
    if getattr(context._gateway, "proc", None) is None:
        return
    java = context._jvm.sun.misc
    with contextlib.suppress(Py4JError):  # the option -Xrs reserves the signals
        for name in ("TERM", "HUP"):
            java.Signal.handle(java.Signal(name), java.SignalHandler.SIG_IGN)


def task_progress(spark: SparkSession) -> tuple[int, int]:
    """Completed tasks and all tasks of Spark's active stages; (0, 0) where none is active."""
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    return sum(s.numCompletedTasks for s in stages if s), sum(s.numTasks for s in stages if s)


class MainThreadCall:
    """The JVM thread that serves the calls of this Python thread, and a way to end its call.

    PySpark's own SIGINT handler sends its cancellation over the connection that waits for the answer.
    """

    def __init__(self, spark: SparkSession) -> None:
        context: Any = spark.sparkContext
        self._context = context
        self._client = context._gateway._gateway_client
        # Each Python thread has one connection, served by one JVM thread.
        self._thread = context._jvm.java.lang.Thread.currentThread()

    def cancel(self) -> None:
        """Cancel all jobs until the JVM's call has ended: afterwards no call can commit anything.

        Then waits up to 30 seconds for threads and tasks that could still write to a folder that the caller deletes.
        A JVM that has ended, or ends while this waits, has nothing to cancel.
        """
        with contextlib.suppress(Py4JError, OSError):
            self._cancel()

    def _cancel(self) -> None:
        connection = self._client.get_thread_connection()
        if connection is not None:
            connection.close()  # the next call opens a new one instead of reading the answer to the old
        while self._thread.isAlive():
            with contextlib.suppress(Py4JJavaError):  # the context was stopped; the call may still run
                self._context.cancelAllJobs()
            self._thread.join(_BETWEEN_CANCELLATIONS)
        end = time.monotonic() + _WAIT_FOR_THE_REST
        while (self._running_tasks() or self._has_busy_query()) and time.monotonic() < end:
            self._context.cancelAllJobs()
            time.sleep(_BETWEEN_CANCELLATIONS / 1000)

    def _running_tasks(self) -> int:
        """Tasks that run on all executors, killed ones included until they have ended."""
        executors = self._context._jsc.sc().statusTracker().getExecutorInfos()
        return sum(executor.numRunningTasks() for executor in executors)

    def _has_busy_query(self) -> bool:
        """Whether a thread still computes the last part of a query; an idle one waits for work in `getTask`."""
        threads = self._context._jvm.java.lang.Thread.getAllStackTraces().keySet()
        stacks = [list(t.getStackTrace()) for t in threads if t.getName().startswith(_LAST_PART)]
        return any(all(frame.getMethodName() != "getTask" for frame in stack) for stack in stacks if stack)
