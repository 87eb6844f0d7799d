"""The crew that the settings ask for: who decodes, encodes and captions, where, and with what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogcache.errors import ConfigError
from cogcache.settings import Settings
from cogcache.stages.distributed.process_workers import ProcessEngine
from cogcache.stages.distributed.scheduler import Engine, Scheduler, WorkerSpec
from cogcache.stages.distributed.stage_worker import WorkerEnvironment, take_over
from cogcache.stages.runs.report import RunReport
from cogcache.system import available_bytes


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
    from cogcache.stages.distributed.ray_workers import RayEngine

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


def _spec(number: int, seat: _HalfWorker, role: Any, room: int) -> WorkerSpec:
    # The first of each phase asks for no CPU: another phase, or a node's death, could otherwise
    # leave none for it, and all would wait for ever.
    return WorkerSpec(role, room, cpus=seat.cpus if number else 0, gpus=seat.gpus)


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
