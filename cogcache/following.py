"""Captions that become possible while stage two runs, since stage one still adds clips."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cogcache.captionlist import Task
from cogcache.live import live_runs
from cogcache.runs import Counts
from cogcache.stopping import Stop

_LOOK_EVERY_S: Final = 2.0


@dataclass
class Following:
    """Hands out the missing captions, list after list, while stage one is at work.

    Args:
        cache: folder of the cache.
        missing: lists the captions that are missing now.
        counts: of the run; its `found` grows with the cache.
        limit: most captions of the whole run.
        follow: whether to wait for stage one at all.
    """

    cache: Path
    missing: Callable[[], list[Task]]
    counts: Counts
    limit: int | None
    follow: bool
    handed_out: set[str] = field(default_factory=set)

    def next(self, stop: Stop) -> list[Task]:
        """Return captions to make that were not handed out before; none: all is done."""
        while not stop:
            growing = self.follow and self._growing()  # before the list: nothing falls between
            tasks = [task for task in self.missing() if task.key.digest not in self.handed_out]
            left = None if self.limit is None else self.limit - len(self.handed_out)
            if tasks and left == 0:
                stop.ask(f"--limit {self.limit}")
            elif tasks:
                chosen = tasks[:left]
                self.handed_out |= {task.key.digest for task in chosen}
                self.counts.found = max(self.counts.found, self.counts.settled + len(tasks))
                return chosen
            elif not growing:
                return []
            else:
                time.sleep(_LOOK_EVERY_S)
        return []

    def _growing(self) -> bool:
        rows = live_runs(self.cache)
        return any(row["command"] == "extract" and row["state"] == "at work" for row in rows)
