"""Workers that may be lost at any time, and the jobs that are given out to them.

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
"""Workers that a job may be in hand of when they are lost, before it is held to blame."""
GIVEN_UP: Final = 10
"""Jobs in a row that may be held to blame for lost workers; beyond that the workers are."""
_LOOK_EVERY_S: Final = 0.5
_PATIENCE_S: Final = 600.0
"""How long a run that is to stop waits for workers that do not come, or only load."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A place in a crew, filled by one worker after another if need be."""

    role: ActorSpec
    room: int = 1
    """Sizes of jobs that may be in its worker's hands before it is given no more."""
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
    """Something was heard of a worker: an answer, that it is lost, or else that it is ready."""

    worker: Worker
    answer: Result | None = None
    told: Any = None
    lost: str | None = None
    """How it was."""
    dropped: int | None = None
    """Ticket of a job whose parcel was lost on the way to the worker."""


class Engine(Protocol):
    """Starts workers and listens to them."""

    def hire(self, post: WorkerSpec) -> Worker:
        """Start a worker; returns at once."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what was heard of workers; waits until there is something or time is over.

        Raises:
            Exception: a worker met a bug, or an error that is no job's fault.
        """

    def close(self) -> None:
        """End all workers for certain."""


@dataclass(eq=False)
class _Pending:
    """A job on its way."""

    job: Any
    ticket: int
    size: int = 1
    parcel: Any = None
    losses: int = 0


@dataclass(eq=False)
class _Slot:
    """A post and the worker that fills it."""

    post: WorkerSpec
    phase: int
    worker: Worker
    ready: bool = False
    in_hand: dict[int, _Pending] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """How much of its room is taken."""
        return sum(load.size for load in self.in_hand.values())

    def can_take(self, load: _Pending | None = None) -> bool:
        """Say whether there is room for a job; None asks for a new one."""
        if not self.in_hand or not self.ready:
            return self.ready
        alone = any(each.losses for each in self.in_hand.values())
        return self.used < self.post.room and not alone and not (load and load.losses)

    def give(self, load: _Pending) -> None:
        """Hand its worker a job."""
        self.in_hand[load.ticket] = load
        self.worker.give(Job(load.ticket, load.job, load.parcel))


Settled = tuple[Any, Any]
"""A job and its result, a ClipError where it failed."""


class Scheduler(AbstractContextManager["Scheduler"]):
    """Does jobs with the workers of an engine.

    Args:
        engine: starts the workers; closed with the crew.
        phases: the posts of each phase.
        stop: ends the waiting for workers that do not come.
    """

    def __init__(self, engine: Engine, phases: Sequence[Sequence[WorkerSpec]], stop: Stop) -> None:
        self.engine, self.posts, self.stop = engine, phases, stop
        self.desks: list[_Slot] = []
        self.waiting: list[deque[_Pending]] = [deque() for _ in phases]
        self.losses = [0 for _ in phases]
        """Of workers, by phase, since the phase has done anything."""
        self.given_again = 0
        self.given_up = 0
        """Jobs that were lost too often, since one was not."""
        self.told: dict[str, Any] = {}
        """By the name of a worker: the last it has said of itself."""
        self._tickets = count()
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
        self._fill_posts()
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

    def _fill_posts(self) -> None:
        if not self.desks:
            self.desks = [
                _Slot(post, phase, self.engine.hire(post))
                for phase, posts in enumerate(self.posts)
                for post in posts
            ]

    def _is_over(self, more: bool) -> bool:
        if (in_hand := any(desk.in_hand for desk in self.desks)) or any(self.waiting):
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
            self.waiting[0].append(_Pending(job, next(self._tickets)))
            self._give_out()
        return True

    def _has_room(self) -> bool:
        """Say whether a new job can be begun, and will not wait long between two phases."""
        between = sum(map(len, self.waiting[1:]))
        ahead = sum(map(len, self.posts[1:]))
        free = any(desk.phase == 0 and desk.can_take() for desk in self.desks)
        return free and not self.waiting[0] and between <= ahead

    def _give_out(self) -> None:
        for phase, loads in enumerate(self.waiting):
            desks = [desk for desk in self.desks if desk.phase == phase]
            # Those that have to be alone first, or they would wait for ever.
            loads = deque(sorted(loads, key=lambda load: -load.losses))
            while loads:
                takers = [desk for desk in desks if desk.can_take(loads[0])]
                if not takers:
                    break
                min(takers, key=lambda desk: desk.used).give(loads.popleft())
            self.waiting[phase] = loads

    # ---- hearing ----------------------------------------------------------------------------

    def _hear(self, event: Event) -> list[Settled]:
        desk = next((each for each in self.desks if each.worker is event.worker), None)
        if desk is None:  # of one that was replaced since
            return []
        self._heard_s = time.monotonic()
        if event.lost is not None:
            return self._replace(desk, event.lost)
        if event.dropped is not None:
            return self._again(desk, [desk.in_hand.pop(event.dropped)], "its frames were lost too")
        if event.answer is None:
            desk.ready = True
            return []
        self.told[event.worker.name] = event.told
        return self._answered(desk, event.answer)

    def _answered(self, desk: _Slot, answer: Result) -> list[Settled]:
        load = desk.in_hand.pop(answer.ticket)
        self.losses[desk.phase] = self.given_up = 0
        if isinstance(answer.result, ClipError) or desk.phase + 1 == len(self.posts):
            return [(load.job, answer.result)]
        load.parcel, load.size = answer.parcel, answer.size
        self.waiting[desk.phase + 1].append(load)
        return []

    def _replace(self, desk: _Slot, how: str) -> list[Settled]:
        """Put another worker in the place of one that was lost."""
        self.losses[desk.phase] += 1
        if self.losses[desk.phase] > TRIES * (1 + len(self.posts[desk.phase])):
            raise CogcacheError(
                f"workers are lost one after another: {how}",
                "see their messages; with Ray, those are in the logs of its session",
            )
        loads = _taken_back(desk)
        desk.worker.end()
        self._hire(desk)
        logger.warning("a worker was lost (%s); given out again: %d clips", how, len(loads))
        return self._again(desk, loads, how)

    def _hire(self, desk: _Slot) -> None:
        desk.ready = False
        desk.worker = self.engine.hire(desk.post)

    def _again(self, desk: _Slot, loads: Sequence[_Pending], how: str) -> list[Settled]:
        """Have jobs begun anew, save those that were lost too often."""
        settled: list[Settled] = []
        for load in loads:
            load.losses, load.parcel, load.size = load.losses + 1, None, 1
            if load.losses < TRIES:
                self.given_again += 1
                self.waiting[0].append(load)
            else:
                self.given_up += 1
                if self.given_up <= GIVEN_UP:  # not the workers are to blame
                    self.losses[desk.phase] = 0
                settled.append((load.job, _given_up(how)))
        return settled


def _taken_back(desk: _Slot) -> list[_Pending]:
    loads = [*desk.in_hand.values()]
    desk.in_hand.clear()
    return loads


def _given_up(how: str) -> ClipError:
    problem = f"{TRIES} workers were lost while they had it in hand, the last one so: {how}"
    hint = "play the file to see whether it is sound, or give workers more memory"
    return ClipError("worker_lost", problem, hint)
