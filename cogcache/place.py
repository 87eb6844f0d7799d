"""Where a worker of a crew finds things, what it may take of its machine, and how it is watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import Family
from cogcache.models.registry import family_of
from cogcache.runs import Counts, RunReport, Timings
from cogcache.settings.settings import Settings
from cogcache.system.memory_monitor import MemoryMonitor


@dataclass(frozen=True)
class WorkerEnvironment:
    """Where a worker finds things, and what it may take of its machine."""

    checkpoint: str
    """The model as it is to be opened: a folder's whole path, a hub id, or `tiny`."""
    cache: Path
    threads: int | None = None
    """Threads of torch; None leaves them as they are."""

    def family(self, settings: Settings) -> Family:
        """Return the family of the checkpoint, at the cache point."""
        family = family_of(Checkpoint.open(self.checkpoint, settings.revision))
        return family.at(settings.vision.cache_point)

    def take(self, device: str) -> None:
        """Have torch keep to this place."""
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
