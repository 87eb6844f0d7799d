"""Finds out how videos are cut into clips, while clips of other videos are encoded.

For segments that is a look at their heads, for scenes a search through all their frames. It runs
in worker processes of its own, a little ahead of the clips that wait: one thread alone speaks to
the catalog. What is found of a video is in the catalog before its first clip is handed out. A
video is claimed while it is searched, so that of several runs one does it; a search that is
broken off leaves nothing but that to undo.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from cogcache.catalog import Failure, Reading, remember
from cogcache.errors import ClipError
from cogcache.stages.clips.cuts import (
    known_spans,
    remember_scenes,
    search_key,
    threshold_of,
    video_row,
)
from cogcache.stages.clips.found import FoundClips
from cogcache.store import Claims
from cogcache.system import Fetching, Location, Spool
from cogcache.video import (
    WHOLE,
    Extent,
    Film,
    Piece,
    Pool,
    Program,
    Span,
    VideoInfo,
    decode_limits,
    look,
    measure,
    pieces_of,
)

_LOOK_EVERY_S: Final = 0.5


@dataclass
class _Search:
    """A video to search."""

    video: Location
    digest: str
    copies: list[Location]
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
            return f"measuring {self.video.name}"
        return f"{self.num_done:,} of {self.extent.num_frames:,} frames of {self.video.name}"


class CutSearch(AbstractContextManager["CutSearch"]):
    """Videos that have to be looked at to know their clips.

    Args:
        found: takes up their clips.
        claims: of this run; a video is claimed while it is searched.
        failed_since: says of a video and its key whether another run has failed to search it since
            this one began.
    """

    def __init__(
        self, found: FoundClips, claims: Claims, failed_since: Callable[[Location, str], bool]
    ) -> None:
        self.found, self.catalog, self.report = found, found.catalog, found.report
        self._claims, self._failed_since = claims, failed_since
        self.wanted, self.settings = found.wanted, found.wanted.settings
        self._waiting: deque[_Search] = deque()
        self._held: list[_Search] = []
        """Videos that other runs search."""
        self._active: dict[Location, _Search] = {}
        self._films: dict[str, _Search] = {}
        """By digest: all that are not finished yet."""
        self._looked_s = 0.0
        self._most_jobs = 2 * self.settings.vision.decode_workers
        self.add(found.work.unsearched)

    def __enter__(self) -> Self:
        vision = self.settings.vision
        spool = Spool.of_this_machine(self.settings.machines.spool_gib)
        task: Fetching[Any] = Fetching(look if self.settings.clips.scenes else measure, spool)
        self._pool = Pool(Program(task, decode_limits(vision)), vision.decode_workers)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:  # a run that was asked to stop keeps what is found
                self._hear_all(0)
        finally:
            self._pool.close()
        self.report.state.searching = ""

    def add(self, unsearched: Mapping[str, Sequence[Location]]) -> None:
        """Take up videos, by digest the files that hold them."""
        for digest, files in unsearched.items():
            if known := self._films.get(digest):
                known.copies += files
            else:
                film = self._films[digest] = _Search(files[0], digest, [*files[1:]])
                self._waiting.append(film)

    @property
    def num_left(self) -> int:
        """Videos of which it is not known yet how they are cut."""
        return len(self._films)

    def look(self, timeout_s: float) -> None:
        """Take what is found, and go on with the search.

        Args:
            timeout_s: how long to wait for something to be found.
        """
        self._hear_all(timeout_s)
        self._look_at_held()
        while self._begins_another():
            self._begin(self._waiting.popleft())
        self._give_out()
        self._tell()

    # ---- giving out -------------------------------------------------------------------------

    def _begins_another(self) -> bool:
        """Say whether another video should be begun: workers are idle and clips are needed."""
        jobs = self._pool.in_flight + sum(len(film.jobs) for film in self._active.values())
        return bool(self._waiting) and jobs < self._most_jobs and self.found.has_room

    def _begin(self, film: _Search) -> None:
        if not self._claims.take(search_key(film.digest, self.settings.clips)):
            self._held.append(film)
            return
        if spans := self._known_spans(film):
            self._settle(film, spans)  # by another run, since the list was made
        elif self._failed_since(film.video, self.wanted.failure_key(film.digest)):
            self.found.know_failure(1 + len(film.copies))
            self._leave(film)
        else:
            seen = self.found.work.seen.get(film.video)
            film.jobs.append(Film(film.video, film.digest, seen))
            self._active[film.video] = film

    def _known_spans(self, film: _Search) -> Sequence[Span]:
        clips, catalog = self.settings.clips, self.catalog
        self.wanted.learn([film.digest], catalog)
        if not self.wanted.is_cut:
            return self.wanted.fixed_spans if film.digest in self.wanted.readings else ()
        return known_spans([film.digest], clips, catalog).get(film.digest, ())

    def _look_at_held(self) -> None:
        """Take up videos again that no other run searches any more."""
        if not self._held or time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        held, self._held = self._held, []
        for film in held:
            is_free = self._claims.is_free(search_key(film.digest, self.settings.clips))
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

    def _hear_all(self, timeout_s: float) -> None:
        if not self._pool.in_flight:  # others search what is left
            time.sleep(timeout_s)
        while self._pool.in_flight and (done := self._pool.take(timeout_s)):
            self._hear(*done)
            timeout_s = 0
        self._tell()

    def _hear(self, job: Film | Piece, result: Any) -> None:
        film = self._active.get(job.video)
        if film is None:  # another piece of this video has failed
            return
        if isinstance(result, ClipError) and not self.wanted.is_cut:
            # Whoever decodes it says what is wrong.
            self._settle(film, self.wanted.fixed_spans)
        elif isinstance(result, ClipError):
            self._leave(film)
            key = self.wanted.failure_key(film.digest)
            failure = Failure(WHOLE, result, "extract", key, film.digest)
            self.found.lose([film.video, *film.copies], failure)
        elif isinstance(result, VideoInfo):
            if self.wanted.is_cut:
                row = video_row(film.video, film.digest, result)
                self.catalog.files.add_videos([row])
            self._remember(film, result.reading)
            self._find(film, self._known_spans(film))
        elif isinstance(job, Film):
            self._measured(film, result)
        else:
            film.begins_s += result
            film.num_done += job.stop - job.first
            if film.extent is not None and film.num_done == film.extent.num_frames:
                self._find_scenes(film, film.extent)

    def _measured(self, film: _Search, extent: Extent) -> None:
        """Give a film out in pieces to be searched for scenes, unless those are known."""
        self._remember(film, extent.reading)
        if spans := self._known_spans(film):
            self._find(film, spans)
            return
        film.extent, clips = extent, self.settings.clips
        pieces = pieces_of(film.video, extent, clips.scene_detector, threshold_of(clips))
        seen = self.found.work.seen.get(film.video)
        film.jobs.extend(replace(piece, digest=film.digest, seen=seen) for piece in pieces)

    def _remember(self, film: _Search, reading: Mapping[str, Any] | None) -> None:
        if reading is not None:
            remember(self.catalog.files, film.digest, Reading.of(reading))

    def _find_scenes(self, film: _Search, extent: Extent) -> None:
        """Remember where the scenes of a video begin."""
        catalog, clips = self.catalog, self.settings.clips
        self.report.counts.searched += 1
        self._find(film, remember_scenes(film.digest, film.begins_s, extent.end_s, clips, catalog))

    def _find(self, film: _Search, spans: Iterable[Span]) -> None:
        """Take up the clips of a video that has been looked at just now."""
        self.catalog.failures.clear_failed([self.wanted.failure_key(film.digest)])
        self.found.note_held()
        self._settle(film, spans)

    def _settle(self, film: _Search, spans: Iterable[Span]) -> None:
        """Take up the clips of a video that need to be made."""
        found = self.found.work.more()
        bounds = [(v, film.digest, span) for v in (film.video, *film.copies) for span in spans]
        found.add_clips(bounds, self.wanted, self.found.store)
        self.found.add(found)
        self._leave(film)

    def _leave(self, film: _Search) -> None:
        self._active.pop(film.video, None)
        self._films.pop(film.digest, None)
        self._claims.release(search_key(film.digest, self.settings.clips))

    def _tell(self) -> None:
        """Let others know what the search is at."""
        if not self.wanted.is_cut:  # a look at its packets is no search
            return
        self.report.state.searching = "; ".join(
            film.told for film in self._active.values() if not film.jobs or film.extent
        )
