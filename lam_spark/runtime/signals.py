"""Signals that end a run: SIGINT (Ctrl-C), SIGTERM and SIGHUP. The command line and the jobs handle them.

Inside another program (a notebook, a scheduler) no handler is installed: that program decides what a signal does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from lam_spark.errors import Interrupted

# What has to end before the run does, in the order of its start.
_endings: list[Callable[[], None]] = []
# The handlers that `interruptible` installed; empty inside another program.
_handlers: list[_Handler] = []
# `timeout` sends SIGTERM twice, one right after the other.
_SAME_SIGNAL_SECONDS = 1.0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGINT, SIGTERM and SIGHUP end what runs and then raise `Interrupted`.

    A second SIGINT ends the process at once, like a kill; so does a second SIGTERM, after a second. A second SIGHUP
    is ignored, because a terminal that closes sends two. SIGHUP stays ignored where it was (nohup). Outside the main
    thread, which alone receives signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    handler.install()
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.pop()
        handler.uninstall()


@contextlib.contextmanager
def ended_by_signals(end: Callable[[], None]) -> Iterator[None]:
    """Within it, a signal that `interruptible` handles calls `end`, in the main thread, before it raises.

    Code that catches the exception then finds nothing that could still write. Without `interruptible`, or outside the
    main thread, `end` is never called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _endings.append(end)
    if _handlers:
        _handlers[-1].install()  # starting a SparkContext has replaced the one of SIGINT by PySpark's
    try:
        yield
    finally:
        _endings.remove(end)


def are_handled() -> bool:
    """Whether `interruptible` handles the signals of this process."""
    return bool(_handlers)


class _Handler:
    """What a signal does within `interruptible`."""

    def __init__(self) -> None:
        ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignores_hangup else (signal.SIGHUP,)))
        self._previous = {number: signal.getsignal(number) for number in numbers}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._interrupted_at: float | None = None

    def install(self) -> None:
        """Handle the signals, unless one of them ends the run already."""
        if self._interrupted_at is None:
            for number in self._previous:
                signal.signal(number, self._interrupt)

    def uninstall(self) -> None:
        """Restore the handlers of before."""
        for number, previous in self._previous.items():
            if previous is not None:  # one that was not installed from Python
                signal.signal(number, previous)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted_at is not None:
            self._repeat(number)
            return
        self._interrupted_at = time.monotonic()
        # The default ends the process even while a library does not return to Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._leave_closed_terminals()
        for end in reversed(_endings):
            with contextlib.suppress(Exception):  # the run ends in any case
                end()
        raise Interrupted(number)

    def _repeat(self, number: int) -> None:
        assert self._interrupted_at is not None
        if number == signal.SIGTERM and time.monotonic() - self._interrupted_at > _SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _leave_closed_terminals(self) -> None:
        """Drop what is written to a closed terminal, where each write would raise an error."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor)
