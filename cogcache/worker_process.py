"""What a worker process does: job after job, until its parent hangs up or dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from cogcache.errors import ClipError, VideoError


@dataclass(frozen=True)
class Program:
    """What a worker runs: a task for each job, and what makes it ready first."""

    task: Callable[[Any], Any]
    initializer: Callable[..., object] | None
    initargs: tuple[object, ...]


@dataclass(frozen=True)
class Bug:
    """An error that is no job's fault."""

    error: Exception


def work(pipe: Connection[Any, Any], program: Program) -> None:
    """Run in the worker: do job after job until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    try:
        if program.initializer is not None:
            program.initializer(*program.initargs)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        pipe.send(bug_of(error))
        return
    pipe.send(None)
    with suppress(EOFError, OSError):
        while True:
            job = pipe.recv_bytes()
            pipe.send(None)  # taken up: from here on a crash is the job's own
            pipe.send_bytes(_answer(program.task, job))


def _answer(task: Callable[[Any], Any], job: bytes) -> Any:
    """Return the pickled result, ClipError or Bug."""
    try:
        try:
            return ForkingPickler.dumps(task(ForkingPickler.loads(job)))
        except ClipError as error:
            return ForkingPickler.dumps(error)
        except MemoryError:
            hint = "lower --max-frames or --decode-workers"
            return ForkingPickler.dumps(VideoError("out_of_memory", "memory ran out", hint))
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return ForkingPickler.dumps(bug_of(error))


def bug_of(error: Exception) -> Bug:
    """Return an error with the worker's traceback on it, in a form that can travel."""
    note = "In a worker process:\n" + "".join(traceback.format_exception(error))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - an error that cannot travel goes as its text
        error = RuntimeError(repr(error))
    error.add_note(note)
    return Bug(error)


def _end_with_parent() -> None:
    """End this process when its parent does, even in the middle of a job."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
