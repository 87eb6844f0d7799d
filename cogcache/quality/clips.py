"""Facts about a clip from its cached features alone: motion, and a vector to find duplicates.

No video is decoded and no model runs. It cannot judge picture quality, and it cannot tell motion in
the scene from motion of the camera.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cogcache.errors import ClipError

if TYPE_CHECKING:
    from torch import Tensor

CLIP_EPOCH: Final = 1
CLIP_SCORES: Final = ("motion", "static", "black", "duplicate")
"""motion: how far apart neighbouring frames' features are, 0 to 1, see `look_at`.
static: 1 where nothing moves. black: 1 where the thumbnail is black.
duplicate: cosine to the clip that is kept in place of this one; 0 for one that is kept."""
_FRAMES: Final = 4
"""Frames of a clip that its vector is made of, evenly spaced."""
_PLACES: Final = 4
"""Parts of a frame that the vector has: its tokens in order, in so many runs."""
_MOST_NUMBERS: Final = 256
"""Numbers of the vector for each part: features are wider, and are folded to as many."""
_BLACK: Final = 24
"""Of 255: brightness below which a thumbnail's brightest hundredth has to be."""


@dataclass(frozen=True, slots=True)
class ClipLook:
    """What the features show about a clip."""

    motion: float
    vector: npt.NDArray[np.float32]
    """float32 [D]: what the clip looks like."""
    is_black: bool


def look_at(
    tensors: Mapping[str, Tensor], num_frames: int, thumbnail: bytes | None = None
) -> ClipLook:
    """Return what the features of a clip say.

    `motion` is the mean over neighbouring frames, and over the tenth of their places that changed
    most, of 1 less the cosine of the features there. A small thing that moves is no less motion.

    Args:
        tensors: of the feature file.
        num_frames: of the clip.
        thumbnail: the JPEG beside the features. Features of a black frame are what the model makes
            of it; whether a clip is black is told by this picture.

    Raises:
        ClipError: no tensor of the clip has a part for each frame.
    """
    frames = _by_frame(tensors, num_frames)
    return ClipLook(_motion(frames), _vector(frames), _is_black(thumbnail))


def _by_frame(tensors: Mapping[str, Tensor], num_frames: int) -> npt.NDArray[np.float32]:
    """Return the features as float32 [T, places, D]; T may be less where a model joins frames."""
    floating = {name: each for name, each in tensors.items() if each.is_floating_point()}
    largest = max(floating.values(), key=lambda each: each.numel(), default=None)
    if largest is None or largest.ndim < 2:
        raise ClipError("no_frames", "its features have no part for each frame")
    times = _num_times(tensors, largest, num_frames)
    flat = largest.float().numpy()
    return flat.reshape(times, -1, flat.shape[-1])


def _num_times(tensors: Mapping[str, Tensor], largest: Tensor, num_frames: int) -> int:
    """Return how many points in time the features have."""
    rows = largest.numel() // largest.shape[-1]
    if largest.ndim >= 3 and largest.shape[0] in (num_frames, (num_frames + 1) // 2):
        return int(largest.shape[0])
    grids = [
        int(each.reshape(-1, 3)[:, 0].sum())
        for each in tensors.values()
        if not each.is_floating_point() and each.numel() in (3, 3 * num_frames)
    ]
    for times in (*grids, num_frames, (num_frames + 1) // 2):
        if times and rows % times == 0:
            return times
    raise ClipError("no_frames", "its features have no part for each frame")


def _motion(frames: npt.NDArray[np.float32]) -> float:
    if len(frames) < 2:
        return 0.0
    before, after = frames[:-1], frames[1:]
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosines = (before * after).sum(-1) / np.maximum(norms, 1e-12)
    changes = np.sort(np.clip(1 - cosines, 0, 2), axis=-1)
    most = max(1, changes.shape[-1] // 10)
    return float(min(changes[:, -most:].mean(), 1.0))


def _vector(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
    runs = np.array_split(chosen, min(_PLACES, chosen.shape[1]), axis=1)
    parts: Any = np.stack([run.mean(axis=1) for run in runs], axis=1)
    if (width := parts.shape[-1]) > _MOST_NUMBERS:
        padded = np.pad(parts, [(0, 0), (0, 0), (0, -width % _MOST_NUMBERS)])
        # Signs keep neighbours that are always alike from adding up to one large number.
        signs = np.where(np.arange(padded.shape[-1]) * 2654435761 % 7 < 3, -1, 1)
        folded = (padded * signs).reshape(*parts.shape[:2], -1, _MOST_NUMBERS)
        parts = folded.sum(axis=2)
    return np.asarray(parts.reshape(-1), np.float32)


def _is_black(thumbnail: bytes | None) -> bool:
    if thumbnail is None:
        return False
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(thumbnail)) as image:
            brightness = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError):
        return False  # a picture for people: that it is damaged is for `verify` to say
    return bool(np.percentile(brightness, 99) < _BLACK)
