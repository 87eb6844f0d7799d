"""What one clip is to a model: its tokens, its patches, the bytes of its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogcache.planning import QUESTION_TOKENS, feature_bytes, row_tokens, tokens_per_frame
from cogcache.settings import Settings

if TYPE_CHECKING:
    from cogcache.models import ClipTensors, Family

Size = tuple[int, int]
"""Width and height, in pixels."""
DEFAULT_SIZE: Size = (1280, 720)
LONG_S = 3600.0
"""Longer than any published limit of frames reaches."""
PIXELS = "pixel_values"
"""What the names of a processor's pixels begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """One clip of a plan."""

    frames: int
    size: Size | None
    """Width and height of the frames; None where the family scales all of them to one size."""
    row_tokens: int
    """Of the prompt: the video's, an index a frame where there is one, and a short question."""
    frame_positions: int | None
    """Patches of one frame that the vision half sees; None where the config alone says it."""
    features_bytes: int | None
    """Before compression, at the family's cache point."""


def planned_clip(
    family: Family, config: Mapping[str, Any], settings: Settings, frames: int, size: Size
) -> PlannedClip:
    """Return what a clip takes.

    For CogVLM2 the config says it. Any other family's processor is shown a clip of noise of this
    size: how many tokens come of it is its own affair, and depends on the picture's size.

    Args:
        family: at its cache point.
        config: the model's, with all defaults in it.
        settings: for their limits of pixels and types.
        frames: of the clip.
        size: width and height of its frames.
    """
    if tokens_per_frame(config) is not None:
        return PlannedClip(
            frames=frames,
            size=None,
            row_tokens=row_tokens(config, frames),
            frame_positions=None,
            features_bytes=feature_bytes(config, settings, frames, family.cache_point),
        )
    inputs, cached = _seen(family.within(settings.sampling.pixels), settings, frames, size)
    slots = max(tensor.shape[0] for tensor in cached.tensors.values() if tensor.ndim == 2)
    return PlannedClip(
        frames=frames,
        size=size,
        row_tokens=int(slots) + QUESTION_TOKENS,
        frame_positions=_positions(inputs, frames, config),
        features_bytes=sum(tensor.nbytes for tensor in cached.tensors.values()),
    )


def published_count(settings: Settings, duration_s: float | None, fps: float) -> int:
    """Return how many frames the family's release takes of a clip, with `strategy = published`.

    Args:
        settings: model and sampling.
        duration_s: of the clip; None for one so long that no more are taken.
        fps: of its video.

    Raises:
        ConfigError: the family's release takes no frames by itself.
        VideoError: it takes none of so short a clip.
    """
    from cogcache.models import open_family

    rule = open_family(settings).published_frames(settings.sampling)
    seconds = LONG_S if duration_s is None else duration_s
    return len(rule.of_clip(max(1, round(seconds * fps)), fps))


def _seen(
    family: Family, settings: Settings, frames: int, size: Size
) -> tuple[ClipTensors, ClipTensors]:
    """Return what the vision half would get of a clip of noise, and what would be cached of it."""
    import torch

    from cogcache.models import clip_of_noise

    dtype = getattr(torch, settings.vision.vision_dtype)
    inputs = family.prepare(clip_of_noise(frames, (size[1], size[0])), dtype)
    return inputs, family.expected(inputs, dtype)


def _positions(inputs: ClipTensors, frames: int, config: Mapping[str, Any]) -> int | None:
    """Return the patches of a frame, as the processor's pixels have them."""
    pixels = [tensor for name, tensor in inputs.tensors.items() if name.startswith(PIXELS)]
    if not pixels:
        return None
    if pixels[0].ndim == 2:  # a row a patch, of frames in pairs: as Qwen's
        return -(-int(pixels[0].shape[0]) // frames)
    patch = config.get("vision_config", {}).get("patch_size", 14)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    height, width = (int(side) for side in pixels[0].shape[-2:])
    pictures = pixels[0].numel() // (3 * height * width)
    patches = pictures * (height // int(patch)) * (width // int(patch))
    return -(-patches // frames)
