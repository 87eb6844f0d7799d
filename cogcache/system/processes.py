"""Calls a function in a new process: all its memory is freed when that process ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from cogcache.errors import CogcacheError
from cogcache.system.faults import machine_error

# Not fork: the parent's threads (torch's, ours) would leave their locks held in the child.
CONTEXT = multiprocessing.get_context("spawn")


Job = TypeVar("Job")
Result = TypeVar("Result")
ENDING_S = 30.0
"""A process that has answered ends by itself within this time."""


def in_own_process(function: Callable[[Job], Result], job: Job) -> Result:
    """Call `function(job)` in a new process, which ends with the call, and with this process.

    Raises:
        CogcacheError: the process was killed; or whatever error the call raised.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, job))
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
        process.join(ENDING_S)
    except EOFError as lost:
        problem = "a process was killed before it was done"
        raise CogcacheError(problem, "it may have run out of memory: see --memory") from lost
    finally:
        process.kill()
        process.join()
        ours.close()
    if error is not None:
        raise error
    answer: Result = result
    return answer


def _answer(pipe: Connection[Any, Any], function: Callable[[Any], Any], job: Any) -> None:
    """Run in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pipe.send((function(job), None))
    except Exception as error:  # noqa: BLE001 - the parent raises it
        pipe.send((None, _travelling(error)))


def _travelling(error: Exception) -> Exception:
    """Return an error with its traceback on it, in a form that can be sent.

    What it came from cannot be: if that says that the machine is the reason, it is told now.
    """
    error = machine_error(error) or error
    note = "In a process of its own:\n" + "".join(traceback.format_exception(error))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - an error that cannot travel goes as its text
        error = RuntimeError(repr(error))
    error.add_note(note)
    return error


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


def ending(exit_code: int | None) -> str:
    """Say how a process ended."""
    with suppress(ValueError):
        return f"ended by {signal.Signals(-(exit_code or 0)).name}"
    return f"ended with status {exit_code}"


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start processes that ignore SIGINT, SIGTERM and SIGHUP from their first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process started starts the tracker too, which would lift the block again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Bug:
    """An error that is no job's fault."""

    error: Exception


def bug_of(error: Exception) -> Bug:
    """Return an error with the worker's traceback on it, in a form that can travel.

    What it came from does not travel: if that says that the machine is the reason, it is told now.
    """
    error = machine_error(error) or error
    note = "In a worker process:\n" + "".join(traceback.format_exception(error))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - an error that cannot travel goes as its text
        error = RuntimeError(repr(error))
    error.add_note(note)
    return Bug(error)


def end_with_parent() -> None:
    """End this process when its parent does, even in the middle of a job."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
