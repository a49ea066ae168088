"""Ctrl-C while Spark is at work: PySpark's own handler speaks over the connection that waits for an answer."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from pyspark.sql import SparkSession

# Milliseconds between two orders to cancel: a call that was between two jobs starts another after the first.
_BETWEEN_ORDERS = 200


@contextlib.contextmanager
def interruptible(spark: SparkSession) -> Iterator[None]:
    """Within it, SIGINT ends the JVM's work for this thread and then raises KeyboardInterrupt.

    Whoever catches that finds no call at work that could still commit something. A second SIGINT ends the process
    at once, as a kill would. Outside the main thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    context: Any = spark.sparkContext
    client = context._gateway._gateway_client
    # A thread of Python's has one connection, and that one thread of the JVM.
    at_work = context._jvm.java.lang.Thread.currentThread()

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        connection = client.get_thread_connection()
        if connection is not None:
            connection.close()  # the next call makes a new one, instead of reading the answer to the old
        while at_work.isAlive():
            context.cancelAllJobs()
            at_work.join(_BETWEEN_ORDERS)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
