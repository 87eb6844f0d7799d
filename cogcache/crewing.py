"""The crew that the settings ask for: who decodes, encodes and captions, where, and with what."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.caption_role import CaptionSpec
from cogcache.captionlist import Task
from cogcache.clip_roles import ClipJob, DecodeSpec, EncodeSpec
from cogcache.crew import Engine, Scheduler, WorkerSpec
from cogcache.crew_processes import ProcessEngine
from cogcache.errors import ClipError, ConfigError
from cogcache.models.halves.identity import HalfIdentity
from cogcache.place import WorkerEnvironment
from cogcache.readahead import CLIPS_AHEAD
from cogcache.reuse import Neighbours
from cogcache.runs import RunReport
from cogcache.settings.settings import Settings
from cogcache.system.free_memory import available_bytes
from cogcache.system.signals import Stop
from cogcache.telling import take_over
from cogcache.worklist import Clip

if TYPE_CHECKING:
    from cogcache.featuremaking import Outcome
    from cogcache.made import Made

PASSES_IN_HAND = 2
"""Batches that an encoder may have in hand: one is encoded while the next is on its way."""


@dataclass(frozen=True)
class _HalfWorker:
    """Where one worker that loads a half shall be."""

    settings: Settings
    """Of the run, with the worker's own device and memory."""
    place: WorkerEnvironment
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class WorkerLayout:
    """An engine, and where it is to put the workers that load a half."""

    engine: Engine
    seats: Sequence[_HalfWorker]
    decoders: int
    """How many decoders there may be in all."""

    @classmethod
    def of(cls, settings: Settings, cache: Path, *, decodes: bool) -> WorkerLayout:
        """Start the engine that the settings name.

        Args:
            settings: of the run.
            cache: folder of the cache.
            decodes: whether decoders are to be put beside the workers.

        Raises:
            ConfigError: the devices are not there, or Ray is not installed.
        """
        if settings.machines.engine == "ray":
            return _ray_layout(settings, cache, settings.vision.decode_workers if decodes else 0)
        return _local_layout(settings, cache)


def _local_layout(settings: Settings, cache: Path) -> WorkerLayout:
    names = settings.machines.device_names
    on_cpu = sum(name.startswith("cpu") for name in names)
    seats = [_local_worker(settings, cache, name, on_cpu) for name in names]
    return WorkerLayout(ProcessEngine(), seats, settings.vision.decode_workers * len(names))


def _local_worker(settings: Settings, cache: Path, device: str, on_cpu: int) -> _HalfWorker:
    changes: dict[str, Any] = {"device": device}
    threads = None
    if device.startswith("cpu"):
        if settings.memory == "auto":  # each would take what is free for its own alone
            changes["memory"] = f"{available_bytes() // on_cpu}B"
        if "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, (os.cpu_count() or 1) // on_cpu)
    return _HalfWorker(settings.model_copy(update=changes), _environment(settings, cache, threads))


def _ray_layout(settings: Settings, cache: Path, decode_workers: int) -> WorkerLayout:
    from cogcache.crew_ray import RayEngine

    if ":" in settings.device:
        problem = f"--device {settings.device} names a card, but on Ray each worker gets one of its"
        raise ConfigError(f"{problem} own", "leave --device out, or give cuda or cpu")
    machines = settings.machines
    engine = RayEngine(machines.address)
    nodes, cpus, gpus = engine.resources()
    gpus_each = machines.gpus_per_worker if gpus and settings.device != "cpu" else 0
    if settings.device not in ("auto", "cpu") and not gpus_each:
        engine.close()
        raise ConfigError("the Ray cluster has no GPU", "use --device auto or --device cpu")
    usual = int(gpus / gpus_each) if gpus_each else nodes
    count = usual if machines.workers == "auto" else int(machines.workers)
    count = max(1, count)
    cpus_each = 0 if gpus_each else max(1, int(cpus / count) - decode_workers)
    seat = _HalfWorker(
        settings if gpus_each else settings.model_copy(update={"device": "cpu"}),
        _environment(settings, cache, cpus_each or None),
        cpus_each,
        gpus_each,
    )
    decoders = min(decode_workers * count, max(1, int(cpus) - cpus_each * (count - 1)))
    return WorkerLayout(engine, [seat] * count, decoders)


def _environment(settings: Settings, cache: Path, threads: int | None) -> WorkerEnvironment:
    """Workers may stand in another folder: paths go to them whole."""
    folder = Path(settings.model)
    is_folder = settings.model != "tiny" and folder.is_dir()
    return WorkerEnvironment(
        str(folder.absolute()) if is_folder else settings.model, cache.absolute(), threads
    )


def _with_whole_paths(settings: Settings) -> Settings:
    language = settings.language
    if language.keep_prefix is None:
        return settings
    kept = str(Path(language.keep_prefix).absolute())
    return settings.model_copy(
        update={"language": language.model_copy(update={"keep_prefix": kept})}
    )


def _spec(number: int, seat: _HalfWorker, role: Any, room: int) -> WorkerSpec:
    # The first of each phase asks for no CPU: another phase, or a node's death, could otherwise
    # leave none for it, and all would wait for ever.
    return WorkerSpec(role, room, cpus=seat.cpus if number else 0, gpus=seat.gpus)


@dataclass
class DistributedEncoding:
    """Makes the features of clips with the workers of a crew."""

    crew: Scheduler
    neighbours: Neighbours

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done."""
        jobs = (clip and ClipJob(clip, tuple(self.neighbours(clip))) for clip in clips)
        for settled in self.crew.map(jobs):
            yield [(job.clip, outcome) for job, outcome in settled]


@contextmanager
def distributed_encoding(
    settings: Settings, cache: Path, neighbours: Neighbours, stop: Stop, report: RunReport
) -> Iterator[DistributedEncoding]:
    """Have a crew for stage one while a `with` block needs it; the report is told of it."""
    staff = WorkerLayout.of(settings, cache, decodes=True)
    vision = settings.vision
    room = PASSES_IN_HAND * vision.frames_per_batch
    encoders = [
        _spec(number, seat, EncodeSpec(seat.settings, seat.place), room)
        for number, seat in enumerate(staff.seats)
    ]
    decoding = DecodeSpec(settings, _environment(settings, cache, None))
    decoders = [WorkerSpec(decoding, cpus=1 if number else 0) for number in range(staff.decoders)]
    with _watched(Scheduler(staff.engine, [decoders, encoders], stop), report) as crew:
        yield DistributedEncoding(crew, neighbours)


@dataclass
class DistributedCaptioning:
    """Makes captions with the workers of a crew."""

    crew: Scheduler

    def captions(
        self, tasks: Iterable[Task]
    ) -> Iterator[tuple[list[Task], list[Made] | ClipError]]:
        """Yield the captions of clips, or why a clip has none, as they get done.

        Args:
            tasks: those of a clip must be neighbours.
        """
        by_clip = groupby(tasks, lambda task: (task.words is None, task.key.feature_key))
        clips = (list(each) for _, each in by_clip)
        for settled in self.crew.map(takewhile(lambda _: not self.crew.stop, clips)):
            yield from settled


@contextmanager
def distributed_captioning(
    settings: Settings, cache: Path, identity: HalfIdentity, stop: Stop, report: RunReport
) -> Iterator[DistributedCaptioning]:
    """Have a crew for stage two while a `with` block needs it; the report is told of it."""
    staff = WorkerLayout.of(_with_whole_paths(settings), cache, decodes=False)
    rows = settings.language.clips_per_batch
    captions = len(settings.prompts) * settings.generation.n
    room = -(-rows // captions) + CLIPS_AHEAD
    posts = [
        _spec(number, seat, CaptionSpec(seat.settings, seat.place, identity), room)
        for number, seat in enumerate(staff.seats)
    ]
    with _watched(Scheduler(staff.engine, [posts], stop), report) as crew:
        yield DistributedCaptioning(crew)


@contextmanager
def _watched(crew: Scheduler, report: RunReport) -> Iterator[Scheduler]:
    """Close a crew after use, and put into the report what was heard of it."""
    with crew:
        try:
            yield crew
        finally:
            take_over(report, [told for told in crew.told.values() if told is not None])
            if crew.given_again:
                report.notes.append(f"given out again, for lost workers: {crew.given_again}")
