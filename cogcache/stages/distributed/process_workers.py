"""Workers on this machine: one process a device, and one thread for each process that decodes.

Each worker has a pipe of its own, as in `workers`: one that is killed in the middle of a message
takes no other down. Payloads are handed on as the bytes they came in.
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
            _send(self.pipe, (item.job_id, item.job), item.payload)


class ProcessWorker(_Message):
    """A process."""

    def __init__(self, actor_spec: ActorSpec, name: str) -> None:
        super().__init__(name)
        self.process: multiprocessing.process.BaseProcess = CONTEXT.Process(
            target=serve, args=(self.theirs, actor_spec), name=name, daemon=True
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
    """A thread of this process, for an actor that has a process of its own."""

    def __init__(self, actor_spec: ActorSpec, name: str) -> None:
        super().__init__(name)
        self.actor: Actor = actor_spec.start()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        _work(self.theirs, self.actor)
        self.theirs.close()

    def end(self) -> None:
        """Have it end its process and come to its end."""
        self.actor.close()
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

    def start_worker(self, worker_spec: WorkerSpec) -> ProcessWorker | ThreadWorker:
        """Start a process, or a thread that drives one."""
        kind = ProcessWorker if worker_spec.actor_spec.needs_process else ThreadWorker
        worker = kind(
            worker_spec.actor_spec, f"{type(worker_spec.actor_spec).__name__}-{next(self._numbers)}"
        )
        self.workers.append(worker)
        return worker

    def wait(self, timeout_s: float) -> list[Event]:
        """Listen to all workers."""
        self.workers = [worker for worker in self.workers if not worker.pipe.closed]
        by_pipe = {worker.pipe: worker for worker in self.workers}
        return [self._event(by_pipe[pipe]) for pipe in wait([*by_pipe], timeout_s)]  # type: ignore[index]

    def _event(self, worker: ProcessWorker | ThreadWorker) -> Event:
        try:
            message = ForkingPickler.loads(worker.pipe.recv_bytes())
            if isinstance(message, Bug):
                raise message.error
            if message == READY:
                return Event(worker)
            job_id, result, size, stats = message
            answer = Result(job_id, result, worker.pipe.recv_bytes(), size)
        except (EOFError, ConnectionError):
            return Event(worker, lost=worker.ended())
        return Event(worker, answer, stats)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            if not worker.pipe.closed:
                worker.end()


def serve(pipe: Pipe, actor_spec: ActorSpec) -> None:
    """Run in the worker: become ready, then do jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        actor = actor_spec.start()
    except Exception as error:  # noqa: BLE001 - the parent raises it
        with suppress(OSError):
            _send_message(pipe, bug_of(error))
        return
    _work(pipe, actor)


def _work(pipe: Pipe, actor: Actor) -> None:
    queue = JobQueue()
    threading.Thread(target=_listen, args=(pipe, queue), daemon=True).start()
    with suppress(OSError):  # the parent has hung up
        _send_message(pipe, READY)
        try:
            for answer in actor.work(queue):
                message = (answer.job_id, answer.result, answer.size, actor.stats())
                _send(pipe, message, ForkingPickler.dumps(answer.payload))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            _send_message(pipe, bug_of(error))


def _listen(pipe: Pipe, queue: JobQueue) -> None:
    """Put what comes into the queue, at once: the parent must never wait for a worker."""
    with suppress(EOFError, OSError):
        while True:
            job_id, job = ForkingPickler.loads(pipe.recv_bytes())
            payload = pipe.recv_bytes()
            queue.put(Job(job_id, job, ForkingPickler.loads(payload) if payload else None))
    queue.close()


def _send_message(pipe: Pipe, message: object) -> None:
    pipe.send_bytes(ForkingPickler.dumps(message))


def _send(pipe: Pipe, message: object, payload: Any) -> None:
    _send_message(pipe, message)
    pipe.send_bytes(payload or b"")
