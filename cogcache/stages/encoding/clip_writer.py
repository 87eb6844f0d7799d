"""The end of stage one: what became of clips goes into the catalog."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cogcache.catalog import Catalog, ClipRow, Failure, VideoRow
from cogcache.errors import ClipError
from cogcache.stages.clips.cuts import video_row
from cogcache.stages.clips.worklist import Clip, clip_row
from cogcache.stages.runs.failures import note_failure
from cogcache.stages.runs.report import RunReport
from cogcache.store import Claims
from cogcache.system import DiskWatch, Location

if TYPE_CHECKING:
    from cogcache.stages.encoding.clip_encoder import Outcome

logger = logging.getLogger(__name__)


@dataclass
class ClipWriter:
    """Takes what a run has made or failed to make, and gives its claim back when it is noted."""

    model: str
    catalog: Catalog
    report: RunReport
    claims: Claims
    copies: Mapping[str, Sequence[Location]] = field(default_factory=dict)
    """By feature key: further files that hold a clip."""
    disk: DiskWatch = field(default_factory=DiskWatch)
    _failed: list[tuple[str, Failure, int]] = field(default_factory=list)
    """Keys of clips that failed, why, and the number of their copies that were known then."""

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Put sealed clips, in one transaction, and failures into the catalog."""
        clips: list[ClipRow] = []
        videos: list[VideoRow] = []
        for clip, outcome in outcomes:
            if isinstance(outcome, ClipError):
                if not self.disk.holds(clip, clip.video, outcome):
                    self._fail(clip, outcome)
                continue
            self.note_held()
            videos.append(video_row(clip.video, clip.key.video_digest, outcome.info))
            clips.append(
                {
                    **clip_row(clip, self.model, self.report.run),
                    "num_frames": outcome.num_frames,
                    "size_bytes": outcome.size_bytes,
                    "decoder": outcome.decoder,
                }
            )
        self._commit(videos, clips)

    def _commit(self, videos: Sequence[VideoRow], clips: Sequence[ClipRow]) -> None:
        if not clips:
            return
        self.catalog.files.add_videos(videos)
        self.catalog.clips.add(clips)
        self.catalog.failures.clear_failed([clip["feature_key"] for clip in clips])
        self.report.counts.done += len(clips)
        for clip in clips:
            self.claims.release(clip["feature_key"])

    def note_held(self) -> None:
        """Note the failures that were held back, unless it is the disk that is gone."""
        for clip, error in self.disk.proven():
            self._fail(clip, error)

    def _fail(self, clip: Clip, error: ClipError) -> None:
        """Note that a clip could not be done."""
        key = clip.key.digest
        copies = self.copies.get(key, ())
        failure = Failure(clip.span, error, "extract", key, clip.key.video_digest)
        note_failure(self.catalog, self.report, [clip.video, *copies], failure)
        self.catalog.cuts.add([(key, clip.cut)])
        self.claims.release(key)
        self._failed.append((key, failure, len(copies)))

    def note_late_copies(self) -> None:
        """Note failures under files as well that were read only after their clip had failed."""
        for key, failure, number in self._failed:
            for video in self.copies.get(key, ())[number:]:
                self.catalog.failures.add(failure.row(video, self.report.run))
