"""The messages between the scheduler and its workers: jobs, results, and the queue of a worker."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """A job for a worker."""

    job_id: int
    """Its number; the result carries the same."""
    job: Any
    payload: Any = None
    """The output of the phase before, such as decoded frames."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a job."""

    job_id: int
    result: Any
    """Small, since the driver gets it; a ClipError where the job failed."""
    payload: Any = None
    """For the worker that goes on with the job; the driver does not look at it."""
    size: int = 1
    """How many units of the next worker's `room` the job takes."""


class JobQueue:
    """Jobs that wait for a worker; any thread may put them in."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.closed = False

    def put(self, item: Job) -> None:
        """Add a job."""
        self._queue.put(item)

    def close(self) -> None:
        """Say that no more jobs will come."""
        self._queue.put(None)

    def next(self, *, wait: bool) -> Job | None:
        """Return a job; None where there is none just now, or there will be no more.

        Args:
            wait: for a job to come, or the end.
        """
        if self.closed:
            return None
        try:
            item = self._queue.get(block=wait)
        except queue.Empty:
            return None
        self.closed = item is None
        return item


class Actor(Protocol):
    """What a worker does once it is ready."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Do jobs until the queue is closed; several may be in hand at a time."""

    def stats(self) -> Any:
        """Return what the run's report shows of this worker; keep it small."""

    def close(self) -> None:
        """Ask `work` to end soon; callable from any thread."""


class ActorSpec(Protocol):
    """How a worker becomes ready. Travels to it as a pickle."""

    needs_process: bool
    """False for one that only drives a process of its own, and can do so from a thread."""

    def start(self) -> Actor:
        """Make the process ready; called in the worker, in the thread that then works."""
