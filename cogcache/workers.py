"""Processes that may crash or hang: each costs the job in hand, and is replaced.

Every worker has a pipe and a thread of its own. Workers that share a pipe, as those of pools do,
take each other down: one that is killed while it sends leaves half a message and a lock behind.
"""

from __future__ import annotations

import atexit
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from cogcache.errors import ClipError, CogcacheError, VideoError
from cogcache.units import format_seconds
from cogcache.worker_process import Bug, Program, work

Job = TypeVar("Job")
Result = TypeVar("Result")

START_TIMEOUT_S = 300.0
"""A worker that imports torch from a slow disk is not ready at once."""
# Not fork: the parent's threads (torch's, ours) would leave their locks held in the child.
_CONTEXT = multiprocessing.get_context("spawn")


def map_unordered(
    task: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    timeout_s: float,
    ahead: int,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[object, ...] = (),
) -> Generator[tuple[Job, Result | ClipError], None, None]:
    """Yield each job with ``task(job)`` or the error that it ended in, as they are done.

    The first jobs are given out at the call, before anything is asked of the generator.
    Workers end when the generator is closed or exhausted, and when this process dies in any way.
    Signals that ask to end are left to this process: a worker takes no notice of SIGINT or SIGTERM.

    Args:
        task: a function that a new process can import; its job and result travel as pickles.
        jobs: is read lazily, in the caller's thread.
        workers: number of processes.
        timeout_s: seconds that one job may take.
        ahead: jobs taken from ``jobs`` whose results are not yet taken by the caller, at most.
        initializer: is called once in each new process, with ``initargs``.
        initargs: see ``initializer``.

    Yields:
        ``(job, result)``, or ``(job, error)`` for a ClipError that the task raised, for a crash
        (VideoError ``decoder_crashed``) and for a job that took too long (``timeout``).

    Raises:
        Exception: what else the task or the initializer raised: a bug. A note on it holds the
            worker's traceback.
        CogcacheError: a worker cannot be started.
    """
    pool = _Pool(Program(task, initializer, initargs), workers, timeout_s)
    source, ahead = iter(jobs), max(ahead, 1)
    return _results(pool, source, pool.give_out(source, ahead), ahead)


def _results(
    pool: _Pool, source: Iterator[Job], in_flight: int, ahead: int
) -> Generator[tuple[Job, Any], None, None]:
    try:
        while True:
            in_flight += pool.give_out(source, ahead - in_flight)
            if not in_flight:
                return
            done, outcome = pool.results.get()
            in_flight -= 1
            if isinstance(outcome, Bug):
                raise outcome.error
            yield done, outcome
    finally:
        pool.close()


class _Pool:
    """Threads that each drive one worker process."""

    def __init__(self, program: Program, workers: int, timeout_s: float) -> None:
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.workers = [_Worker(program, timeout_s) for _ in range(workers)]
        self.threads = [
            # Daemons: a generator that nobody closes must not keep the program from ending.
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self.workers
        ]
        atexit.register(self.close)
        for thread in self.threads:
            thread.start()

    def _serve(self, worker: _Worker) -> None:
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


class _Worker:
    """One process at a time, started when there is a first job, replaced when it is lost."""

    def __init__(self, program: Program, timeout_s: float) -> None:
        self.program, self.timeout_s = program, timeout_s
        self.closed = False
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None

    def run(self, job: object) -> object:
        """Return the task's result, a ClipError, or a Bug."""
        try:
            return self._exchange(job)
        except Exception as error:  # noqa: BLE001 - else it would end a thread unseen
            return Bug(error)

    def _exchange(self, job: object) -> object:
        data = ForkingPickler.dumps(job)
        try:
            pipe = self._hand_over(data)
        except (EOFError, OSError):
            # It was killed while it had nothing to do: the job is not to blame.
            self.stop()
            pipe = self._hand_over(data)
        if not pipe.poll(self.timeout_s):
            self.stop()
            hint = "raise --decode-timeout-s if the video is long; else leave it out"
            return VideoError("timeout", f"gave up after {format_seconds(self.timeout_s)}", hint)
        try:
            return pipe.recv()
        except (EOFError, OSError):
            return _crashed(self.stop())

    def _hand_over(self, data: memoryview) -> Connection[Any, Any]:
        """Return the pipe of a process that has taken the job up."""
        pipe = self._ready()
        pipe.send_bytes(data)
        pipe.recv()
        return pipe

    def _ready(self) -> Connection[Any, Any]:
        """Return the pipe of a process that waits for a job; start one if there is none."""
        if self._pipe is not None:
            return self._pipe
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=work, args=(theirs, self.program), daemon=True)
        with self._lock:
            if self.closed:
                raise CogcacheError("the workers are closed")
            with _signals_blocked():
                process.start()
            self._process, self._pipe = process, ours
        theirs.close()  # so that its end is seen here
        said = self._first_word(ours)
        if isinstance(said, Bug):
            raise said.error
        return ours

    def _first_word(self, pipe: Connection[Any, Any]) -> object:
        with suppress(EOFError, OSError):
            if pipe.poll(START_TIMEOUT_S):
                return pipe.recv()
        raise CogcacheError(
            f"a worker process could not be started: {_ending(self.stop())}",
            "see its message above; a script that uses cogcache needs `if __name__ == '__main__':`",
        )

    def stop(self) -> int | None:
        """End the process for certain; return its exit code."""
        with self._lock:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if process is None or pipe is None:
            return None
        process.join(0.2)  # after a crash: learn how it ended before ending it
        process.kill()
        process.join()
        pipe.close()
        return process.exitcode

    def close(self) -> None:
        """Have the thread that drives this worker end; callable from any thread."""
        self.closed = True
        with self._lock:
            if self._process is not None:
                self._process.kill()


def _crashed(exit_code: int | None) -> VideoError:
    hint = "play the file to see whether it is sound; a fault in the decoder kills only this clip"
    if exit_code == -getattr(signal, "SIGKILL", 0):
        hint = "the system may have run out of memory: lower --decode-workers or --max-frames"
    problem = f"the process that worked on it crashed: {_ending(exit_code)}"
    return VideoError("decoder_crashed", problem, hint)


def _ending(exit_code: int | None) -> str:
    with suppress(ValueError):
        return f"ended by {signal.Signals(-(exit_code or 0)).name}"
    return f"ended with status {exit_code}"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have a process started here take no notice of signals from its first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
