"""What a worker process may take before it is ended, and before it is replaced."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Final, Literal

from cogcache.errors import VideoError
from cogcache.settings import Vision
from cogcache.units import GIB, format_bytes, format_seconds

if sys.platform != "win32":
    import resource

_SPARE_S: Final = 5
"""Seconds of the processor beyond the time-out: that one is to come first."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker may take. Time and memory are a job's; the rest is a process'."""

    timeout_s: float
    """Seconds that one job may take, by the clock and of the processor."""
    memory_bytes: int | None = None
    """Resident memory; None for any."""
    jobs: int | None = None
    """Jobs after which a process is replaced; None for never."""
    growth_bytes: int = GIB
    """Resident memory that a process may keep between jobs, beyond what it began with."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A job that cost its worker, or that the worker could not do within its limits."""

    by: Literal["crash", "time", "processor", "memory"]
    ending: str = ""
    """How the process ended."""
    is_killed: bool = False
    """Whether another process, or the system, ended it."""


def decode_error(lost: Lost, limits: WorkerLimits) -> VideoError:
    """Return what there is to say of a clip that cost its decode worker."""
    if lost.by == "memory":
        most = limits.memory_bytes
        told = f" with the {format_bytes(most)} that it may take" if most else ""
        problem = f"the decoder does not get by{told}: memory ran out"
        hint = "lower --max-frames, or raise --decode-memory-gib if the machine has more"
        return VideoError("decode_memory", problem, hint)
    if lost.by != "crash":
        of = " of the processor" if lost.by == "processor" else ""
        hint = "raise --decode-timeout-s if the video is long; else leave it out"
        problem = f"gave up after {format_seconds(limits.timeout_s)}{of}"
        return VideoError("timeout", problem, hint)
    hint = "play the file to see whether it is sound; a fault in the decoder kills only this clip"
    if lost.is_killed:
        hint = "the system may have run out of memory: lower --decode-workers or --max-frames"
    problem = f"the process that worked on it crashed: {lost.ending}"
    return VideoError("decoder_crashed", problem, hint)


def limit_process(limits: WorkerLimits) -> None:
    """Have the system itself keep this process within bounds, whatever becomes of its parent.

    The parent looks at a worker's memory many times a second and knows the reason when it ends
    it. This bound lies a little above, for when the parent is held up. What it counts is memory
    that was asked for, in use or not.
    """
    if sys.platform == "win32":
        return
    _set(resource.RLIMIT_CORE, 0)  # a crash is a row in a list, and no file of some GB
    in_use = _data_bytes()
    if limits.memory_bytes is not None and in_use is not None:
        _set(resource.RLIMIT_DATA, in_use + limits.memory_bytes + limits.memory_bytes // 8)


def limit_job(limits: WorkerLimits) -> None:
    """Give this process seconds of the processor for its next job; beyond them SIGXCPU ends it."""
    if sys.platform == "win32":
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    used_s = used.ru_utime + used.ru_stime
    _set(resource.RLIMIT_CPU, math.ceil(used_s + limits.timeout_s) + _SPARE_S)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use; 0 if there is none of this number."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _set(what: int, value: int) -> None:
    _, hardest = resource.getrlimit(what)
    if hardest != resource.RLIM_INFINITY:
        value = min(value, hardest)
    resource.setrlimit(what, (value, hardest))


def _data_bytes() -> int | None:
    """Return the memory that this process has been given and may write; None where unknown."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(lines["VmData"].split()[0]) * 1024


def decode_limits(vision: Vision) -> WorkerLimits:
    """Return what a decode worker may take, and when it is replaced."""
    memory_gib = vision.decode_memory_gib
    return WorkerLimits(
        timeout_s=vision.decode_timeout_s,
        memory_bytes=None if memory_gib is None else round(memory_gib * GIB),
        jobs=vision.recycle_clips,
        growth_bytes=round(vision.recycle_growth_gib * GIB),
    )
