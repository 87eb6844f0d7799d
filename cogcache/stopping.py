"""Stopping in order: the first signal finishes what is in hand, the second stops at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Stop:
    """Says whether a run should take up no more work."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.fault = False
        """Whether something is wrong, beyond that the run was asked to end."""

    def __bool__(self) -> bool:
        return self.reason is not None

    def ask(self, reason: str, *, fault: bool = False) -> None:
        """Ask the run to finish what is in hand and end; the first reason stays."""
        if self.reason is None:
            self.reason, self.fault = reason, fault


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield a `Stop` that SIGINT and SIGTERM set; a second signal raises KeyboardInterrupt.

    Outside the main thread, where Python takes no signals, it is never set by one.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name)
        logger.warning("%s: finishing what is in hand; once more stops at once", stop.reason)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT and SIGTERM end the process by SystemExit, so that what is open is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
