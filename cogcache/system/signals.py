"""Stopping cleanly: after one signal a run finishes its current clips; a second one stops it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


def asking_to_end() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a run to end: SIGINT, SIGTERM, and a closed terminal's SIGHUP.

    A process started with `nohup` keeps ignoring SIGHUP.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, hangup


class Stop:
    """Says whether a run should take up no more work."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.fault = False
        """Whether the run stops because something is wrong, not only because it was asked to."""

    def __bool__(self) -> bool:
        return self.reason is not None

    def ask(self, reason: str, *, fault: bool = False) -> None:
        """Ask the run to finish what is in hand and end; the first reason stays."""
        if self.reason is None:
            self.reason, self.fault = reason, fault


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield a `Stop` that SIGINT, SIGTERM and SIGHUP set; a second signal stops at once.

    The second one raises SystemExit, with 128 and its number, so that `finally` blocks run.
    Outside the main thread, where Python takes no signals, it is never set by one.
    """
    stop = Stop()

    def handle(number: int) -> None:
        if stop:
            raise SystemExit(128 + number)
        stop.ask(signal.Signals(number).name)
        logger.warning("%s: finishing what is in hand; once more stops at once", stop.reason)

    with _handled_by(handle):
        yield stop


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise SystemExit, so that `finally` blocks run."""

    def handle(number: int) -> None:
        raise SystemExit(128 + number)

    with _handled_by(handle):
        yield


@contextmanager
def _handled_by(handle: Callable[[int], None]) -> Iterator[None]:
    """Have the signals that ask to end handled while a `with` block runs, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends: list[SystemExit] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        try:
            handle(number)
        except SystemExit as end:
            ends.append(end)
            raise

    before = {number: signal.signal(number, on_signal) for number in asking_to_end()}
    try:
        yield
    except Exception as error:
        if ends:  # a library took the SystemExit in its midst for an error of its own
            raise SystemExit(ends[0].code) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
