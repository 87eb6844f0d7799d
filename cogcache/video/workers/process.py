"""What a worker process does: job after job, until its parent hangs up or dies."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from cogcache.errors import ClipError
from cogcache.system import bug_of, end_with_parent
from cogcache.video.workers.limits import Lost, WorkerLimits, decode_error, limit_job, limit_process


@dataclass(frozen=True)
class Program:
    """What a worker runs: a task for each job, and what makes it ready first."""

    task: Callable[[Any], Any]
    limits: WorkerLimits
    initializer: Callable[[], object] | None = None
    explain: Callable[[Lost, WorkerLimits], ClipError] = decode_error
    """Says what there is to say of a job that cost its worker."""


def work(pipe: Connection[Any, Any], program: Program) -> None:
    """Run in the worker: do job after job until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        if program.initializer is not None:
            program.initializer()
    except Exception as error:  # noqa: BLE001 - the parent raises it
        pipe.send(bug_of(error))
        return
    limit_process(program.limits)
    pipe.send(None)
    with suppress(EOFError, OSError):
        while True:
            job = pipe.recv_bytes()
            limit_job(program.limits)
            pipe.send(None)  # taken up: from here on a crash is the job's own
            pipe.send_bytes(_answer(program, job))


def _answer(program: Program, job: bytes) -> Any:
    """Return the pickled result, ClipError, Lost or Bug."""
    try:
        try:
            return ForkingPickler.dumps(program.task(ForkingPickler.loads(job)))
        except ClipError as error:
            return ForkingPickler.dumps(error)
        except MemoryError:
            return ForkingPickler.dumps(Lost("memory"))
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return ForkingPickler.dumps(bug_of(error))
