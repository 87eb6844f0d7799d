"""Which workers the settings ask for: what decodes, encodes and captions, and on which device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cogcache.errors import ConfigError
from cogcache.settings import Settings
from cogcache.stages.distributed.process_workers import ProcessEngine
from cogcache.stages.distributed.scheduler import Engine, Scheduler, WorkerSpec
from cogcache.stages.distributed.stage_worker import WorkerEnvironment, take_over
from cogcache.stages.runs.report import RunReport
from cogcache.system import available_bytes, check_devices


@dataclass(frozen=True)
class _HalfWorker:
    """One worker that loads a half: its settings, its environment, what it takes of the machine."""

    settings: Settings
    """Of the run, with the worker's own device and memory."""
    environment: WorkerEnvironment
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class WorkerLayout:
    """An engine, the workers that load a half, and the number of decoders."""

    engine: Engine
    workers: Sequence[_HalfWorker]
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
    check_devices(names)
    on_cpu = sum(name.startswith("cpu") for name in names)
    workers = [_local_worker(settings, cache, name, on_cpu) for name in names]
    return WorkerLayout(ProcessEngine(), workers, settings.vision.decode_workers * len(names))


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
    worker = _HalfWorker(
        settings if gpus_each else settings.model_copy(update={"device": "cpu"}),
        _environment(settings, cache, cpus_each or None),
        cpus_each,
        gpus_each,
    )
    decoders = min(decode_workers * count, max(1, int(cpus) - cpus_each * (count - 1)))
    return WorkerLayout(engine, [worker] * count, decoders)


def _environment(settings: Settings, cache: Path, threads: int | None) -> WorkerEnvironment:
    """Return the environment of workers; paths are absolute, as workers run in other folders."""
    folder = Path(settings.model)
    is_folder = settings.model != "tiny" and folder.is_dir()
    return WorkerEnvironment(
        str(folder.absolute()) if is_folder else settings.model, cache.absolute(), threads
    )


def worker_spec_of(number: int, worker: _HalfWorker, actor_spec: Any, room: int) -> WorkerSpec:
    """Return what the scheduler starts for the numbered worker of a phase."""
    # The first of each phase asks for no CPU: another phase, or a node's death, could otherwise
    # leave none for it, and all would wait for ever.
    spec = quiet_but_for_first(number, actor_spec)
    return WorkerSpec(spec, room, cpus=worker.cpus if number else 0, gpus=worker.gpus)


def quiet_but_for_first(number: int, actor_spec: Any) -> Any:
    """Return the numbered worker's spec: the first of a phase shows what transformers warns of."""
    return replace(actor_spec, environment=replace(actor_spec.environment, quiet=number > 0))


@contextmanager
def reporting(scheduler: Scheduler, report: RunReport) -> Iterator[Scheduler]:
    """Close a scheduler after use, and put into the report what its workers reported."""
    with scheduler:
        try:
            yield scheduler
        finally:
            take_over(report, [stats for stats in scheduler.stats.values() if stats is not None])
            if scheduler.num_requeued:
                report.warn([f"given out again, for lost workers: {scheduler.num_requeued}"])
