"""Processes that may crash or hang: each costs the job in hand, and is replaced.

Every worker has a pipe and a thread of its own. Workers that share a pipe, as those of pools do,
take each other down: one that is killed while it sends leaves half a message and a lock behind.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cogcache.errors import ClipError
from cogcache.system import Bug
from cogcache.video.workers.decode_worker import DecodeWorker
from cogcache.video.workers.limits import WorkerLimits
from cogcache.video.workers.process import Program

Job = TypeVar("Job")
Result = TypeVar("Result")
_ASK_EVERY_S: Final = 0.2
"""How often a source of jobs is asked that has none just now."""


def map_unordered(
    task: Callable[[Job], Result],
    jobs: Iterable[Job | None],
    *,
    workers: int,
    limits: WorkerLimits,
    ahead: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[tuple[Job, Result | ClipError] | None, None, None]:
    """Yield each job with ``task(job)`` or the error that it ended in, as they are done.

    The first jobs are given out at the call, before anything is asked of the generator.
    Workers end when the generator is closed or exhausted, and when this process dies in any way.
    Signals that ask to end are left to this process: a worker takes no notice of SIGINT or SIGTERM.

    Args:
        task: a function that a new process can import; its job and result travel as pickles.
        jobs: is read lazily, in the caller's thread; None says that there is no job just now, and
            has it asked again soon.
        workers: number of processes.
        limits: what a worker may take, and when it is replaced by a fresh one.
        ahead: jobs taken from ``jobs`` whose results are not yet taken by the caller, at most.
        initializer: is called once in each new process.

    Yields:
        ``(job, result)``, or ``(job, error)`` for a ClipError that the task raised, for a crash
        (VideoError ``decoder_crashed``), and for a job that took too long (``timeout``) or too
        much memory (``decode_memory``). None while there is no job and none is in hand: to be
        used for what else waits.

    Raises:
        Exception: what else the task or the initializer raised: a bug. A note on it holds the
            worker's traceback.
        CogcacheError: a worker cannot be started.
    """
    program = Program(task, limits, initializer)
    results = _results(_Source(Pool(program, workers), iter(jobs), max(ahead, 1)))
    next(results)  # to close a generator that was never begun would leave its workers
    return results


def _results(source: _Source) -> Generator[tuple[Any, Any] | None, None, None]:
    """Yield None once the first jobs are given out, then what `map_unordered` does."""
    pool = source.pool
    try:
        source.give_out()
        yield None
        while source.more or pool.in_flight:
            done = pool.take(_ASK_EVERY_S if source.more and not source.is_full else None)
            # Before the caller goes to work on this one, so that no worker waits meanwhile.
            source.give_out()
            if done is not None or (source.more and not pool.in_flight):
                yield done
    finally:
        pool.close()


@dataclass
class _Source:
    """Jobs on their way into a pool."""

    pool: Pool
    jobs: Iterator[Any]
    ahead: int
    more: bool = True
    """Whether there may be jobs beyond those given out."""

    @property
    def is_full(self) -> bool:
        """Whether as many jobs are given out as may be."""
        return self.pool.in_flight >= self.ahead

    def give_out(self) -> None:
        """Give out jobs as far as there is room, and there are some just now."""
        while self.more and not self.is_full:
            try:
                job = next(self.jobs)
            except StopIteration:
                self.more = False
                return
            if job is None:
                return
            self.pool.give(job)


class Pool:
    """Threads that each drive one worker process; used from one thread.

    Args:
        program: what the workers run.
        workers: number of processes, each started when there is a job for it.
    """

    def __init__(self, program: Program, workers: int) -> None:
        self.in_flight = 0
        """Jobs given out whose results are not yet taken."""
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.workers = [DecodeWorker(program) for _ in range(workers)]
        self.threads = [
            # Daemons: a generator that nobody closes must not keep the program from ending.
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self.workers
        ]
        atexit.register(self.close)
        for thread in self.threads:
            thread.start()

    def _serve(self, worker: DecodeWorker) -> None:
        while not worker.closed:
            job = self.jobs.get()
            if not worker.closed:
                self.results.put((job, worker.run(job)))
        worker.stop()

    def give(self, job: Any) -> None:
        """Put a job before the workers."""
        self.in_flight += 1
        self.jobs.put(job)

    def take(self, timeout_s: float | None) -> tuple[Any, Any] | None:
        """Return a job that is done and its result or ClipError; None if none is by then.

        Args:
            timeout_s: how long to wait; None for as long as it takes.

        Raises:
            Exception: what else than a ClipError a worker met.
        """
        if not self.in_flight and timeout_s is None:
            return None
        try:
            done, outcome = self.results.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self.in_flight -= 1
        if isinstance(outcome, Bug):
            raise outcome.error
        return done, outcome

    def close(self) -> None:
        """End the workers for certain."""
        for worker in self.workers:
            worker.close()
        # Not before all are closed: a thread that is not would take the word of another's end
        # for a job, come back for the next, and leave the other waiting for ever.
        for _ in self.workers:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()
        atexit.unregister(self.close)
