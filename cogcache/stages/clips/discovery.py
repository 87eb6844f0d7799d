"""Where the clips of a run come from: first those that are known, then those of new videos.

New videos are read, and cut, while clips of others are made: a run over a night's videos begins
at once, sees its limits, and finds a file still in memory when it comes to be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Final, Self

from cogcache.catalog import Failure
from cogcache.errors import ClipError
from cogcache.settings import WorkShare
from cogcache.stages.clips.clip_claims import ClipClaims
from cogcache.stages.clips.cut_search import CutSearch
from cogcache.stages.clips.digests import DigestReader
from cogcache.stages.clips.found import CLIPS_AHEAD, FoundClips
from cogcache.stages.clips.worklist import Clip, Wanted, Worklist
from cogcache.stages.runs.report import RunReport
from cogcache.system import Spool
from cogcache.video import WHOLE

_WAIT_S: Final = 0.05
"""Where no clip is ready. Short: what is done meanwhile waits to be taken."""


class Finding(AbstractContextManager["Finding"]):
    """Clips to make, of which some are still to be found.

    Args:
        work: what is known.
        wanted: how clips are made.
        clips: the claims and the cache, of which each part of the finding is handed what it uses.
        report: its counts grow with what is found.
    """

    def __init__(
        self, work: Worklist, wanted: Wanted, clips: ClipClaims, report: RunReport
    ) -> None:
        self.wanted, self.report = wanted, report
        self._shared, store, catalog = clips.shared, clips.store, clips.catalog
        machines = wanted.settings.machines
        self._share = WorkShare.parse(machines.shard)
        self.found = FoundClips(work, wanted, store, catalog, clips.shared, report)
        spool = Spool.of_this_machine(machines.spool_gib)
        self._reader = DigestReader(work.unread, catalog, self._share, spool)
        self._search = CutSearch(self.found, clips.claims, clips.failed_since)
        self._to_cut = self._search.num_left + len(work.unread) if wanted.is_cut else 0
        self._expected = 0
        """Clips of unread videos that are counted as found."""
        self._tell()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._reader)
            opened.enter_context(self._search)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        self._opened.__exit__(error, *rest)  # type: ignore[arg-type]
        if error is None:
            self.found.note_held()
        self._tell()

    @property
    def is_searching(self) -> bool:
        """Whether videos are searched for scenes, which may take long."""
        return bool(self.wanted.settings.clips.scenes and self._search.num_left)

    @property
    def _num_left(self) -> int:
        return self._reader.num_left + self._search.num_left

    def clips(self) -> Iterator[Clip | None]:
        """Yield the clips to make until the run is to stop; None where there is none just now."""
        ready = self.found.ready
        while not self._shared.stop:
            if self._num_left:
                self._look()
            if ready:
                yield ready.popleft()
            elif self._num_left:
                self._shared.stop_at_limit()  # without a look for one more
                yield None
            else:
                return

    def _look(self) -> None:
        """Collect digests that were read and cuts that were found, and start more of both."""
        wait_s = 0.0 if self.found.ready else _WAIT_S
        # A video that is not cut has as many clips as are asked for; of others nobody knows yet.
        coming = self._search.num_left * len(self.wanted.fixed_spans)
        if self.found.has_room_beside(coming) and self._search.num_left < CLIPS_AHEAD:
            self._read(0.0 if self._search.num_left else wait_s)
        if self._search.num_left:
            self._search.look(0.0 if self.found.ready else wait_s)
        self._tell()

    def _read(self, timeout_s: float) -> None:
        digests = {}
        for video, digest in self._reader.take(timeout_s):
            if isinstance(digest, ClipError):
                self.found.lose([video], Failure(WHOLE, digest))
            else:
                digests[video] = digest
        if digests:
            self.found.note_held()
            new = self.found.work.more()
            new.add_videos(digests, self.wanted, self.found.store, self.found.catalog)
            self.found.add(new)
            self._search.add(new.unsearched)

    def _tell(self) -> None:
        """Estimate the clips of videos that are not read or not cut yet, for `cogcache status`."""
        unread = self._reader.num_left
        counts = self.report.counts
        expected = unread * len(self.wanted.fixed_spans) // self._share.of
        if not self.wanted.is_cut:
            expected += self._search.num_left * len(self.wanted.fixed_spans)
        counts.found += expected - self._expected
        self._expected = expected
        left = self._search.num_left + unread if self.wanted.is_cut else 0
        counts.unsearched, cut = left, self._to_cut - left
        expected_to_come = left * self.found.num_added / cut if cut else None if left else 0.0
        self.report.state.expected = expected_to_come
