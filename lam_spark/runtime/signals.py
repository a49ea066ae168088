"""Ctrl-C during Spark jobs. Installed by the command line and the jobs only, never inside another program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pyspark.sql import SparkSession

from lam_spark.runtime.jvm import MainThreadCall

# The call that SIGINT has to end; set while a runner in the main thread has a session.
_current_calls: list[MainThreadCall] = []
# The handler that `interruptible` installed; empty inside another program.
_handlers: list[Callable[[int, FrameType | None], None]] = []


@contextlib.contextmanager
def tracked(spark: SparkSession) -> Iterator[None]:
    """Within it, `interruptible` knows which JVM call to end. Without `interruptible`, no handler is touched."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _current_calls.append(MainThreadCall(spark))
    if _handlers:  # starting a SparkContext has replaced it by PySpark's own handler
        signal.signal(signal.SIGINT, _handlers[-1])
    try:
        yield
    finally:
        _current_calls.pop()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGINT ends the JVM's call of the main thread and then raises KeyboardInterrupt.

    Code that catches the exception finds no call that could still commit. A second SIGINT ends the process at
    once. Outside the main thread, which alone receives signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _current_calls:
            _current_calls[-1].cancel()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    _handlers.append(interrupt)
    try:
        yield
    finally:
        _handlers.pop()
        signal.signal(signal.SIGINT, previous)
