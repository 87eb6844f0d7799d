"""Which of the missing captions are this run's to make, and which another run has in hand."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cogcache.catalog import Catalog
from cogcache.stages.captioning.tasks import Task
from cogcache.stages.runs.report import Counts
from cogcache.store import Claims
from cogcache.system import Stop

_LOOK_EVERY_S: Final = 0.5


@dataclass
class CaptionClaims:
    """Hands out captions one by one, each under a claim."""

    claims: Claims
    catalog: Catalog
    counts: Counts
    stop: Stop
    held: set[str] = field(default_factory=set)
    """Keys of captions that other runs had in hand."""

    def ours(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield the tasks that are this run's, as they are taken up, until it is to stop."""
        for task in tasks:
            key = task.key.digest
            if self.stop:
                return
            if not self.claims.take(key):
                self.held.add(key)
            elif self.catalog.captions.known([key]):  # made by another since the list was
                self.claims.release(key)
                self.counts.cached += 1
            else:
                yield task

    def give_back(self, keys: Iterable[str]) -> None:
        """Give captions back that are made, or that are not to be made."""
        for key in keys:
            self.claims.release(key)

    def wait_for_others(self) -> set[str]:
        """Return the keys of what others had in hand, once some of it is so no more."""
        while self.held and not self.stop:
            if any(self.claims.is_free(key) for key in self.held):
                held, self.held = self.held, set()
                return held
            time.sleep(_LOOK_EVERY_S)
        return set()
