"""The end of stage one: features are sealed in a thread, then put into the catalog."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.catalog import Catalog, ClipRow, VideoRow, failure_row, path_to_text
from cogcache.claims import Claims
from cogcache.config import Settings
from cogcache.errors import ClipError
from cogcache.keys import Field
from cogcache.preparation import PreparedClip
from cogcache.runs import RunReport, versions
from cogcache.store import FeatureStore
from cogcache.worklist import Clip, Span, clip_row, video_row

if TYPE_CHECKING:
    from cogcache.models.family import ClipTensors

logger = logging.getLogger(__name__)

SEALING_AHEAD = 4
"""Clips that may wait for the writer; bounds the memory of encoded, unwritten features."""


@dataclass
class _Encoded:
    """A clip whose features wait to be sealed."""

    clip: Clip
    prepared: PreparedClip
    features: ClipTensors


@dataclass
class ClipWriter:
    """Takes what a run has made or failed to make, and gives its claim back when it is noted."""

    settings: Settings
    store: FeatureStore
    catalog: Catalog
    report: RunReport
    claims: Claims
    copies: Mapping[str, Sequence[Path]]
    thread: ThreadPoolExecutor
    sealing: deque[tuple[_Encoded, Future[int]]] = field(default_factory=deque)

    def take(self, clip: Clip, prepared: PreparedClip, features: ClipTensors) -> None:
        """Have features sealed; `commit` puts them into the catalog."""
        ready = _Encoded(clip, prepared, features)
        self.sealing.append((ready, self.thread.submit(self._seal, ready)))

    def _seal(self, encoded: _Encoded) -> int:
        """Write one feature file; runs in the writer's thread."""
        clip, prepared = encoded.clip, encoded.prepared
        attributes: dict[str, Field] = {
            **clip.key.fields(),
            **prepared.facts,
            "video": path_to_text(clip.video),
            "model": self.settings.model,
            "texts": dict(encoded.features.texts),
            "versions": versions(),
        }
        return self.store.write(
            clip.key.digest,
            encoded.features.tensors,
            attributes,
            prepared.thumbnail,
            compression=self.settings.vision.compression,
        )

    def commit(self, leave: int = SEALING_AHEAD) -> int:
        """Put sealed clips into the catalog until at most `leave` wait for it; return how many."""
        clips: list[ClipRow] = []
        videos: list[VideoRow] = []
        while len(self.sealing) > leave:
            encoded, sealed = self.sealing.popleft()
            clip, prepared = encoded.clip, encoded.prepared
            try:
                with self.report.split.time("wait_for_writer"):
                    size_bytes = sealed.result()
            except ClipError as error:
                self.fail(clip, error)
                continue
            videos.append(video_row(clip.video, clip.key.video_digest, prepared.info))
            clips.append(
                {
                    **clip_row(clip, self.settings.model, self.report.run),
                    "num_frames": prepared.num_frames,
                    "size_bytes": size_bytes,
                    "decoder": str(prepared.facts["decoder"]),
                }
            )
        self.catalog.add_videos(videos)
        self.catalog.add_clips(clips)
        self.catalog.clear_failed([clip["feature_key"] for clip in clips])
        self.report.counts.done += len(clips)
        for clip_made in clips:
            self.claims.release(clip_made["feature_key"])
        return len(clips)

    def fail(self, clip: Clip, error: ClipError) -> None:
        """Note that a clip could not be done."""
        key = clip.key.digest
        videos = [clip.video, *self.copies.get(key, ())]
        note_failure(self.catalog, self.report, videos, clip.span, error, key)
        self.claims.release(key)


def note_failure(
    catalog: Catalog,
    report: RunReport,
    videos: Sequence[Path],
    span: Span,
    error: ClipError,
    key: str | None,
) -> None:
    """Note that a clip could not be done, under each file that holds it."""
    for video in videos:
        catalog.add_failure(failure_row(video, span, "extract", error, run=report.run, key=key))
    report.counts.failed += 1
    logger.warning("%s", error.problem)
