"""Spans of a video, and how scene boundaries become spans."""

from __future__ import annotations

import math
from collections.abc import Sequence

Span = tuple[float, float | None]
"""Start and end of a clip in seconds from the first frame; None is the end of the video."""
WHOLE: Span = (0.0, None)


def spans_of(
    begins_s: Sequence[float],
    end_s: float,
    min_scene_s: float,
    segment_s: float | None = None,
    overlap_s: float = 0.0,
) -> list[Span]:
    """Return the clips ``(start_s, end_s)`` of a video that is cut where scenes begin.

    Args:
        begins_s: where scenes begin, the first excepted.
        end_s: when the video ends.
        min_scene_s: a scene shorter than that joins the one before it.
        segment_s: longer scenes are cut into clips of this length.
        overlap_s: what the clips of one scene share with the one before.
    """
    begins = [0.0]
    for begin_s in sorted(begins_s):
        if begin_s - begins[-1] >= min_scene_s and begin_s > begins[-1]:
            begins.append(begin_s)
    while len(begins) > 1 and end_s - begins[-1] < min_scene_s:
        begins.pop()
    spans: list[Span] = []
    for begin_s, next_s in zip(begins, [*begins[1:], None], strict=True):
        length_s = (end_s if next_s is None else next_s) - begin_s
        parts = cut(length_s, segment_s, overlap_s)
        spans += [
            (begin_s + start, next_s if stop is None else begin_s + stop) for start, stop in parts
        ]
    return spans


def cut(
    duration_s: float, segment_s: float | None, overlap_s: float = 0.0
) -> list[tuple[float, float | None]]:
    """Return the clips ``(start_s, end_s)`` of a video, each ``segment_s`` long.

    The last has no end, so that no frame is lost to a length announced too short; a rest of less
    than half a segment joins it. Each clip but the first begins ``overlap_s`` before the one
    before it ends.
    """
    if segment_s is None:
        return [(0.0, None)]
    step_s = segment_s - overlap_s
    num_clips = max(math.floor((duration_s - overlap_s) / step_s + 0.5), 1)
    starts = [index * step_s for index in range(num_clips)]
    # From the next one's start: without overlap the two are the same number.
    ends = [start + overlap_s for start in starts[1:]]
    return list(zip(starts, [*ends, None], strict=True))
