"""What workers tell of themselves while they work, put together for the report of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from cogcache.planning.choices import StagePlan
from cogcache.runs import RunReport
from cogcache.system.memory_monitor import MemoryMonitor, MemorySample


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
            dict(report.split.seconds),
            monitor.peak,
        )


def take_over(report: RunReport, told: Iterable[WorkerReport]) -> None:
    """Put what workers told into the report of their run.

    Times are summed up over the workers; memory is that of the one that took most.
    """
    some = [*told]
    if not some:
        return
    seconds = sum((Counter(each.seconds) for each in some), Counter[str]())
    report.split.seconds |= {f"workers' {part}": total for part, total in seconds.items()}
    names = [field.name for field in fields(MemorySample)]
    highest = {name: max(getattr(each.peak, name) for each in some) for name in names}
    report.workers_peak = MemorySample(**highest)
    most = max(some, key=lambda each: each.peak.device_bytes or each.peak.host_bytes)
    report.planned, report.base_bytes = most.planned, most.base_bytes
    report.bytes_by_shard, report.quantization = most.bytes_by_shard, most.quantization
    report.notes += dict.fromkeys(note for each in some for note in each.notes)
