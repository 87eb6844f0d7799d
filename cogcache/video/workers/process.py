"""What a worker process does: job after job, until its parent hangs up or dies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from cogcache.errors import ClipError, VideoError
from cogcache.system import bug_of, end_with_parent
from cogcache.units import format_bytes
from cogcache.video.workers.limits import WorkerLimits, limit_job, limit_process


@dataclass(frozen=True)
class Program:
    """What a worker runs: a task for each job, and what makes it ready first."""

    task: Callable[[Any], Any]
    limits: WorkerLimits
    initializer: Callable[[], object] | None = None
    second_try: Callable[[Any, str], Any] | None = None


@dataclass(frozen=True)
class Doing:
    """What a worker is at: should it be lost, this is what cost it."""

    what: str


_PIPES: list[Connection[Any, Any]] = []
"""To the parent, in a worker."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Let the parent know what a `with` block in a worker does; elsewhere nothing happens."""
    for pipe in _PIPES:
        pipe.send(Doing(what))
    yield
    for pipe in _PIPES:
        pipe.send(Doing(""))


def work(pipe: Connection[Any, Any], program: Program) -> None:
    """Run in the worker: do job after job until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _PIPES.append(pipe)
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
    """Return the pickled result, ClipError or Bug."""
    try:
        try:
            return ForkingPickler.dumps(program.task(ForkingPickler.loads(job)))
        except ClipError as error:
            return ForkingPickler.dumps(error)
        except MemoryError:
            return ForkingPickler.dumps(too_much_memory(program.limits.memory_bytes))
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return ForkingPickler.dumps(bug_of(error))


def too_much_memory(most_bytes: int | None) -> VideoError:
    """Return the error of a job that took more memory than it may, or than there is."""
    most = f" with the {format_bytes(most_bytes)} that it may take" if most_bytes else ""
    hint = "lower --max-frames, or raise --decode-memory if the machine has more"
    return VideoError("decode_memory", f"the decoder does not get by{most}: memory ran out", hint)
