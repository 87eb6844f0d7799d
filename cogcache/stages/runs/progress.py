"""What other commands see of a run, and when the run has to stop: its rate and its limits."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cogcache.settings import Limits, Settings
from cogcache.stages.runs.report import RunReport
from cogcache.stages.runs.status import line
from cogcache.store import LiveRun
from cogcache.system import Stop, sample, stop_on_signals
from cogcache.units import GIB, format_bytes

logger = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 60.0
_RATE_OVER_S: Final = 300.0
"""Recent minutes that the rate is taken over: clips differ, and so do hours of the night."""


@dataclass(frozen=True)
class AtWork:
    """What tells a running stage to stop, and where it is announced."""

    stop: Stop
    run: LiveRun


@contextmanager
def at_work(live: LiveRun, report: RunReport, limits: Limits, began_s: float) -> Iterator[AtWork]:
    """Show a run to others while a `with` block does it, and have it stop at its limits.

    Args:
        live: the run, known to others already.
        report: of the run; its counts are shown.
        limits: when to stop.
        began_s: when the run began, by the monotonic clock.
    """
    with stop_on_signals() as stop:
        watch = _Watch(live.root, report, limits, stop, began_s)
        watch.look()
        live.show(watch.facts)
        yield AtWork(stop, live)


def announced(cache: Path, command: str, settings: Settings) -> AbstractContextManager[LiveRun]:
    """Show others, while a `with` block runs, that a run is at work on a cache.

    To be entered before the catalog is opened: nobody must put that away meanwhile.
    """
    return LiveRun(cache, lambda: {"command": command, "model": settings.model}).beating()


def _is_read_only(folder: Path) -> bool:
    """Say whether a disk is read-only, as Linux makes it after an error of its file system."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


@dataclass
class _Watch:
    """Looks at a run every few seconds."""

    cache: Path
    report: RunReport
    limits: Limits
    stop: Stop
    began_s: float
    seen: deque[tuple[float, int]] = field(default_factory=deque)
    told_s: float = field(default_factory=time.monotonic)

    def facts(self) -> Mapping[str, Any]:
        """Look, and return what others are shown."""
        self.look()
        counts, now, rate = self.report.counts, sample(), self._rate()
        left, expected = counts.found - counts.settled, self.report.state.expected
        found = {
            "run": self.report.run,
            "command": self.report.command,
            "model": self.report.model,
            "shard": self.report.shard,
            **asdict(counts),
            "per_s": rate,
            "eta_s": (left + expected) / rate if rate and expected is not None else None,
            "searching": self.report.state.searching,
            "host_bytes": now.host_bytes,
            "device_bytes": now.device_bytes,
            "stopping": self.stop.reason,
        }
        self._tell(found)
        return found

    def _tell(self, found: Mapping[str, Any]) -> None:
        """Write a line a minute to a log file; on a terminal there is a bar."""
        if time.monotonic() - self.told_s < _TELL_EVERY_S or sys.stderr.isatty():
            return
        self.told_s = time.monotonic()
        logger.info("%s", line(found))

    def look(self) -> None:
        """Ask the run to stop where a limit is reached."""
        hours = self.limits.max_hours
        if hours is not None and time.monotonic() - self.began_s > hours * 3600:
            self.stop.ask(f"--max-hours {hours:g} are over")
        if _is_read_only(self.cache):
            self.stop.ask("the cache's disk can only be read any more", fault=True)
        free_bytes = shutil.disk_usage(self.cache).free
        if free_bytes < self.limits.min_free_gib * GIB:
            free, least = format_bytes(free_bytes), format_bytes(self.limits.min_free_gib * GIB)
            self.stop.ask(
                f"{free} are free on the cache's disk, less than --min-free {least}", fault=True
            )

    def _rate(self) -> float:
        """Return clips or captions a second, of late."""
        counts, now_s = self.report.counts, time.monotonic()
        self.seen.append((now_s, counts.done + counts.failed))
        while now_s - self.seen[0][0] > _RATE_OVER_S:
            self.seen.popleft()
        (then_s, before), (_, after) = self.seen[0], self.seen[-1]
        return (after - before) / (now_s - then_s) if now_s > then_s else 0.0
