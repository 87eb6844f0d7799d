"""The clips that a run has found and not taken up yet, and the counts that grow with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from cogcache.catalog import Catalog, Failure
from cogcache.stages.clips.worklist import Wanted, Worklist, num_unseen
from cogcache.stages.runs.failures import note_failure
from cogcache.stages.runs.report import RunReport
from cogcache.stages.runs.shared import Shared
from cogcache.store import FeatureStore
from cogcache.system import DiskWatch, Location

CLIPS_AHEAD: Final = 64
"""Clips that may wait to be made before more videos are read or searched."""


class FoundClips:
    """The clips that can be made now, and what became of videos without clips.

    Args:
        work: what was known at the beginning; takes up the copies of what is found.
        wanted: how clips are made.
        store: damaged features of the clips that are found are moved out of it.
        catalog: takes a row for each clip that fails.
        shared: says how many clips the run may still take up; is stopped where the disk is gone.
        report: of the run.
    """

    def __init__(
        self,
        work: Worklist,
        wanted: Wanted,
        store: FeatureStore,
        catalog: Catalog,
        shared: Shared[Any],
        report: RunReport,
    ) -> None:
        self.work, self.wanted, self.report = work, wanted, report
        self.store, self.catalog, self._shared = store, catalog, shared
        self.ready = deque(work.missing)
        self.num_added = 0
        """Clips of videos that were no part of the list."""
        self.num_unseen = num_unseen(work.missing, wanted.settings)
        """Clips whose end no frame is taken of."""
        self._disk = DiskWatch()

    @property
    def has_room(self) -> bool:
        """Whether more clips are needed than are ready."""
        return self.has_room_beside(0)

    def has_room_beside(self, coming: int) -> bool:
        """Say whether more clips are needed than are ready or certain to come soon."""
        num_left = self._shared.num_left
        room = CLIPS_AHEAD if num_left is None else min(CLIPS_AHEAD, num_left)
        return len(self.ready) + coming < room

    def add(self, found: Worklist) -> None:
        """Take up a list of further clips, which began with `Worklist.more`."""
        found.put_damaged_away(self.store, self.catalog)
        found.add_to(self.report.counts)
        for key, videos in found.copies.items():
            self.work.copies.setdefault(key, []).extend(videos)
        self.num_unseen += num_unseen(found.missing, self.wanted.settings)
        self.num_added += found.num_clips
        self.ready.extend(found.missing)

    def lose(self, videos: Sequence[Location], failure: Failure) -> None:
        """Note that files with the same bytes have no clips, unless it is the disk that is gone."""
        if not self._disk.holds((videos, failure), videos[0], failure.error):
            self._fail(videos, failure)
        elif self._disk.is_gone:
            self._shared.stop.ask(self._disk.told(), fault=True)

    def note_held(self) -> None:
        """Note what was held back until the disk was proven to be there."""
        for (videos, failure), _ in self._disk.proven():
            self._fail(videos, failure)

    def _fail(self, videos: Sequence[Location], failure: Failure) -> None:
        for video in videos:
            note_failure(self.catalog, self.report, [video], failure)
            self.report.counts.found += 1

    def know_failure(self, number: int) -> None:
        """Count files that another run has failed to cut."""
        self.report.counts.found += number
        self.report.counts.skipped += number
