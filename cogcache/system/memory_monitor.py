"""How much memory a stage really takes, sampled in a thread during every run.

Three figures, since they are different promises. Anonymous memory is what the process alone
holds; file-backed memory is what it has mapped, such as bf16 weights on the CPU, which the
kernel may drop; device memory is what the GPU allocator gave out.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from cogcache.system.devices import accelerator_in_use

SAMPLE_EVERY_S = 0.05
TIMELINE_POINTS = 600
"""Most points a timeline keeps; beyond it every second one goes and the interval doubles."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory of this process at one moment, in bytes."""

    time_s: float = 0.0
    anonymous_bytes: int = 0
    file_bytes: int = 0
    device_bytes: int = 0
    reserved_bytes: int = 0
    driver_bytes: int = 0
    """What the GPU's driver counts, of all processes: 0 where NVML (nvidia-ml-py) is not there."""

    @property
    def host_bytes(self) -> int:
        """Resident memory of the process."""
        return self.anonymous_bytes + self.file_bytes

    def as_dict(self) -> dict[str, float]:
        """Return the sample by field name, for JSON."""
        return asdict(self)


def sample(since_s: float = 0.0) -> MemorySample:
    """Measure this process now; `time_s` counts from `since_s` (of `time.monotonic`).

    What is measured here is part of the peak of every monitor that runs.
    """
    now = _measured(since_s)
    for monitor in tuple(_RUNNING):
        monitor.raise_peak(now)
    return now


def _measured(since_s: float) -> MemorySample:
    anonymous, mapped = _host_bytes()
    device, reserved = _device_bytes()
    driver = _driver_bytes() if reserved else 0
    return MemorySample(time.monotonic() - since_s, anonymous, mapped, device, reserved, driver)


def _host_bytes() -> tuple[int, int]:
    if not _STATUS.exists():  # not Linux: no split between the two kinds
        import psutil

        return int(psutil.Process().memory_info().rss), 0
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    kib = {name: int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile")}
    return kib["RssAnon"] * 1024, kib["RssFile"] * 1024


def _device_bytes() -> tuple[int, int]:
    if not accelerator_in_use():
        return 0, 0
    accelerator = sys.modules["torch"].accelerator
    return int(accelerator.memory_allocated()), int(accelerator.memory_reserved())


@cache
def _nvml() -> Callable[[], int] | None:
    """Return what asks the driver; None where it cannot be asked, which is tried once."""
    torch = sys.modules["torch"]
    with suppress(Exception):  # pynvml is absent, or the driver has none of it
        torch.cuda.device_memory_used()
        used: Callable[[], int] = torch.cuda.device_memory_used
        return used
    return None


def _driver_bytes() -> int:
    ask = _nvml()
    return int(ask()) if ask else 0


class MemoryMonitor:
    """Samples memory while a `with` block runs, into `peak` and `timeline`.

    The peak of each figure is its own: they need not fall together.
    """

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.start = sample(self.started_s)
        self.peak = self.start
        self.timeline: list[MemorySample] = [self.start]
        self._every_s = SAMPLE_EVERY_S
        self._stop = threading.Event()
        self._raising = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="memory-monitor", daemon=True)

    def __enter__(self) -> Self:
        _RUNNING.add(self)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()
        _RUNNING.discard(self)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._take()

    def _take(self) -> None:
        with suppress(OSError):  # no more files to open: the stage says so where it matters
            self._record(_measured(self.started_s))

    def raise_peak(self, now: MemorySample) -> None:
        """Take a sample into the peak."""
        device, reserved = now.device_bytes, now.reserved_bytes
        if device or reserved:  # the allocator's own peak misses nothing between two samples
            accelerator = sys.modules["torch"].accelerator
            device = int(accelerator.max_memory_allocated())
            reserved = int(accelerator.max_memory_reserved())
        with self._raising:
            peak = self.peak
            self.peak = MemorySample(
                now.time_s,
                max(peak.anonymous_bytes, now.anonymous_bytes),
                max(peak.file_bytes, now.file_bytes),
                max(peak.device_bytes, device),
                max(peak.reserved_bytes, reserved),
                max(peak.driver_bytes, now.driver_bytes),
            )

    def _record(self, now: MemorySample) -> None:
        self.raise_peak(now)
        self.timeline.append(now)
        if len(self.timeline) > TIMELINE_POINTS:
            self.timeline = self.timeline[::2]
            self._every_s *= 2


_RUNNING: set[MemoryMonitor] = set()
