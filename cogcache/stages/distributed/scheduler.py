"""Hands jobs to workers, and hands them out again when a worker is lost.

A job goes through one phase after another, in each to one of the workers of that phase: decoders
and encoders in stage one. What a lost worker had in hand is given out again, from the first phase.
How workers are started and spoken to is an engine's business: processes here, or actors of Ray.

A job that takes its workers down with it must not take its neighbours too: what was in hand when
a worker was lost is given out alone from then on, and fails for good after `TRIES` losses.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Protocol

from cogcache.errors import ClipError, CogcacheError
from cogcache.stages.distributed.jobs import ActorSpec, Job, Result
from cogcache.system import Stop

logger = logging.getLogger(__name__)

TRIES: Final = 3
"""How many workers may be lost while they hold a job; after that the job itself fails."""
GIVEN_UP: Final = 10
"""How many jobs in a row may fail like this; after that the workers are at fault."""
_LOOK_EVERY_S: Final = 0.5
_PATIENCE_S: Final = 600.0
"""How long a run that is to stop waits for workers that do not come, or only load."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to start: a worker that is lost is replaced by another of the same spec."""

    actor_spec: ActorSpec
    room: int = 1
    """How many units of work its worker may hold at a time."""
    cpus: float = 0
    gpus: float = 0
    """What an engine that counts shall set aside for the worker."""


class Worker(Protocol):
    """A process somewhere."""

    name: str

    def give(self, item: Job) -> None:
        """Hand it a job; returns at once. That it is lost is heard of by `Engine.wait`."""

    def end(self) -> None:
        """End it for certain, with what it has in hand."""


@dataclass(frozen=True, slots=True)
class Event:
    """News of a worker: it has a result, it is lost, or (neither) it is ready."""

    worker: Worker
    answer: Result | None = None
    stats: Any = None
    lost: str | None = None
    """How the worker was lost, in words."""
    dropped: int | None = None
    """Id of a job whose payload was lost on the way to the worker."""


class Engine(Protocol):
    """Starts workers and listens to them."""

    def start_worker(self, worker_spec: WorkerSpec) -> Worker:
        """Start a worker; returns at once."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Return the events of all workers; waits until there is one or the time is over.

        Raises:
            Exception: a worker met a bug, or an error that is no job's fault.
        """

    def close(self) -> None:
        """End all workers for certain."""


@dataclass(eq=False)
class _Pending:
    """A job that is not done: how often it was lost, and its payload so far."""

    job: Any
    job_id: int
    size: int = 1
    payload: Any = None
    losses: int = 0


@dataclass(eq=False)
class _Slot:
    """A worker spec and the worker that fills it."""

    worker_spec: WorkerSpec
    phase: int
    worker: Worker
    ready: bool = False
    in_hand: dict[int, _Pending] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """How many units of its room are taken."""
        return sum(load.size for load in self.in_hand.values())

    def can_take(self, load: _Pending | None = None) -> bool:
        """Say whether there is room for a job; None asks for a new one."""
        if not self.in_hand or not self.ready:
            return self.ready
        alone = any(each.losses for each in self.in_hand.values())
        return self.used < self.worker_spec.room and not alone and not (load and load.losses)

    def give(self, load: _Pending) -> None:
        """Hand its worker a job."""
        self.in_hand[load.job_id] = load
        self.worker.give(Job(load.job_id, load.job, load.payload))


Settled = tuple[Any, Any]
"""A job and its result, a ClipError where it failed."""


class Scheduler(AbstractContextManager["Scheduler"]):
    """Does jobs with the workers of an engine.

    Args:
        engine: starts the workers; closed with the scheduler.
        phases: the worker specs of each phase.
        stop: ends the waiting for workers that do not come.
    """

    def __init__(self, engine: Engine, phases: Sequence[Sequence[WorkerSpec]], stop: Stop) -> None:
        self.engine, self.worker_specs, self.stop = engine, phases, stop
        self.slots: list[_Slot] = []
        self.waiting: list[deque[_Pending]] = [deque() for _ in phases]
        self.losses = [0 for _ in phases]
        """Of workers, by phase, since the phase has done anything."""
        self.num_requeued = 0
        self.given_up = 0
        """Jobs that were lost too often, since one was not."""
        self.stats: dict[str, Any] = {}
        """By the name of a worker: the last it has said of itself."""
        self._job_ids = count()
        self._heard_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def map(self, jobs: Iterator[Any]) -> Iterator[list[Settled]]:
        """Yield jobs with what became of them, as they get done.

        Args:
            jobs: taken up as there is room, in the caller's thread; None: there is none just now.

        Raises:
            Exception: what else than a ClipError a worker met.
            CogcacheError: workers are lost one after another, and nothing is done.
        """
        self._fill_slots()
        more = True
        while True:
            self._give_out()
            more = more and self._take_up(jobs)
            if self._is_over(more):
                return
            settled = []
            for event in self.engine.wait(_LOOK_EVERY_S):
                settled += self._hear(event)
            if settled:
                yield settled

    def _fill_slots(self) -> None:
        if not self.slots:
            self.slots = [
                _Slot(worker_spec, phase, self.engine.start_worker(worker_spec))
                for phase, worker_specs in enumerate(self.worker_specs)
                for worker_spec in worker_specs
            ]

    def _is_over(self, more: bool) -> bool:
        if (in_hand := any(slot.in_hand for slot in self.slots)) or any(self.waiting):
            silent_s = time.monotonic() - self._heard_s
            return bool(self.stop) and not in_hand and silent_s > _PATIENCE_S
        return not more or bool(self.stop)

    # ---- giving out -------------------------------------------------------------------------

    def _take_up(self, jobs: Iterator[Any]) -> bool:
        """Take up jobs while there is room; say whether there may be more."""
        while self._has_room():
            try:
                job = next(jobs)
            except StopIteration:
                return False
            if job is None:
                return True
            self.waiting[0].append(_Pending(job, next(self._job_ids)))
            self._give_out()
        return True

    def _has_room(self) -> bool:
        """Say whether a new job can be begun, and will not wait long between two phases."""
        between = sum(map(len, self.waiting[1:]))
        ahead = sum(map(len, self.worker_specs[1:]))
        free = any(slot.phase == 0 and slot.can_take() for slot in self.slots)
        return free and not self.waiting[0] and between <= ahead

    def _give_out(self) -> None:
        for phase, loads in enumerate(self.waiting):
            slots = [slot for slot in self.slots if slot.phase == phase]
            # Those that have to be alone first, or they would wait for ever.
            loads = deque(sorted(loads, key=lambda load: -load.losses))
            while loads:
                takers = [slot for slot in slots if slot.can_take(loads[0])]
                if not takers:
                    break
                min(takers, key=lambda slot: slot.used).give(loads.popleft())
            self.waiting[phase] = loads

    # ---- hearing ----------------------------------------------------------------------------

    def _hear(self, event: Event) -> list[Settled]:
        slot = next((each for each in self.slots if each.worker is event.worker), None)
        if slot is None:  # of one that was replaced since
            return []
        self._heard_s = time.monotonic()
        if event.lost is not None:
            return self._replace(slot, event.lost)
        if event.dropped is not None:
            return self._again(slot, [slot.in_hand.pop(event.dropped)], "its frames were lost too")
        if event.answer is None:
            slot.ready = True
            return []
        self.stats[event.worker.name] = event.stats
        return self._answered(slot, event.answer)

    def _answered(self, slot: _Slot, answer: Result) -> list[Settled]:
        load = slot.in_hand.pop(answer.job_id)
        self.losses[slot.phase] = self.given_up = 0
        if isinstance(answer.result, ClipError) or slot.phase + 1 == len(self.worker_specs):
            return [(load.job, answer.result)]
        load.payload, load.size = answer.payload, answer.size
        self.waiting[slot.phase + 1].append(load)
        return []

    def _replace(self, slot: _Slot, how: str) -> list[Settled]:
        """Put another worker in the place of one that was lost."""
        self.losses[slot.phase] += 1
        if self.losses[slot.phase] > TRIES * (1 + len(self.worker_specs[slot.phase])):
            raise CogcacheError(
                f"workers are lost one after another: {how}",
                "see their messages; with Ray, those are in the logs of its session",
            )
        loads = _taken_back(slot)
        slot.worker.end()
        self._start_worker(slot)
        logger.warning("a worker was lost (%s); given out again: %d clips", how, len(loads))
        return self._again(slot, loads, how)

    def _start_worker(self, slot: _Slot) -> None:
        slot.ready = False
        slot.worker = self.engine.start_worker(slot.worker_spec)

    def _again(self, slot: _Slot, loads: Sequence[_Pending], how: str) -> list[Settled]:
        """Have jobs begun anew, save those that were lost too often."""
        settled: list[Settled] = []
        for load in loads:
            load.losses, load.payload, load.size = load.losses + 1, None, 1
            if load.losses < TRIES:
                self.num_requeued += 1
                self.waiting[0].append(load)
            else:
                self.given_up += 1
                if self.given_up <= GIVEN_UP:  # not the workers are to blame
                    self.losses[slot.phase] = 0
                settled.append((load.job, _failure_of(how)))
        return settled


def _taken_back(slot: _Slot) -> list[_Pending]:
    loads = [*slot.in_hand.values()]
    slot.in_hand.clear()
    return loads


def _failure_of(how: str) -> ClipError:
    problem = f"{TRIES} workers were lost while they had it in hand, the last one so: {how}"
    hint = "play the file to see whether it is sound, or give workers more memory"
    return ClipError("worker_lost", problem, hint)
