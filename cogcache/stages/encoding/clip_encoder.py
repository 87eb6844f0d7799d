"""From prepared clips to feature files: encoded in batches, written by a thread meanwhile.

It needs no catalog, so that workers on other machines can use it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cogcache.catalog import path_to_text
from cogcache.errors import ClipError
from cogcache.keys import Field
from cogcache.settings import Settings
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.encoding.frame_reuse import Encoded, FrameReuse
from cogcache.stages.encoding.preparation import PreparedClip
from cogcache.stages.encoding.stage_one import StageOne
from cogcache.stages.encoding.vision_half import VisionHalf
from cogcache.stages.runs.report import RunReport, versions
from cogcache.store import FeatureStore
from cogcache.video import VideoInfo

if TYPE_CHECKING:
    from cogcache.models import ClipTensors

SEALING_AHEAD = 4
"""Clips that may wait to be written: bounds the memory that their features take."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the catalog has to know of a clip whose features are sealed."""

    num_frames: int
    size_bytes: int
    """Of its feature file."""
    decoder: str
    info: VideoInfo
    """Of the whole video."""


Outcome = tuple[Clip, Sealed | ClipError]
"""A clip that is made, or why it could not be."""


class ClipEncoder(AbstractContextManager["ClipEncoder"]):
    """The loaded vision half and the thread that writes its features to files.

    Args:
        stage: the settings, the checkpoint and the store.
        report: gets the plan, the bytes read and the times.
    """

    def __init__(self, stage: StageOne, report: RunReport) -> None:
        self.stage, self.report = stage, report
        alone = stage.family.frames_alone
        self._reuse = FrameReuse(stage.store, stage.neighbours) if alone else None
        self.half = VisionHalf(stage.settings, stage.family, report)
        self._thread = ThreadPoolExecutor(1, "sealing")
        self._sealing: deque[tuple[Clip, Future[Sealed]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self.report.notes += self._reuse.lines() if self._reuse else []

    @property
    def frames_per_batch(self) -> int:
        """Frames that are encoded together, as far as memory has allowed."""
        return self.half.frames_per_batch

    def make(self, batch: Sequence[tuple[Clip, PreparedClip]]) -> list[Outcome]:
        """Encode clips and have them sealed; return those that are done, these or earlier ones."""
        encoded = self._encoded(batch)
        given_up: list[Outcome] = []
        for (clip, prepared), features in zip(batch, encoded, strict=True):
            if isinstance(features, ClipError):
                given_up.append((clip, features))
                continue
            sealing = self._thread.submit(
                seal_clip, clip, prepared, features, self.stage.store, self.stage.settings
            )
            self._sealing.append((clip, sealing))
        return given_up + self.finish(leave=SEALING_AHEAD)

    def _encoded(self, batch: Sequence[tuple[Clip, PreparedClip]]) -> Encoded:
        if self._reuse is not None:
            return self._reuse.encode(batch, self.half.encode)
        return self.half.encode([prepared.tensors() for _, prepared in batch])

    def finish(self, leave: int = 0) -> list[Outcome]:
        """Wait until at most `leave` clips wait to be sealed; return those that are done."""
        done: list[Outcome] = []
        while len(self._sealing) > leave:
            clip, sealing = self._sealing.popleft()
            with self.report.timings.time("wait_for_writer"):
                try:
                    done.append((clip, sealing.result()))
                except ClipError as error:
                    done.append((clip, error))
        return done


def seal_clip(
    clip: Clip,
    prepared: PreparedClip,
    features: ClipTensors,
    store: FeatureStore,
    settings: Settings,
) -> Sealed:
    """Write one feature file.

    Raises:
        CacheError: the disk is full or cannot be written.
        FeaturesError: a number is NaN or infinite.
    """
    attributes: dict[str, Field] = {
        **clip.key.fields(),
        **prepared.facts,
        "video": path_to_text(clip.video),
        "model": settings.model,
        "cut": clip.cut,
        "texts": dict(features.texts),
        "versions": versions(),
    }
    size_bytes = store.write(
        clip.key.digest,
        features.tensors,
        attributes,
        prepared.thumbnail,
        compression=settings.vision.compression,
    )
    return Sealed(prepared.num_frames, size_bytes, str(prepared.facts["decoder"]), prepared.info)
