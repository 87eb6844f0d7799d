"""Processes that may crash or hang: each costs the job in hand, and is replaced.

Every worker has a pipe and a thread of its own. Workers that share a pipe, as those of pools do,
take each other down: one that is killed while it sends leaves half a message and a lock behind.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from cogcache.config import Vision
from cogcache.errors import ClipError
from cogcache.units import GIB
from cogcache.worker import Worker
from cogcache.worker_limits import WorkerLimits
from cogcache.worker_process import Bug, Program

Job = TypeVar("Job")
Result = TypeVar("Result")


def decode_limits(vision: Vision) -> WorkerLimits:
    """Return what a decode worker may take, and when it is replaced."""
    memory_gib = vision.decode_memory_gib
    return WorkerLimits(
        timeout_s=vision.decode_timeout_s,
        memory_bytes=None if memory_gib is None else round(memory_gib * GIB),
        jobs=vision.recycle_clips,
        growth_bytes=round(vision.recycle_growth_gib * GIB),
    )


def map_unordered(
    task: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    limits: WorkerLimits,
    ahead: int,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[object, ...] = (),
    second_try: Callable[[Job, str], Job | None] | None = None,
) -> Generator[tuple[Job, Result | ClipError], None, None]:
    """Yield each job with ``task(job)`` or the error that it ended in, as they are done.

    The first jobs are given out at the call, before anything is asked of the generator.
    Workers end when the generator is closed or exhausted, and when this process dies in any way.
    Signals that ask to end are left to this process: a worker takes no notice of SIGINT or SIGTERM.

    Args:
        task: a function that a new process can import; its job and result travel as pickles.
        jobs: is read lazily, in the caller's thread.
        workers: number of processes.
        limits: what a worker may take, and when it is replaced by a fresh one.
        ahead: jobs taken from ``jobs`` whose results are not yet taken by the caller, at most.
        initializer: is called once in each new process, with ``initargs``.
        initargs: see ``initializer``.
        second_try: is told of a job that cost its worker, with what the worker was `doing` at that
            moment; returns how to do the job otherwise, in a fresh worker, or None.

    Yields:
        ``(job, result)``, or ``(job, error)`` for a ClipError that the task raised, for a crash
        (VideoError ``decoder_crashed``), and for a job that took too long (``timeout``) or too
        much memory (``decode_memory``).

    Raises:
        Exception: what else the task or the initializer raised: a bug. A note on it holds the
            worker's traceback.
        CogcacheError: a worker cannot be started.
    """
    program = Program(task, limits, initializer, initargs, second_try)
    pool = _Pool(program, workers)
    source = iter(jobs)
    return _results(pool, source, pool.give_out(source, max(ahead, 1)))


def _results(
    pool: _Pool, source: Iterator[Job], in_flight: int
) -> Generator[tuple[Job, Any], None, None]:
    try:
        while in_flight:
            done, outcome = pool.results.get()
            if isinstance(outcome, Bug):
                raise outcome.error
            # Before the caller goes to work on this one, so that no worker waits meanwhile.
            in_flight += pool.give_out(source, 1) - 1
            yield done, outcome
    finally:
        pool.close()


class _Pool:
    """Threads that each drive one worker process."""

    def __init__(self, program: Program, workers: int) -> None:
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.workers = [Worker(program) for _ in range(workers)]
        self.threads = [
            # Daemons: a generator that nobody closes must not keep the program from ending.
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self.workers
        ]
        atexit.register(self.close)
        for thread in self.threads:
            thread.start()

    def _serve(self, worker: Worker) -> None:
        while not worker.closed:
            job = self.jobs.get()
            if not worker.closed:
                self.results.put((job, worker.run(job)))
        worker.stop()

    def give_out(self, jobs: Iterator[Any], most: int) -> int:
        """Put up to ``most`` jobs before the workers; return how many there were."""
        count = 0
        for job in islice(jobs, most):
            self.jobs.put(job)
            count += 1
        return count

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        # Not before all are closed: a thread that is not would take the word of another's end
        # for a job, come back for the next, and leave the other waiting for ever.
        for _ in self.workers:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()
        atexit.unregister(self.close)
