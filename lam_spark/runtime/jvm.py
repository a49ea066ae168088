"""What needs the JVM or the SparkContext: the only module that uses `_jvm` and `sparkContext`."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pyspark.sql import SparkSession

Value = TypeVar("Value")

# Milliseconds between two cancellations: a call that was between two jobs starts another one after the first.
_BETWEEN_CANCELLATIONS = 200


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
        """Cancel all jobs until the JVM's call has ended: afterwards no call can commit anything."""
        connection = self._client.get_thread_connection()
        if connection is not None:
            connection.close()  # the next call opens a new one instead of reading the answer to the old
        while self._thread.isAlive():
            self._context.cancelAllJobs()
            self._thread.join(_BETWEEN_CANCELLATIONS)
