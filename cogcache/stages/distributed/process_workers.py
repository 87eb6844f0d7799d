"""A crew on this machine: a process a device, and a thread for each process that decodes.

Each worker has a pipe of its own, as in `workers`: one that is killed in the middle of a message
takes no other down. Parcels are handed on as the bytes they came in.
"""

from __future__ import annotations

import multiprocessing.process
import signal
import threading
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeAlias

from cogcache.stages.distributed.jobs import Actor, ActorSpec, Job, JobQueue, Result
from cogcache.stages.distributed.scheduler import Event, WorkerSpec
from cogcache.system import CONTEXT, Bug, bug_of, end_with_parent, ending, signals_blocked

READY = "ready"
Pipe: TypeAlias = "Connection[Any, Any]"


class _Message:
    """A worker at the other end of a pipe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pipe, self.theirs = CONTEXT.Pipe()

    def give(self, item: Job) -> None:
        """Send it a job."""
        # That it is gone is seen when it is listened to.
        with suppress(OSError):
            _send(self.pipe, (item.ticket, item.job), item.parcel)


class ProcessWorker(_Message):
    """A process."""

    def __init__(self, role: ActorSpec, name: str) -> None:
        super().__init__(name)
        self.process: multiprocessing.process.BaseProcess = CONTEXT.Process(
            target=serve, args=(self.theirs, role), name=name, daemon=True
        )
        with signals_blocked():
            self.process.start()
        self.theirs.close()  # so that its end is seen here

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def ended(self) -> str:
        """Say how it ended, and see that it has."""
        self.process.join(0.2)  # learn how, before ending it
        code = self.process.exitcode
        self.end()
        return ending(self.process.exitcode if code is None else code)


class ThreadWorker(_Message):
    """A thread of this process, for a role that drives a process of its own."""

    def __init__(self, role: ActorSpec, name: str) -> None:
        super().__init__(name)
        self.duty: Actor = role.start()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        _work(self.theirs, self.duty)
        self.theirs.close()

    def end(self) -> None:
        """Have it end its process and come to its end."""
        self.duty.close()
        self.pipe.close()
        self.thread.join()

    def ended(self) -> str:
        """Say how it ended."""
        self.end()
        return "its thread ended"


class ProcessEngine:
    """Starts workers and listens to them."""

    def __init__(self) -> None:
        self.workers: list[ProcessWorker | ThreadWorker] = []
        self._numbers = count(1)

    def hire(self, post: WorkerSpec) -> ProcessWorker | ThreadWorker:
        """Start a process, or a thread that drives one."""
        kind = ProcessWorker if post.role.needs_process else ThreadWorker
        worker = kind(post.role, f"{type(post.role).__name__}-{next(self._numbers)}")
        self.workers.append(worker)
        return worker

    def wait(self, timeout_s: float) -> list[Event]:
        """Listen to all workers."""
        self.workers = [worker for worker in self.workers if not worker.pipe.closed]
        by_pipe = {worker.pipe: worker for worker in self.workers}
        return [self._event(by_pipe[pipe]) for pipe in wait([*by_pipe], timeout_s)]  # type: ignore[index]

    def _event(self, worker: ProcessWorker | ThreadWorker) -> Event:
        try:
            said = ForkingPickler.loads(worker.pipe.recv_bytes())
            if isinstance(said, Bug):
                raise said.error
            if said == READY:
                return Event(worker)
            ticket, result, size, told = said
            answer = Result(ticket, result, worker.pipe.recv_bytes(), size)
        except (EOFError, ConnectionError):
            return Event(worker, lost=worker.ended())
        return Event(worker, answer, told)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            if not worker.pipe.closed:
                worker.end()


def serve(pipe: Pipe, role: ActorSpec) -> None:
    """Run in the worker: become ready, then do jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        duty = role.start()
    except Exception as error:  # noqa: BLE001 - the parent raises it
        with suppress(OSError):
            _say(pipe, bug_of(error))
        return
    _work(pipe, duty)


def _work(pipe: Pipe, duty: Actor) -> None:
    inbox = JobQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    with suppress(OSError):  # the parent has hung up
        _say(pipe, READY)
        try:
            for answer in duty.work(inbox):
                said = (answer.ticket, answer.result, answer.size, duty.told())
                _send(pipe, said, ForkingPickler.dumps(answer.parcel))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            _say(pipe, bug_of(error))


def _listen(pipe: Pipe, inbox: JobQueue) -> None:
    """Put what comes into the inbox, at once: the parent must never wait for a worker."""
    with suppress(EOFError, OSError):
        while True:
            ticket, job = ForkingPickler.loads(pipe.recv_bytes())
            parcel = pipe.recv_bytes()
            inbox.put(Job(ticket, job, ForkingPickler.loads(parcel) if parcel else None))
    inbox.close()


def _say(pipe: Pipe, message: object) -> None:
    pipe.send_bytes(ForkingPickler.dumps(message))


def _send(pipe: Pipe, message: object, parcel: Any) -> None:
    _say(pipe, message)
    pipe.send_bytes(parcel or b"")
