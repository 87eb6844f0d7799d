"""Captions that become possible while stage two runs.

Stage one may still add clips, and a chain of prompts goes on from captions that were just made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cogcache.catalog import FlaggedCaption
from cogcache.stages.captioning.tasks import CaptionList, Task
from cogcache.stages.runs.report import Counts
from cogcache.store import live_runs
from cogcache.system import Stop

_LOOK_EVERY_S: Final = 2.0


@dataclass
class Following:
    """Hands out the missing captions, list after list, while stage one is at work.

    Args:
        cache: folder of the cache.
        listed: lists the captions as they are now.
        first: the list that `counts` were taken from. What others make from then on is found as it
            is claimed; a second list would leave it out, and it would be counted nowhere.
        counts: of the run; its `found` grows with the cache.
        limit: most captions of the whole run.
        follow: whether to wait for stage one at all.
    """

    cache: Path
    listed: Callable[[], CaptionList]
    first: CaptionList
    counts: Counts
    limit: int | None
    follow: bool
    handed_out: set[str] = field(default_factory=set)
    last: CaptionList = field(default_factory=CaptionList)
    """The list as it was when it was last looked at."""

    def next(self, stop: Stop) -> list[Task]:
        """Return captions to make that were not handed out before; none: all is done."""
        while not stop:
            growing = self.follow and self._growing()  # before the list: nothing falls between
            begins = self.first.missing and not self.last.num_found
            self.last = last = self.first if begins else self.listed()
            tasks = [task for task in last.missing if task.key.digest not in self.handed_out]
            left = None if self.limit is None else self.limit - len(self.handed_out)
            if tasks and left == 0:
                stop.ask(f"--limit {self.limit}")
            elif tasks:
                chosen = tasks[:left]
                self.handed_out |= {task.key.digest for task in chosen}
                behind = last.num_waiting + len(last.refused)
                found = self.counts.settled + len(tasks) + behind
                self.counts.found = max(self.counts.found, found)
                return chosen
            elif not growing:
                return []
            else:
                time.sleep(_LOOK_EVERY_S)
        return []

    def further(self, task: Task, said: FlaggedCaption) -> list[Task]:
        """Return captions that another was waited for by, as far as the limit leaves them."""
        tasks = self.last.further(task, said)
        left = None if self.limit is None else self.limit - len(self.handed_out)
        self.handed_out |= {task.key.digest for task in tasks[:left]}
        return tasks[:left]

    def _growing(self) -> bool:
        rows = live_runs(self.cache)
        return any(row.get("command") == "extract" and row["state"] == "at work" for row in rows)
