"""Decoded frames to the pixels that the vision half reads, as the published code makes them.

Fact for fact the published order: scale, normalise, resize, crop, all in float32 on the CPU.
Normalising after resizing, or rounding the long side instead of flooring it, moves pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
AS_MANY_AS_COLOURS = 3


def preprocess(frames: Tensor, image_size: int) -> Tensor:
    """Turn RGB frames into `pixel_values_videos`.

    Args:
        frames: decoded RGB, uint8, 0 to 255. Shape [T, H, W, 3].
        image_size: side of the square the model sees, in pixels.

    Returns:
        float32 [T, 3, image_size, image_size].
    """
    import torch

    # One by one: all at once take ten times the memory of a clip, and three times as long. But of
    # three frames `interpolate` takes the frames for colours, and rounds otherwise.
    parts = [frames] if len(frames) == AS_MANY_AS_COLOURS else torch.split(frames, 1)
    return torch.cat([_together(part, image_size) for part in parts])


def _together(frames: Tensor, image_size: int) -> Tensor:
    """Preprocess frames in one go, step by step as published."""
    import torch
    from torch.nn import functional

    # Channels first and frames second, as published: `interpolate` then sees each colour plane
    # as a sample, which gives the same bits.
    video = frames.permute(3, 0, 1, 2).float() / 255.0
    mean = torch.tensor(MEAN).view(3, 1, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1, 1)
    video = (video - mean) / std
    height, width = video.shape[-2:]
    size = short_side_size(height, width, image_size)
    video = functional.interpolate(video, size=size, mode="bilinear", align_corners=False)
    top, left = (round((side - image_size) / 2.0) for side in size)
    video = video[..., top : top + image_size, left : left + image_size]
    return video.transpose(0, 1).contiguous()


def short_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width after scaling the short side to `side`; the long one is floored."""
    if width < height:
        return math.floor(float(height) / width * side), side
    return side, math.floor(float(width) / height * side)
