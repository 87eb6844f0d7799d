"""Frames that were encoded before are not encoded again: those that clips of one video share.

Clips that overlap, or a denser sampling of the same video, share frames. For families whose
frames do not see each other, those are taken from features in hand or in the cache.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cogcache.errors import CacheError, ClipError
from cogcache.models import ClipTensors
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.encoding.preparation import PreparedClip
from cogcache.store import FeatureStore

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

HELD_CLIPS = 4
"""Clips whose features stay in memory for those that follow."""
SAME = ("preprocessing", "family", "vision_digest", "cache_point", "dtype", "epoch")
"""What two clips must have in common, besides the video and the decoder, to share a frame."""

Neighbours = Callable[[Clip], Sequence[str]]

Encoded = Sequence[ClipTensors | ClipError]
"""Of each clip its features, or why there are none."""
Encode = Callable[[Sequence[ClipTensors]], Encoded]


def no_neighbours(clip: Clip) -> Sequence[str]:
    """Say of every clip that no other shares frames with it."""
    return ()


class Frame(NamedTuple):
    """One frame of a video, as one decoder gives it."""

    video_digest: str
    decoder: str
    number: int


@dataclass(eq=False)
class _Held:
    """Features in memory, or to be: a row a frame in each tensor."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    error: ClipError | None = None
    """Why there are none."""


FramePlace = tuple[_Held, int]
"""Where the features of one frame lie: a row of what is held."""


@dataclass
class _Plan:
    """What is to be encoded for one clip, and where each of its frames comes from."""

    inputs: ClipTensors
    own: list[int] = field(default_factory=list)
    """Its frames that nobody has encoded yet, by their places in the clip."""
    held: _Held = field(default_factory=_Held)
    """Their features."""
    places: list[FramePlace] = field(default_factory=list)
    """Of each frame of the clip, in order."""

    def missing(self) -> ClipTensors:
        """Return the inputs of the frames that are to be encoded."""
        if len(self.own) == len(self.places):
            return self.inputs
        tensors = {name: tensor[self.own] for name, tensor in self.inputs.tensors.items()}
        return ClipTensors(tensors, self.inputs.texts)

    def features(self) -> ClipTensors | ClipError:
        """Return the features of all frames, once those that were missing are encoded."""
        import torch

        if error := next((held.error for held, _ in self.places if held.error), None):
            return error

        if len(self.own) == len(self.places):
            return ClipTensors(self.held.tensors)
        tensors = {
            name: torch.stack([held.tensors[name][row] for held, row in self.places])
            for name in self.places[0][0].tensors
        }
        return ClipTensors(tensors)


class FrameReuse:
    """Encodes batches of clips, each frame once, for a family whose `frames_alone` is true.

    Args:
        store: where clips that were encoded before lie.
        neighbours: keys of clips in the store that may share frames with a clip.
    """

    def __init__(self, store: FeatureStore, neighbours: Neighbours) -> None:
        self.store, self.neighbours = store, neighbours
        self.num_frames = self.num_encoded = 0
        self._recent: deque[dict[Frame, FramePlace]] = deque(maxlen=HELD_CLIPS)

    def encode(self, batch: Sequence[tuple[Clip, PreparedClip]], encode: Encode) -> Encoded:
        """Return the features of each clip; `encode` is given the frames that nobody has yet."""
        known = {frame: place for each in self._recent for frame, place in each.items()}
        plans = [self._plan(clip, prepared, known) for clip, prepared in batch]
        some = [plan for plan in plans if plan.own]
        made = encode([plan.missing() for plan in some]) if some else []
        for plan, features in zip(some, made, strict=True):
            if isinstance(features, ClipError):
                plan.held.error = features
            else:
                plan.held.tensors = features.tensors
        encoded = [plan.features() for plan in plans]
        for (clip, prepared), plan, features in zip(batch, plans, encoded, strict=True):
            if isinstance(features, ClipError):
                continue
            self.num_frames += len(plan.places)
            self.num_encoded += len(plan.own)
            whole = _Held(features.tensors)
            frames = _frames(clip, prepared)
            self._recent.append({frame: (whole, row) for row, frame in enumerate(frames)})
        return encoded

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        reused = self.num_frames - self.num_encoded
        if not reused:
            return []
        return [f"{reused} of {self.num_frames} frames were encoded before, in clips that overlap"]

    def _plan(self, clip: Clip, prepared: PreparedClip, known: dict[Frame, FramePlace]) -> _Plan:
        plan, frames = _Plan(prepared.tensors()), _frames(clip, prepared)
        if missing := {*frames} - {*known}:
            known.update(self._from_store(clip, missing))
        for position, frame in enumerate(frames):
            if frame not in known:
                known[frame] = plan.held, len(plan.own)
                plan.own.append(position)
            plan.places.append(known[frame])
        if not frames:  # frames decoded with errors are not shared
            plan.own = [*range(prepared.num_frames)]
            plan.places = [(plan.held, row) for row in plan.own]
        return plan

    def _from_store(self, clip: Clip, missing: set[Frame]) -> Iterator[tuple[Frame, FramePlace]]:
        """Find frames in clips that were encoded before; a damaged one is left to its own run."""
        for key in self.neighbours(clip):
            try:
                places = self._shared(key, clip, missing)
            except CacheError as error:
                logger.warning("its frames are encoded anew: %s", error.problem)
                continue
            yield from places.items()
            missing = missing - {*places}
            if not missing:
                return

    def _shared(self, key: str, clip: Clip, missing: set[Frame]) -> dict[Frame, FramePlace]:
        """Return those of the missing frames that the features of `key` have."""
        told: Mapping[str, Any] = self.store.describe(key)
        fields = clip.key.fields()
        if told["suspect"] is not None or any(told[name] != fields[name] for name in SAME):
            return {}
        decoder = told["decoder"]
        frames = [Frame(clip.key.video_digest, decoder, index) for index in told["frame_indices"]]
        if missing.isdisjoint(frames):
            return {}
        held = _Held(self.store.read(key).tensors)
        return {frame: (held, row) for row, frame in enumerate(frames) if frame in missing}


def _frames(clip: Clip, prepared: PreparedClip) -> list[Frame]:
    """Return the frames of a clip; none where its decoding was doubtful."""
    facts: Mapping[str, Any] = prepared.facts
    if facts["suspect"] is not None:
        return []
    decoder = str(facts["decoder"])
    return [Frame(clip.key.video_digest, decoder, index) for index in facts["frame_indices"]]
