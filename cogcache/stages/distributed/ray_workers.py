"""Workers on a Ray cluster: one Ray actor each.

Ray starts the actors, tells when one is lost, and carries payloads from node to node past the
driver. It restarts nothing and repeats nothing here: who was lost, what is given out again and
when a clip is to blame is the scheduler's to decide. Imports Ray only when an engine is made.
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
from pathlib import Path
from typing import Any

from cogcache.errors import CogcacheError, ConfigError
from cogcache.stages.distributed.jobs import ActorSpec, Job, JobQueue, Result
from cogcache.stages.distributed.scheduler import Event, WorkerSpec
from cogcache.system import Bug, asking_to_end, bug_of, extra_hint

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
"""Ray reports nothing home, and what it has to say of lost workers stays in its logs."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""A cluster that is started here has one node, and nobody else's machine can reach it: so Ray does
on Windows and macOS by itself. It reads this when it is imported."""


class RayActor:
    """A Ray actor: one `Actor` that works in a thread, and the calls that wait for its results."""

    def __init__(self, actor_spec: ActorSpec) -> None:
        self.queue = JobQueue()
        self.ready: Future[Bug | None] = Future()
        self.waiting: dict[int, Future[Any]] = {}
        # One thread for all of it: torch counts its threads by the thread that set their number.
        threading.Thread(target=self._work, args=(actor_spec,), daemon=True).start()

    async def become_ready(self) -> Bug | None:
        """Return when the actor has started, or why it cannot."""
        return await asyncio.wrap_future(self.ready)

    async def do(self, job_id: int, job: Any, payload: Any) -> tuple[Any, Any]:
        """Return what is said to the driver, and the payload for the next actor."""
        answer: Future[Any] = Future()
        self.waiting[job_id] = answer
        self.queue.put(Job(job_id, job, payload))
        message = await asyncio.wrap_future(answer)
        return (message, None) if isinstance(message, Bug) else message

    def _work(self, actor_spec: ActorSpec) -> None:
        try:
            actor = actor_spec.start()
            self.ready.set_result(None)
            for answer in actor.work(self.queue):
                stats = actor.stats()
                message = (answer.job_id, answer.result, answer.size, stats)
                self.waiting.pop(answer.job_id).set_result((message, answer.payload))
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
        """Call it; a payload goes as a reference, which Ray fetches to its node beforehand."""
        call = self.actor.do.options(num_returns=2)
        message, payload = call.remote(item.job_id, item.job, item.payload)
        self.engine.calls[message] = (self, item.job_id, payload)

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
        self.ray = _ray(address)
        self.calls: dict[Any, tuple[RayWorker, int | None, Any]] = {}
        """The calls under way: worker, job id and payload, by the reference of the result."""
        self._numbers = count(1)
        _connect(self.ray, address)

    def resources(self) -> tuple[int, float, float]:
        """Return how many nodes, CPUs and GPUs the cluster has."""
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        found = self.ray.cluster_resources()
        return nodes, found.get("CPU", 0.0), found.get("GPU", 0.0)

    def start_worker(self, worker_spec: WorkerSpec) -> RayWorker:
        """Start an actor."""
        # Spread: the loss of a node should cost few of them.
        options = {
            "num_cpus": worker_spec.cpus,
            "num_gpus": worker_spec.gpus,
            "scheduling_strategy": "SPREAD",
        }
        actor = (
            self.ray.remote(RayActor)
            .options(**options, max_restarts=0)
            .remote(worker_spec.actor_spec)
        )
        worker = RayWorker(
            self, actor, f"{type(worker_spec.actor_spec).__name__}-{next(self._numbers)}"
        )
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
        worker, job_id, payload = self.calls.pop(call)
        exceptions = self.ray.exceptions
        try:
            message = self.ray.get(call)
        except exceptions.ObjectLostError:
            return Event(worker, dropped=job_id)
        except (exceptions.RayTaskError, exceptions.RaySystemError):
            raise  # what was sent cannot be read: an import, a pickle, another version
        except exceptions.RayError as error:
            self.forget(worker)
            return Event(worker, lost=_reason_of(error))
        if isinstance(message, Bug):
            raise message.error
        if message is None:
            return Event(worker)
        number, result, size, stats = message
        return Event(worker, Result(number, result, payload, size), stats)

    def forget(self, worker: RayWorker) -> None:
        """Wait for nothing more from a worker."""
        self.calls = {call: each for call, each in self.calls.items() if each[0] is not worker}

    def close(self) -> None:
        """End the actors and leave the cluster; one that was started here ends too."""
        self.calls.clear()
        with _signals_kept():
            self.ray.shutdown()


def _ray(address: str | None) -> Any:
    wanted = QUIET | (LOOPBACK if _starts_here(address) else {})
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        import ray
    except ImportError as error:
        for name in new:
            del os.environ[name]
        raise ConfigError(
            "--engine ray needs Ray, which is not installed", extra_hint("ray")
        ) from error
    return ray


def _starts_here(address: str | None) -> bool:
    """Say whether Ray will find no cluster, and start one on this machine for as long as we run."""
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    running = address or os.environ.get("RAY_ADDRESS")
    return not running and not Path(place, "ray", "ray_current_cluster").exists()


def _connect(ray: Any, address: str | None) -> None:
    try:
        _check_listening(address)
        with _signals_kept():
            ray.init(
                address=address, log_to_driver=False, logging_level="error",
                include_dashboard=False, namespace="cogcache",
            )  # fmt: skip
    except (OSError, RuntimeError, ValueError, ray.exceptions.RpcError) as error:
        problem = f"cannot reach a Ray cluster at {address or 'this machine'}: {error}"
        hint = "start one with `ray start --head`, and run this on one of its nodes"
        raise CogcacheError(problem, hint) from error


def _check_listening(address: str | None) -> None:
    """Check that something listens at the address: Ray itself would try for minutes."""
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


def _reason_of(error: Exception) -> str:
    """Say how an actor was lost, without Ray's page of advice."""
    if type(error).__name__ == "OutOfMemoryError":
        return "memory ran out on its node"
    return "its node is gone" if "node has died" in str(error) else "its process has ended"
