"""How the colours of a frame are coded, by the numbers of ITU-T H.273, and who shows them so.

Frames are read as most readers show them: the numbers of a frame are turned into red, green and
blue by their matrix, and what colours of light these are to be is left aside. Some readers take
account of that, too, and give other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame

UNSPECIFIED = 2
KNOWN_MATRICES = frozenset({*range(8), 9})
"""Those that libswscale turns into RGB; it refuses frames of others, such as YCgCo and ICtCp."""
COMMON_PRIMARIES = frozenset(range(8))
"""Those of television up to BT.709, which nobody tells apart."""
OTHER_TRANSFERS = frozenset({9, 10, 16, 18})
"""Logarithmic ones, PQ and HLG: OpenCV 5 turns what is coded by them into BT.709."""


def with_known_matrix(frame: VideoFrame) -> VideoFrame:
    """Return a frame whose colours can be turned into RGB.

    Colours coded by a matrix that is not known are taken for ones whose matrix is not told, as
    ffmpeg and decord take them; the index says so, see `unknown_matrix`.
    """
    if unknown_matrix(frame) is not None:
        frame.colorspace = UNSPECIFIED
    return frame


def unknown_matrix(frame: VideoFrame) -> int | None:
    """Return the number of a frame's matrix if it is not known."""
    matrix = int(frame.colorspace)
    return None if matrix in KNOWN_MATRICES else matrix


def are_wide(frame: VideoFrame) -> bool:
    """Say whether some readers turn a frame's colours into others, those of BT.709."""
    is_common = int(frame.color_primaries) in COMMON_PRIMARIES
    return not is_common or int(frame.color_trc) in OTHER_TRANSFERS
