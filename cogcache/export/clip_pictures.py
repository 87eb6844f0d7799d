"""Frames for a new file: upright, with square pixels, in colours that every reader shows alike.

Colours stay as they are coded, with their tags. Wide colours alone get the tags of BT.709: that is
what they were shown as, and readers that take account of such tags would show others. A file has
one coding; frames whose own is another, behind a joint in the video, are brought to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from cogcache.video import FrameIndex, are_wide

if TYPE_CHECKING:
    from av import VideoFrame

SAME_MATRIX: Final = frozenset({1, 2, 4, 5, 6, 7, 9})
"""Matrices that all readers know (ITU-T H.273, table 4; 2: not told); others go by RGB."""
BT709, UNSPECIFIED, BT601 = 1, 2, 6
SWSCALE_BT601: Final = 5
"""The matrix of BT.601, and of what tells none, by libswscale's own number."""
LIMITED_RANGE, FULL_RANGE = 1, 2


@dataclass(frozen=True, slots=True)
class Coding:
    """How the colours of a file are coded; matrix and the others by the numbers of H.273."""

    pix_fmt: str
    is_yuv: bool
    """Whether the video's pictures are: palettes and RGB change from pixel to pixel."""
    matrix: int
    range_: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """Return how to code a video whose frames are like this one."""
        is_yuv = frame.format.name.startswith(("yuv", "nv", "p0"))
        same = is_yuv and int(frame.colorspace) in SAME_MATRIX
        range_ = int(frame.color_range) if same else LIMITED_RANGE
        if frame.format.name.startswith("yuvj"):
            range_ = FULL_RANGE
        wide = are_wide(frame)
        return cls(
            pix_fmt=_pix_fmt(frame, is_full=range_ == FULL_RANGE),
            is_yuv=is_yuv,
            matrix=int(frame.colorspace) if same else BT601,
            range_=range_,
            primaries=BT709 if wide else int(frame.color_primaries),
            transfer=BT709 if wide else int(frame.color_trc),
        )

    def shown(self, frame: VideoFrame, index: FrameIndex, size: tuple[int, int]) -> VideoFrame:
        """Return a frame upright, in square pixels, and coded so.

        Args:
            frame: as decoded.
            index: of its video.
            size: width and height wanted; beyond them a row or a column is left out.
        """
        from av import VideoFrame

        square = max(index.size[0], 2), max(index.size[1], 2)
        coded = self._coded(frame, square)
        if index.display.turn is None and (coded.width, coded.height) == size:
            return coded
        planes = [index.display.turned(plane[None])[0] for plane in _planes(coded)]
        if "444" in self.pix_fmt:
            cut = np.stack([plane[: size[1], : size[0]] for plane in planes])
            return VideoFrame.from_ndarray(cut, format=self.pix_fmt)
        sides = [size, (size[0] // 2, size[1] // 2), (size[0] // 2, size[1] // 2)]
        parts = [plane[:h, :w].reshape(-1) for plane, (w, h) in zip(planes, sides, strict=True)]
        stacked = np.concatenate(parts).reshape(size[1] * 3 // 2, size[0])
        return VideoFrame.from_ndarray(stacked, format=self.pix_fmt)

    def _coded(self, frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
        from av import VideoFrame

        own = Coding.of(frame)
        is_same = (own.matrix, own.range_, own.is_yuv) == (self.matrix, self.range_, self.is_yuv)
        if is_same and own.is_yuv and int(frame.colorspace) in SAME_MATRIX:
            return frame.reformat(*size, self.pix_fmt)
        rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
        return VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format=self.pix_fmt,
            dst_colorspace=SWSCALE_BT601 if self.matrix in {UNSPECIFIED, BT601} else self.matrix,
            dst_color_range=self.range_ or LIMITED_RANGE,
        )


def _pix_fmt(frame: VideoFrame, *, is_full: bool) -> str:
    """Return a format with a colour for each pixel where frames have that, else for four."""
    components = frame.format.components
    has_all = len(components) >= 3 and all(each.width == frame.width for each in components)
    return f"yuv{'j' if is_full else ''}{'444' if has_all else '420'}p"


def _planes(frame: VideoFrame) -> Iterator[NDArray[np.uint8]]:
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        yield rows[: plane.height, : plane.width]
