"""The environment of one worker (model, cache, threads), and what it reports to the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cogcache.models import Family, hush_transformers, open_family
from cogcache.planning import StagePlan
from cogcache.settings import Settings
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.system import MemoryMonitor, MemorySample


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one worker says of its work so far."""

    planned: StagePlan | None
    base_bytes: int
    bytes_by_shard: Mapping[str, int]
    quantization: str | None
    notes: Sequence[str]
    seconds: Mapping[str, float]
    peak: MemorySample

    @classmethod
    def of(cls, report: RunReport, monitor: MemoryMonitor) -> WorkerReport:
        """Return what a worker has written into a report of its own."""
        return cls(
            report.planned,
            report.base_bytes,
            report.bytes_by_shard,
            report.quantization,
            list(report.notes),
            dict(report.timings.seconds),
            report.workers_peak or monitor.peak,
        )


def take_over(report: RunReport, stats: Iterable[WorkerReport]) -> None:
    """Put what workers told into the report of their run.

    Times are summed up over the workers; memory is that of the one that took most.
    """
    some = [*stats]
    if not some:
        return
    seconds = sum((Counter(each.seconds) for each in some), Counter[str]())
    report.timings.seconds |= {f"workers' {part}": total for part, total in seconds.items()}
    names = [field.name for field in fields(MemorySample)]
    highest = {name: max(getattr(each.peak, name) for each in some) for name in names}
    report.workers_peak = MemorySample(**highest)
    most = max(some, key=lambda each: each.peak.device_bytes or each.peak.host_bytes)
    report.planned, report.base_bytes = most.planned, most.base_bytes
    report.bytes_by_shard, report.quantization = most.bytes_by_shard, most.quantization
    report.notes += dict.fromkeys(note for each in some for note in each.notes)


@dataclass(frozen=True)
class WorkerEnvironment:
    """Where a worker finds things, and what it may take of its machine."""

    checkpoint: str
    """The model as it is to be opened: a folder's whole path, a hub id, or `tiny`."""
    cache: Path
    threads: int | None = None
    """Threads of torch; None leaves them as they are."""
    quiet: bool = False
    """Whether another worker shows what transformers warns of: this one would say the same."""

    def family(self, settings: Settings) -> Family:
        """Return the family of the checkpoint, at the cache point."""
        return open_family(settings, self.checkpoint)

    def take(self, device: str) -> None:
        """Have torch keep to this place, and transformers to its errors if another warns."""
        if self.quiet:
            hush_transformers()
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if device.startswith("cuda:"):  # memory is measured on the current one
            torch.cuda.set_device(device)


def watched(command: str, settings: Settings) -> tuple[RunReport, MemoryMonitor]:
    """Return a report of a worker's own, and what measures its memory from now on."""
    monitor = MemoryMonitor()
    monitor.__enter__()
    return RunReport(0, command, settings.model, Counts(), Timings()), monitor
