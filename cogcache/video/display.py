"""How a player shows the pictures of a file: upright, in square pixels, in its colours.

The reader and the exporter both go by this, so that a file that is exported shows what was
captioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

Turn = tuple[int, int, int, int]
Picture = NDArray[Any]
UPRIGHT: Turn = (1, 0, 0, 1)
FIXED_POINT = 65_536
"""What stands for 1 in the first two columns of a display matrix (ISO/IEC 14496-12, 8.3.2)."""
SCALED = 0.01
"""Share by which the two sides of a matrix differ before it is one that stretches: libav's."""


@dataclass(frozen=True, slots=True)
class Display:
    """What becomes of a decoded picture before it is shown."""

    coded: tuple[int, int]
    """Width and height as coded, in pixels."""
    size: tuple[int, int]
    """Width and height in square pixels, before the picture is turned."""
    turn: Turn | None
    """How a player turns or mirrors the picture: (a, b, c, d) of the file's display matrix without
    its scale, by which the pixel at (x, y) is shown at (ax + cy, bx + dy). None: not at all."""

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as shown."""
        width, height = self.size
        return (height, width) if self.turn is not None and not self.turn[0] else (width, height)

    @property
    def is_plain(self) -> bool:
        """Whether pictures are shown as they are coded."""
        return self.turn is None and self.size == self.coded

    def turned(self, pictures: Picture) -> Picture:
        """Return pictures as shown. Shape [T, H, W] or [T, H, W, C], before and after."""
        if self.turn is None:
            return pictures
        a, b, c, d = self.turn
        if a and d:
            return np.ascontiguousarray(pictures[:, ::d, ::a])
        return np.ascontiguousarray(pictures.swapaxes(1, 2)[:, ::b, ::c])


def display_of(stream: VideoStream, frame: VideoFrame | None) -> Display:
    """Return how the pictures of a stream are shown.

    Args:
        stream: of the pictures.
        frame: its first; PyAV tells of turning only there. None where none can be decoded.
    """
    matrix = matrix_of(frame)
    coded = stream.width, stream.height
    ratio = _pixel_ratio(stream, matrix)
    size = (max(round(coded[0] * ratio), 1), coded[1])
    return Display(coded, size, _turn(matrix))


def matrix_of(frame: VideoFrame | None) -> list[float] | None:
    """Return a, b, c and d of a frame's display matrix; None where it has none."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame is not None else None
    if matrix is None:
        return None
    a, b, _, c, d = (np.frombuffer(bytes(matrix), np.int32)[:5] / FIXED_POINT).tolist()
    return [a, b, c, d]


def _turn(matrix: list[float] | None) -> Turn | None:
    largest = max(map(abs, matrix or [0.0]))
    if matrix is None or not largest:
        return None
    # Players take from the matrix how a picture is turned, and not how large it is. Of one that
    # stretches, each side is held against the larger one on its own row.
    rows = [max(abs(x), abs(y)) or largest for x, y in (matrix[:2], matrix[2:])]
    scales = (rows[0], rows[0], rows[1], rows[1])
    a, b, c, d = (
        round(math.copysign(abs(x) / scale > 0.5, x))
        for x, scale in zip(matrix, scales, strict=True)
    )
    upright, lying = a * d and not (b or c), b * c and not (a or d)
    return (a, b, c, d) if (upright or lying) and (a, b, c, d) != UPRIGHT else None


def _pixel_ratio(stream: VideoStream, matrix: list[float] | None) -> float:
    """Return the width of a pixel over its height."""
    ratio = stream.sample_aspect_ratio
    if matrix is not None:
        sides = [math.hypot(matrix[0], matrix[2]), math.hypot(matrix[1], matrix[3])]
        if min(sides) > 0 and abs(sides[0] / sides[1] - 1) > SCALED:
            # libav makes a ratio of a matrix that stretches, and shows such a film unstretched.
            ratio = stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio is not None and ratio > 0 else 1.0
