"""Horovod's launcher on Spark installs signal handlers of its own, which would outlive the training."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lam_spark.errors import Interrupted
from lam_spark.runtime.signals import interruptible
from lam_spark.training.process_group import run_on_spark

pytest.importorskip("horovod")

import horovod.spark
from horovod.runner import gloo_run


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], threading.Event]:
    """Runs a training that, as Horovod's launcher does, registers its event; returns the event."""

    def run_training(during: Callable[[], None]) -> threading.Event:
        events: list[threading.Event] = []

        def run(*_: Any, **__: Any) -> None:
            events.append(gloo_run.register_shutdown_event())
            during()

        monkeypatch.setattr(horovod.spark, "run", run)
        try:
            run_on_spark(lambda: None, 2, {}, io.StringIO())
        except Interrupted:
            assert events[0].is_set()
            raise
        return events[0]

    return run_training


def test_the_handlers_of_the_run_survive_a_training(launch: Any) -> None:
    register = gloo_run.register_shutdown_event
    with interruptible():
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert not launch(lambda: None).is_set()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert gloo_run.register_shutdown_event is register


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_training_ends_the_workers_and_the_run(launch: Any, number: signal.Signals) -> None:
    with interruptible(), pytest.raises(Interrupted) as raised:
        launch(lambda: signal.raise_signal(number))
    assert raised.value.exit_code == 128 + number
