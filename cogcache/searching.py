"""The search for scenes beside the making of clips: videos are cut while others are encoded.

It runs in worker processes of its own, a little ahead of the clips that wait, and is looked at
whenever a clip is asked for: one thread alone speaks to the catalog. What is found of a video is
in the catalog before its first clip is handed out. A video is claimed while it is searched, so
that of several runs one does it; a search that is broken off leaves nothing but that to undo.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from cogcache.cutting import known_spans, remember_scenes, search_key, threshold_of
from cogcache.errors import ClipError
from cogcache.machine_faults import DiskWatch
from cogcache.runs import RunReport
from cogcache.scenes import Extent, Film, Piece, look, pieces_of
from cogcache.sharing import Sharing
from cogcache.spool import Fetching, Spool
from cogcache.worker_process import Program
from cogcache.workers import Pool, decode_limits
from cogcache.worklist import (
    WHOLE,
    Clip,
    Span,
    Wanted,
    Worklist,
    num_unseen,
    put_damaged_away,
    sort_clips,
)
from cogcache.writing import note_failure

CLIPS_AHEAD: Final = 64
"""Clips that may wait to be made before the search begins with no other video."""
_LOOK_EVERY_S: Final = 0.5


@dataclass
class _Search:
    """A video to search."""

    video: Path
    digest: str
    copies: list[Path]
    """Further files with the same bytes."""
    jobs: deque[Film | Piece] = field(default_factory=deque)
    """Not given out yet."""
    extent: Extent | None = None
    begins_s: list[float] = field(default_factory=list)
    num_done: int = 0
    """Frames that are searched."""

    @property
    def told(self) -> str:
        """How far the search is."""
        if self.extent is None:
            return f"counting the frames of {self.video.name}"
        return f"{self.num_done:,} of {self.extent.num_frames:,} frames of {self.video.name}"


class SceneSearch(AbstractContextManager["SceneSearch"]):
    """Clips to make, of which some are still to be found.

    Args:
        work: what is known; takes up the copies of what is found.
        wanted: how clips are made.
        sharing: has the claims, and the cache.
        report: its counts grow with what is found.
    """

    def __init__(self, work: Worklist, wanted: Wanted, sharing: Sharing, report: RunReport) -> None:
        self.work, self.wanted, self.sharing, self.report = work, wanted, sharing, report
        self.settings, self.limit = wanted.settings, wanted.settings.limits.limit
        self.num_unseen = num_unseen(work.missing, self.settings)
        """Clips whose end no frame is taken of."""
        self._ready = deque(work.missing)
        self._waiting = deque(_Search(v, d, rest) for d, (v, *rest) in work.unsearched.items())
        self._held: list[_Search] = []
        """Videos that other runs search."""
        self._active: dict[Path, _Search] = {}
        self._disk = DiskWatch()
        self._num_clips = self._looked_s = 0.0
        self._most_jobs = 2 * self.settings.vision.decode_workers
        self._tell()

    def __enter__(self) -> Self:
        vision = self.settings.vision
        task = Fetching(look, Spool.of_this_machine(self.settings.machines.spool_gib))
        workers = vision.decode_workers if self.work.unsearched else 0
        self._pool = Pool(Program(task, decode_limits(vision)), workers)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:  # a run that was asked to stop keeps what is found
            self._hear_all()
            self._note_held()
        self._pool.close()
        self.report.searching = ""

    def clips(self) -> Iterator[Clip | None]:
        """Yield the clips to make; None where there is none just now."""
        while True:
            if self._num_left:
                self._look()
            if self._ready:
                yield self._ready.popleft()
            elif self._num_left:
                if self.sharing.taken == self.limit:  # found out without a search for one more
                    self.sharing.stop.ask(f"--limit {self.limit}")
                yield None
            else:
                return

    @property
    def _num_left(self) -> int:
        return len(self._waiting) + len(self._active) + len(self._held)

    def _look(self) -> None:
        """Take what is found, and go on with the search."""
        self._hear_all()
        self._look_at_held()
        while self._begins_another():
            self._begin(self._waiting.popleft())
        self._give_out()
        self._tell()

    # ---- giving out -------------------------------------------------------------------------

    def _begins_another(self) -> bool:
        """Say whether there is work for the workers in no video that is begun, and a need."""
        jobs = self._pool.in_flight + sum(len(film.jobs) for film in self._active.values())
        room = CLIPS_AHEAD
        if self.limit is not None:
            room = min(room, self.limit - self.sharing.taken)
        return bool(self._waiting) and jobs < self._most_jobs and len(self._ready) < room

    def _begin(self, film: _Search) -> None:
        key = search_key(film.digest, self.settings.clips)
        if not self.sharing.claims.take(key):
            self._held.append(film)
            return
        catalog, clips = self.sharing.catalog, self.settings.clips
        if spans := known_spans([film.digest], clips, catalog).get(film.digest):
            self._settle(film, spans)  # by another run, since the list was made
        elif self.sharing.failed_since(film.video, key):
            self._know_failure(film)
        else:
            film.jobs.append(Film(film.video, film.digest))
            self._active[film.video] = film

    def _look_at_held(self) -> None:
        """Take up videos again that no other run searches any more."""
        if not self._held or time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        held, self._held = self._held, []
        for film in held:
            is_free = self.sharing.claims.is_free(search_key(film.digest, self.settings.clips))
            if is_free:
                self._waiting.appendleft(film)
            else:
                self._held.append(film)

    def _give_out(self) -> None:
        """Put jobs before the workers, those of the first video first."""
        for film in self._active.values():
            while film.jobs and self._pool.in_flight < self._most_jobs:
                self._pool.give(film.jobs.popleft())

    # ---- hearing ----------------------------------------------------------------------------

    def _hear_all(self) -> None:
        while done := self._pool.take(0):
            self._hear(*done)
        self._tell()

    def _hear(self, job: Film | Piece, result: Any) -> None:
        film = self._active.get(job.video)
        if film is None:  # another piece of it has failed
            return
        if isinstance(result, ClipError):
            self._lose(film, result)
        elif isinstance(job, Film):
            film.extent, clips = result, self.settings.clips
            pieces = pieces_of(job.video, result, clips.scene_detector, threshold_of(clips))
            seen = self.work.seen.get(film.video)
            film.jobs.extend(replace(piece, digest=film.digest, seen=seen) for piece in pieces)
        else:
            film.begins_s += result
            film.num_done += job.stop - job.first
            if film.extent is not None and film.num_done == film.extent.num_frames:
                self._find(film, film.extent)

    def _find(self, film: _Search, extent: Extent) -> None:
        """Remember where the scenes of a video begin, and take up its clips."""
        catalog, clips = self.sharing.catalog, self.settings.clips
        spans = remember_scenes(film.digest, film.begins_s, extent.end_s, clips, catalog)
        catalog.clear_failed([search_key(film.digest, clips)])
        self.report.counts.searched += 1
        self._note_held()
        self._settle(film, spans)

    def _settle(self, film: _Search, spans: Iterable[Span]) -> None:
        """Take up the clips of a video that need to be made."""
        found = Worklist(failed=self.work.failed, seen=self.work.seen)
        bounds = [(v, film.digest, span) for v in (film.video, *film.copies) for span in spans]
        sort_clips(found, bounds, self.wanted, self.sharing.store)
        put_damaged_away(found, self.sharing.store, self.sharing.catalog)
        counts = self.report.counts
        counts.found += found.num_clips
        counts.cached += len(found.cached)
        counts.skipped += len(found.known_failures)
        counts.copies += sum(map(len, found.copies.values()))
        self.work.copies.update(found.copies)
        self.num_unseen += num_unseen(found.missing, self.settings)
        self._num_clips += found.num_clips
        self._ready.extend(found.missing)
        self._leave(film)

    def _lose(self, film: _Search, error: ClipError) -> None:
        """Note that a video cannot be searched, unless it is the disk that is gone."""
        self._leave(film)
        if not self._disk.holds(film, film.video, error):
            self._fail(film, error)
        elif self._disk.is_gone:
            self.sharing.stop.ask(self._disk.told(), fault=True)

    def _note_held(self) -> None:
        for film, error in self._disk.proven():
            self._fail(film, error)

    def _fail(self, film: _Search, error: ClipError) -> None:
        """Note that a video cannot be searched, under each file that holds it."""
        key = search_key(film.digest, self.settings.clips)
        for video in (film.video, *film.copies):
            note_failure(self.sharing.catalog, self.report, [video], WHOLE, error, key)
            self.report.counts.found += 1

    def _know_failure(self, film: _Search) -> None:
        """Count a video that another run has failed to search."""
        number = 1 + len(film.copies)
        self.report.counts.found += number
        self.report.counts.skipped += number
        self._leave(film)

    def _leave(self, film: _Search) -> None:
        self._active.pop(film.video, None)
        self.sharing.claims.release(search_key(film.digest, self.settings.clips))

    def _tell(self) -> None:
        """Let others know what the search is at, and what may be expected of it."""
        begun, left = [*self._active.values()], self._num_left
        self.report.counts.unsearched = left
        self.report.searching = "; ".join(
            film.told for film in begun if not film.jobs or film.extent
        )
        cut = len(self.work.unsearched) - left
        self.report.expected = left * self._num_clips / cut if cut else None if left else 0.0
