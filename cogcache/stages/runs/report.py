"""What a run reports: counts, where the time went, planned and measured memory."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cogcache.catalog import RunEnd
from cogcache.system import MemoryMonitor, MemorySample, version_of

if TYPE_CHECKING:
    from cogcache.planning import LoadNotes, StagePlan

REPORTED_VERSIONS = ("cogcache", "torch", "transformers", "bitsandbytes", "h5py")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on."""
    return {package: version_of(package) for package in REPORTED_VERSIONS}


@dataclass
class Counts:
    """Clips of stage one, or captions of stage two."""

    found: int = 0
    cached: int = 0
    """There already."""
    done: int = 0
    failed: int = 0
    skipped: int = 0
    """Failed in an earlier run and not tried again."""
    copies: int = 0
    """Clips of files with the same bytes as another; listed, and not made again."""
    searched: int = 0
    """Videos that this run has searched for scenes."""
    unsearched: int = 0
    """Videos whose clips are not among `found` yet, as it is not known how they are cut."""

    @property
    def settled(self) -> int:
        """How many of `found` are finished, one way or another."""
        return self.cached + self.done + self.failed + self.skipped


class Timings:
    """Wall-clock seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count the time of a `with` block under `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    def add(self, part: str, seconds: float) -> None:
        """Count time under `part`."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


@dataclass
class RunState:
    """Where a run is just now; no part of what it reports in the end."""

    searching: str = ""
    """The videos that are searched for scenes, and how far."""
    expected: float | None = 0.0
    """Clips that are expected in videos not cut yet; None where nothing is known to go by."""


@dataclass
class RunReport:
    """What one run of one stage did; `report_lines` words it for a reader.

    Example:
        >>> report = extract("clips/", "cache", settings)  # doctest: +SKIP
        >>> report.counts.failed, report.total_s  # doctest: +SKIP
        (0, 12.8)
    """

    run: int
    command: str
    model: str
    counts: Counts
    timings: Timings
    shard: str | None = None
    """The share of the work that was this run's, such as `3/16`."""
    fail_on_known: bool = False
    """Whether clips that failed before, and are left out, count as failed now."""
    planned: StagePlan | None = None
    peak: MemorySample | None = None
    workers_peak: MemorySample | None = None
    """Of the worker that took most memory, where workers loaded the half."""
    base_bytes: int = 0
    """Memory used before weights are loaded: the interpreter and its libraries."""
    bytes_by_shard: Mapping[str, int] = field(default_factory=dict)
    quantization: str | None = None
    notes: list[str] = field(default_factory=list)
    """What was chosen, and why."""
    warnings: list[str] = field(default_factory=list)
    """Those of the notes that are shown unasked."""
    stopped: str | None = None
    """Why the run ended before its work did."""
    fault: bool = False
    """Whether it stopped because of a fault that the user has to mend."""
    error: str | None = None
    """What ended the run, if that was an error."""
    total_s: float = 0.0
    timeline: list[MemorySample] = field(default_factory=list)
    training: Mapping[str, Any] = field(default_factory=dict)
    """What a run that trains has come to: losses, and captions before and after."""
    state: RunState = field(default_factory=RunState)
    """Where the run is, while it goes on."""

    def finish(self, monitor: MemoryMonitor) -> None:
        """Take over what was measured."""
        self.peak = self.workers_peak or monitor.peak
        self.total_s = time.monotonic() - monitor.started_s
        self.timeline = monitor.timeline

    def warn(self, notes: Iterable[str]) -> None:
        """Note what a user is told unasked."""
        some = list(notes)
        self.notes += some
        self.warnings += some

    def note_load(self, notes: LoadNotes) -> None:
        """Take over what is to be said of an attempt to load a half."""
        self.base_bytes = notes.base_bytes
        self.notes += notes.notes
        self.timings.add("load", notes.load_s)
        if notes.planned is not None:
            self.planned, self.quantization = notes.planned, notes.quantization
            self.bytes_by_shard = notes.bytes_by_shard or {}

    @property
    def planned_bytes(self) -> int:
        """The planned peak: on the CPU the libraries count, on a device they are not there."""
        on_device = self.peak is not None and self.peak.device_bytes > 0
        planned = self.planned.peak_bytes if self.planned else 0
        return planned + (0 if on_device else self.base_bytes)

    @property
    def status(self) -> str:
        """`done`, `stopped`, `error`, or `failures` where some clips could not be done."""
        if self.error:
            return "error"
        if self.stopped:
            return "stopped"
        return "failures" if self.counts.failed or self.counts.skipped else "done"

    @property
    def exit_status(self) -> int:
        """Exit status: 0 done, 1 something failed now, 128 + n stopped by signal n."""
        if self.stopped and self.stopped in signal.Signals.__members__:
            return 128 + signal.Signals[self.stopped]
        if self.counts.skipped and self.fail_on_known:
            return 1
        return 1 if self.fault or self.counts.failed or self.chose_nothing else 0

    @property
    def chose_nothing(self) -> bool:
        """Whether there was nothing to work on, where there should have been something."""
        there = self.counts.found or self.counts.unsearched or self.shard or self.stopped
        return not there and self.command == "caption"

    def end(self) -> RunEnd:
        """Return how the run ended, as the catalog keeps it."""
        peak = self.peak or MemorySample()
        return RunEnd(
            self.status,
            planned_peak_bytes=self.planned_bytes if self.planned else None,
            measured_peak_bytes=peak.device_bytes or peak.host_bytes,
            split=dict(self.timings.seconds),
            counts=asdict(self.counts),
            report={
                "peak": peak.as_dict(),
                "base_bytes": self.base_bytes,
                "bytes_by_shard": dict(self.bytes_by_shard),
                "quantization": self.quantization,
                "notes": list(self.notes),
                "stopped": self.error or self.stopped,
                "shard": self.shard,
                "total_s": self.total_s,
                "versions": versions(),
                "timeline": [sample.as_dict() for sample in self.timeline],
                **({"training": dict(self.training)} if self.training else {}),
            },
        )
