"""How large frames are handed to a vision half that takes them at their own size."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, Final

from cogcache.errors import ConfigError
from cogcache.settings import PixelLimits

_FEWEST_PIXELS: Final = 1024
"""An edge in a processor's `size` that is larger than this counts pixels, not those of a side."""
_SIDES: Final[Mapping[str, int]] = {
    "qwen2_vl": 28,
    "qwen2_5_vl": 28,
    "qwen2_5_omni": 28,
    "qwen3_vl": 32,
    "qwen3_vl_moe": 32,
}
"""Pixels of the side of a token, a patch of 14 or 16 pixels merged by two."""
_MIN_TOKENS, _MAX_TOKENS, _CLIP_TOKENS = 128, 768, int(128_000 * 0.9)
"""Of a frame at least and at most, and of a clip; qwen-vl-utils 0.0.14, vision_process.py."""
_PAIR: Final = 2
"""Two frames make one row of tokens."""


def published_pixels(model_type: str) -> PixelLimits | None:
    """Return what the authors' own code scales frames to; None where that is the processor alone.

    For Qwen a frame has 128 to 768 tokens, and a clip at most 0.9 of a context of 128,000; the
    source is qwen-vl-utils, whose functions its authors call before the processor.

    Example:
        >>> published_pixels("qwen2_5_vl").frame_max
        602112
    """
    if (side := _SIDES.get(model_type)) is None:
        return None
    area = side * side
    return PixelLimits(_MIN_TOKENS * area, _MAX_TOKENS * area, _CLIP_TOKENS * area * _PAIR)


def size_within(
    video_processor: Any, pixels: PixelLimits, num_frames: int, family: str
) -> dict[str, int]:
    """Return the `size` with which a video processor keeps within limits of pixels.

    Args:
        video_processor: of transformers; None where the family has none.
        pixels: the limits.
        num_frames: of the clip. The limit of a whole clip is shared evenly among them, and never
            asks for less than 1.05 times the least of a frame, as qwen-vl-utils has it.
        family: its name, for the error.

    Raises:
        ConfigError: the processor takes frames of one size alone.
    """
    own = dict(getattr(video_processor, "size", None) or {})
    least, most = own.get("shortest_edge"), own.get("longest_edge")
    if not least or not most or most < _FEWEST_PIXELS:
        problem = f"{family} takes frames of one size: it has no limits of pixels"
        raise ConfigError(problem, "leave out max_pixels, min_pixels and max_video_pixels")
    share = num_frames if _counts_frames(video_processor) else 1
    frame_min = pixels.frame_min or least
    frame_max = pixels.frame_max or max(most // share, frame_min)
    if pixels.clip_max:
        shared = pixels.clip_max // num_frames
        frame_max = max(min(frame_max, shared), int(frame_min * 1.05))
    # A least size of a whole clip would scale each of its frames up.
    lower = frame_min if pixels.frame_min is None and share > 1 else frame_min * share
    return {"shortest_edge": lower, "longest_edge": frame_max * share}


def _counts_frames(video_processor: Any) -> bool:
    """Say whether a processor's `size` is that of all frames together, as in Qwen3-VL and GLM."""
    resize = getattr(sys.modules[type(video_processor).__module__], "smart_resize", None)
    return resize is not None and "num_frames" in inspect.signature(resize).parameters
