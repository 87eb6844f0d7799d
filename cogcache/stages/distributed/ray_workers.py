"""A crew of actors on a Ray cluster.

Ray starts the actors, tells when one is lost, and carries parcels from node to node past the
driver. It restarts nothing and repeats nothing here: who was lost, what is given out again and
when a clip is to blame is the crew's to decide. Imports Ray only when an engine is made.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from cogcache.errors import CogcacheError, ConfigError
from cogcache.stages.distributed.jobs import ActorSpec, Job, JobQueue, Result
from cogcache.stages.distributed.scheduler import Event, WorkerSpec
from cogcache.system import Bug, asking_to_end, bug_of

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
"""Ray reports nothing home, and what it has to say of lost workers stays in its logs."""


class RayActor:
    """What an actor is: a role at work in a thread, and the calls that wait for its answers."""

    def __init__(self, role: ActorSpec) -> None:
        self.inbox = JobQueue()
        self.ready: Future[Bug | None] = Future()
        self.waiting: dict[int, Future[Any]] = {}
        # One thread for all of it: torch counts its threads by the thread that set their number.
        threading.Thread(target=self._work, args=(role,), daemon=True).start()

    async def become_ready(self) -> Bug | None:
        """Return when the role has started, or why it cannot."""
        return await asyncio.wrap_future(self.ready)

    async def do(self, ticket: int, job: Any, parcel: Any) -> tuple[Any, Any]:
        """Return what is said to the driver, and the parcel for the next actor."""
        answer: Future[Any] = Future()
        self.waiting[ticket] = answer
        self.inbox.put(Job(ticket, job, parcel))
        said = await asyncio.wrap_future(answer)
        return (said, None) if isinstance(said, Bug) else said

    def _work(self, role: ActorSpec) -> None:
        try:
            duty = role.start()
            self.ready.set_result(None)
            for answer in duty.work(self.inbox):
                told = duty.told()
                said = (answer.ticket, answer.result, answer.size, told)
                self.waiting.pop(answer.ticket).set_result((said, answer.parcel))
        except Exception as error:  # noqa: BLE001 - the driver raises it
            bug = bug_of(error)
            for each in (self.ready, *self.waiting.values()):
                if not each.done():
                    each.set_result(bug)


class RayWorker:
    """One actor."""

    def __init__(self, engine: RayEngine, actor: Any, name: str) -> None:
        self.engine, self.actor, self.name = engine, actor, name

    def give(self, item: Job) -> None:
        """Call it; a parcel goes as a reference, which Ray fetches to its node beforehand."""
        call = self.actor.do.options(num_returns=2)
        said, parcel = call.remote(item.ticket, item.job, item.parcel)
        self.engine.calls[said] = (self, item.ticket, parcel)

    def end(self) -> None:
        """Kill it."""
        self.engine.forget(self)
        with suppress(Exception):  # it may be gone, and its node with it
            self.engine.ray.kill(self.actor)


class RayEngine:
    """Starts actors and listens to them.

    Args:
        address: of the cluster; None finds the one that runs on this machine, or starts one.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        self.ray = _ray()
        self.calls: dict[Any, tuple[RayWorker, int | None, Any]] = {}
        """What is waited for: by the reference of an answer its worker, ticket and parcel."""
        self._numbers = count(1)
        _connect(self.ray, address)

    def resources(self) -> tuple[int, float, float]:
        """Return how many nodes, CPUs and GPUs the cluster has."""
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        found = self.ray.cluster_resources()
        return nodes, found.get("CPU", 0.0), found.get("GPU", 0.0)

    def hire(self, post: WorkerSpec) -> RayWorker:
        """Start an actor."""
        # Spread: the loss of a node should cost few of them.
        options = {"num_cpus": post.cpus, "num_gpus": post.gpus, "scheduling_strategy": "SPREAD"}
        actor = self.ray.remote(RayActor).options(**options, max_restarts=0).remote(post.role)
        worker = RayWorker(self, actor, f"{type(post.role).__name__}-{next(self._numbers)}")
        self.calls[actor.become_ready.remote()] = (worker, None, None)
        return worker

    def wait(self, timeout_s: float) -> list[Event]:
        """Listen to all actors."""
        if not self.calls:
            time.sleep(timeout_s)
            return []
        calls = [*self.calls]
        ready, _ = self.ray.wait(calls, num_returns=1, timeout=timeout_s)
        if ready:  # all that is there by now
            ready, _ = self.ray.wait(calls, num_returns=len(calls), timeout=0)
        return [self._event(call) for call in ready if call in self.calls]

    def _event(self, call: Any) -> Event:
        worker, ticket, parcel = self.calls.pop(call)
        exceptions = self.ray.exceptions
        try:
            said = self.ray.get(call)
        except exceptions.ObjectLostError:
            return Event(worker, dropped=ticket)
        except (exceptions.RayTaskError, exceptions.RaySystemError):
            raise  # what was sent cannot be read: an import, a pickle, another version
        except exceptions.RayError as error:
            self.forget(worker)
            return Event(worker, lost=_how(error))
        if isinstance(said, Bug):
            raise said.error
        if said is None:
            return Event(worker)
        number, result, size, told = said
        return Event(worker, Result(number, result, parcel, size), told)

    def forget(self, worker: RayWorker) -> None:
        """Wait for nothing more from a worker."""
        self.calls = {call: each for call, each in self.calls.items() if each[0] is not worker}

    def close(self) -> None:
        """End the actors and leave the cluster; one that was started here ends too."""
        self.calls.clear()
        with _signals_kept():
            self.ray.shutdown()


def _ray() -> Any:
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed", "pip install 'cogcache[ray]'"
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    try:
        _knock(address)
        with _signals_kept():
            ray.init(
                address=address, log_to_driver=False, logging_level="error",
                include_dashboard=False, namespace="cogcache",
            )  # fmt: skip
    except (OSError, RuntimeError, ValueError, ray.exceptions.RpcError) as error:
        problem = f"cannot reach a Ray cluster at {address or 'this machine'}: {error}"
        hint = "start one with `ray start --head`, and run this on one of its nodes"
        raise CogcacheError(problem, hint) from error


def _knock(address: str | None) -> None:
    """See that somebody listens there: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of this process, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = asking_to_end()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(error: Exception) -> str:
    """Say how an actor was lost, without Ray's page of advice."""
    if type(error).__name__ == "OutOfMemoryError":
        return "memory ran out on its node"
    return "its node is gone" if "node has died" in str(error) else "its process has ended"
