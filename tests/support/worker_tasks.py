"""What the tests have worker processes do; a new process must be able to import it by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cogcache.errors import VideoError
from cogcache.stages.distributed.jobs import JobQueue, Result
from cogcache.video.workers.limits import WorkerLimits, limit_job


def double(number: int) -> int:
    return 2 * number


def touch(path: Path) -> None:
    """Leave a sign that a job was done."""
    path.touch()


def process_id(_job: object) -> int:
    return os.getpid()


def answer(job: object) -> object:
    """Do what a job's text says; give anything else back."""
    if isinstance(job, str):
        return ACTIONS[job]()
    return job


def _raise(error: Exception) -> None:
    raise error


def _signal_self() -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return "lived on"


def swallow(bytes_a_time: int = 32 << 20) -> None:
    """Take more and more memory, as a decoder does that is given a bomb."""
    held = []
    while True:
        held.append(bytearray(b"x") * bytes_a_time)
        time.sleep(0.01)


def ask_for_much() -> int:
    """Ask for more memory than there may be, and use none of it."""
    return len(bytearray(1 << 40))


def burn() -> None:
    """Keep the processor busy for longer than a job may."""
    limit_job(WorkerLimits(-4.0))  # one second from now
    while True:
        pass


LEAKED: list[bytearray] = []


def leak(_job: object) -> int:
    """Keep 20 MiB more with each job."""
    LEAKED.append(bytearray(b"x") * (20 << 20))
    return os.getpid()


class OddError(Exception):
    """An error that cannot be made again from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class KilledWhileSending:
    """A result so large that its process is gone before all of it is sent."""

    def __getstate__(self) -> bytes:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(400 << 20)


def write_pid_and_sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(3600)


def fail_to_start() -> None:
    raise LookupError("no model here")


def exit_at_start() -> None:
    sys.stderr.close()
    os._exit(7)


ACTIONS = {
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "killed while sending": KilledWhileSending,
    "clip error": lambda: _raise(VideoError("no_frames", "nothing to see", "look elsewhere")),
    "bug": lambda: {}["no such key"],
    "odd bug": lambda: _raise(OddError(1, 2)),
    "memory": lambda: _raise(MemoryError()),
    "no pickle": threading.Lock,
    "signals": _signal_self,
    "swallow": swallow,
    "ask for much": ask_for_much,
    "burn": burn,
}


@dataclass(frozen=True)
class Answering:
    """The role of a worker that does what a job's text says, as `answer` does, one at a time."""

    start_with: str | None = None
    """An action, instead of becoming ready."""
    needs_process = True

    def start(self) -> Answering:
        if self.start_with:
            answer(self.start_with)
        return self

    def work(self, queue: JobQueue) -> Iterator[Result]:
        while item := queue.next(wait=True):
            try:
                yield Result(item.job_id, answer(item.job))
            except VideoError as error:
                yield Result(item.job_id, error)

    def stats(self) -> int:
        return os.getpid()

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Carrying(Answering):
    """The role of the first of two phases: large payloads, each of the size that its job says."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        while item := queue.next(wait=True):
            yield Result(item.job_id, None, bytes([item.job]) * (1 << 20), size=item.job)


@dataclass(frozen=True)
class Measuring(Answering):
    """The role of the second: says what came, and from which process."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        while item := queue.next(wait=True):
            yield Result(item.job_id, (len(item.payload), item.payload[0], os.getpid()))


@dataclass(frozen=True)
class Gathering(Answering):
    """A role that takes all that waits before it does the first: shows how much is in hand."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        while first := queue.next(wait=True):
            items = [first]
            time.sleep(0.3)
            while item := queue.next(wait=False):
                items.append(item)
            for item in items:
                yield Result(item.job_id, [each.job for each in items])


@dataclass(frozen=True)
class Together(Answering):
    """A role that takes up all that waits, and dies of the job "poison"."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        while first := queue.next(wait=True):
            time.sleep(0.1)
            items = [first]
            while item := queue.next(wait=False):
                items.append(item)
            if any(item.job == "poison" for item in items):
                os.kill(os.getpid(), signal.SIGKILL)
            for item in items:
                yield Result(item.job_id, item.job)
