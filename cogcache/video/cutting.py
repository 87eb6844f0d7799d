"""Spans of a video, and how scene boundaries become spans."""

from __future__ import annotations

import math
from collections.abc import Sequence

Span = tuple[float, float | None]
"""Start and end of a clip in seconds from the first frame; None is the end of the video."""
WHOLE: Span = (0.0, None)
LEAST_S = 0.001
"""Seconds of which there must be more for a clip: frames' times are rounded."""


def spans_of(
    begins_s: Sequence[float],
    end_s: float,
    min_scene_s: float,
    segment_s: float | None = None,
    overlap_s: float = 0.0,
    shown_s: Sequence[Sequence[float]] = (),
) -> list[Span]:
    """Return the clips ``(start_s, end_s)`` of a video that is cut where scenes begin.

    Args:
        begins_s: where scenes begin, the first excepted.
        end_s: when the video ends.
        min_scene_s: a scene shorter than that joins the one before it.
        segment_s: longer scenes are cut into clips of this length.
        overlap_s: what the clips of one scene share with the one before.
        shown_s: from when to when frames are shown, as `cut` has it.
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
        shown = [(each[0] - begin_s, each[1] - begin_s) for each in shown_s]
        parts = cut(length_s, segment_s, overlap_s, shown)
        spans += [
            (begin_s + start, next_s if stop is None else begin_s + stop) for start, stop in parts
        ]
    return spans


def cut(
    duration_s: float,
    segment_s: float | None,
    overlap_s: float = 0.0,
    shown_s: Sequence[Sequence[float]] = (),
) -> list[Span]:
    """Return the clips ``(start_s, end_s)`` of a video, each ``segment_s`` long.

    The last has no end, so that no frame is lost to a length announced too short; a rest of less
    than half a segment joins it. Each clip but the first begins ``overlap_s`` before the one
    before it ends.

    Args:
        duration_s: how long the video is announced to be; its sound may be longer than it shows.
        segment_s: length of a clip; None takes the video whole.
        overlap_s: what a clip shares with the one before it.
        shown_s: from when to when frames are shown; clips of other times are none. Empty: it is
            not known, and all are.

    Example:
        >>> cut(30.0, 10.0, shown_s=[(0.0, 12.0)])
        [(0.0, 10.0), (10.0, 20.0)]
    """
    if segment_s is None:
        return [(0.0, None)]
    step_s = segment_s - overlap_s
    last = max(math.floor((duration_s - overlap_s) / step_s + 0.5), 1) - 1
    found = dict.fromkeys(
        number
        for begin_s, end_s in shown_s or [(0.0, math.inf)]
        for number in _segments(begin_s, end_s, segment_s, step_s, last)
    )
    # To the next one's start: without overlap the two are the same number.
    return [
        (number * step_s, None if number == last else (number + 1) * step_s + overlap_s)
        for number in found
    ]


def _segments(begin_s: float, end_s: float, segment_s: float, step_s: float, last: int) -> range:
    """Return the numbers of the segments in which something is shown between two times."""
    first = min(max(math.floor((begin_s - segment_s) / step_s) + 1, 0), last)
    stop = last + 1
    if end_s < last * step_s + LEAST_S:
        stop = max(math.ceil((end_s - LEAST_S) / step_s), 1 if begin_s <= 0 else first)
    return range(first, stop)
