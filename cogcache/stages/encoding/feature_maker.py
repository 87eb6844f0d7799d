"""From prepared clips to sealed feature files: encoded in batches, sealed in a thread beside it.

It knows no catalog, so that it serves wherever a vision half runs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cogcache.catalog import path_to_text
from cogcache.errors import ClipError
from cogcache.keys import Field
from cogcache.models import ClipTensors, Family
from cogcache.planning import Fitted, VisionLoader
from cogcache.settings import Settings
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.encoding.frame_reuse import Encoded, FrameReuse, Neighbours, no_neighbours
from cogcache.stages.encoding.preparation import PreparedClip
from cogcache.stages.runs.report import RunReport, versions
from cogcache.store import FeatureStore
from cogcache.system import running_out
from cogcache.video import VideoInfo

if TYPE_CHECKING:
    from cogcache.models import ClipTensors, Family

logger = logging.getLogger(__name__)


@dataclass
class Encoder:
    """The loaded vision half.

    Args:
        settings: device, memory, precision and `frames_per_batch`, of which a plan may take less.
        family: of the checkpoint, at the cache point.
        report: is told the plan, its reason, and the bytes read.
    """

    settings: Settings
    family: Family
    report: RunReport

    def __post_init__(self) -> None:
        self.half = Fitted(VisionLoader(self.family, self.settings), self.report.note_load)
        self.frames_per_batch = self.half.choice.frames_per_batch

    def encode(self, clips: Sequence[ClipTensors]) -> list[ClipTensors | ClipError]:
        """Encode clips together; each one's features lie in the host's memory.

        Where memory runs out, a pass takes half as many frames; if one is too many, more of the
        weights wait elsewhere. A clip that is too large even so is given up with an error.
        """
        with self.report.split.time("encode"):
            while True:
                if encoded := self._attempt(clips):
                    return [*encoded]
                if not self._make_room():
                    break
        if len(clips) > 1:
            return [found for clip in clips for found in self.encode([clip])]
        problem = "memory runs out though one frame passes at a time and no weights stay"
        return [
            ClipError("out_of_memory", problem, "give the stage more memory, and --retry-failed")
        ]

    def _attempt(self, clips: Sequence[ClipTensors]) -> list[ClipTensors]:
        with running_out():
            encoded = self.family.encode(self.half.model, clips, self.frames_per_batch)
            return [
                ClipTensors({name: t.cpu() for name, t in each.tensors.items()}, each.texts)
                for each in encoded
            ]
        return []

    def _make_room(self) -> bool:
        """Halve the frames of a pass, or have more weights wait; False where nothing is left."""
        if self.frames_per_batch > 1:
            self.frames_per_batch //= 2
            frames = self.frames_per_batch
            logger.warning("out of memory: going on with %d frames a pass", frames)
            self.report.warn([f"memory ran out: {frames} frames a pass from there on"])
            return True
        room = self.half.make_room()
        self.frames_per_batch = self.half.choice.frames_per_batch if room else 1
        return room


SEALING_AHEAD = 4
"""Clips that may wait to be sealed; bounds the memory of encoded, unwritten features."""


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


class FeatureMaker(AbstractContextManager["FeatureMaker"]):
    """The loaded vision half and the thread that seals what it gives.

    Args:
        settings: of the run.
        family: of the checkpoint, at the cache point.
        store: where features are sealed.
        report: is told the plan, the bytes read and the times.
        neighbours: keys of clips in the store that may share frames with a clip.
    """

    def __init__(
        self,
        settings: Settings,
        family: Family,
        store: FeatureStore,
        report: RunReport,
        neighbours: Neighbours = no_neighbours,
    ) -> None:
        self.settings, self.store, self.report = settings, store, report
        self._reuse = FrameReuse(store, neighbours) if family.frames_alone else None
        self.encoder = Encoder(settings, family, report)
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
        return self.encoder.frames_per_batch

    def make(self, batch: Sequence[tuple[Clip, PreparedClip]]) -> list[Outcome]:
        """Encode clips and have them sealed; return those that are done, these or earlier ones."""
        encoded = self._encoded(batch)
        given_up: list[Outcome] = []
        for (clip, prepared), features in zip(batch, encoded, strict=True):
            if isinstance(features, ClipError):
                given_up.append((clip, features))
                continue
            sealing = self._thread.submit(
                seal_clip, clip, prepared, features, self.store, self.settings
            )
            self._sealing.append((clip, sealing))
        return given_up + self.finish(leave=SEALING_AHEAD)

    def _encoded(self, batch: Sequence[tuple[Clip, PreparedClip]]) -> Encoded:
        if self._reuse is not None:
            return self._reuse.encode(batch, self.encoder.encode)
        return self.encoder.encode([prepared.tensors() for _, prepared in batch])

    def finish(self, leave: int = 0) -> list[Outcome]:
        """Wait until at most `leave` clips wait to be sealed; return those that are done."""
        done: list[Outcome] = []
        while len(self._sealing) > leave:
            clip, sealing = self._sealing.popleft()
            with self.report.split.time("wait_for_writer"):
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
