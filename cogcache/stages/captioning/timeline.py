"""The captions of a video's clips in their order: which clips those are, and how they are told.

Pure functions: no catalog, no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cogcache.catalog import ClipRow
from cogcache.errors import ClipError
from cogcache.units import format_clock
from cogcache.video import Span

SEVERAL_CUTTINGS: Final = "several_cuttings"
TOO_LONG: Final = "captions_too_long"


@dataclass(frozen=True, slots=True)
class Line:
    """What is said of one part of a video."""

    span: Span
    key: str
    """Of the caption that says it."""
    text: str
    flagged: bool = False

    def told(self, length_s: float | None, offset_s: float = 0.0) -> str:
        """Return the line as a model reads it: "[0:00:24 - 0:00:48] A dog barks.".

        Args:
            length_s: of the video; None where that is not known.
            offset_s: the time that a player shows at the video's first frame.
        """
        start_s, end_s = self.span
        end_s = length_s if end_s is None else end_s
        end = "end" if end_s is None else format_clock(offset_s + end_s)
        return f"[{format_clock(offset_s + start_s)} - {end}] {' '.join(self.text.split())}"


def span_of(spans: Sequence[Span]) -> Span:
    """Return the part of a video that consecutive parts make up."""
    return spans[0][0], spans[-1][1]


def in_order(clips: Sequence[ClipRow]) -> list[ClipRow]:
    """Return the clips that a video was cut into, by their begins; the whole video is none.

    Raises:
        ClipError: they come from several ways to cut it, as one of them lies within another.
    """
    parts = [clip for clip in clips if _span(clip) != (0.0, None)]
    parts.sort(key=lambda clip: (clip["start_s"], _end_s(clip)))
    for before, clip in pairwise(parts):
        if clip["start_s"] == before["start_s"] or _end_s(clip) <= _end_s(before):
            problem = (
                f"{clip['video']}: the cache holds clips of several ways to cut it: "
                f"{_told(before)} and {_told(clip)}"
            )
            hint = "say which with --segment and --overlap, or with --scenes"
            raise ClipError(SEVERAL_CUTTINGS, problem, hint)
    return parts


def cut_as(clips: Sequence[ClipRow], spans: Sequence[Span]) -> tuple[list[ClipRow], list[Span]]:
    """Return the clips that are among `spans`, in their order, and the spans that no clip has."""
    by_span: Mapping[Span, ClipRow] = {_span(clip): clip for clip in clips}
    there = [by_span[span] for span in spans if span in by_span]
    return there, [span for span in spans if span not in by_span]


def groups(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Split lines into runs `[first, stop)` of about one length, none longer than `room`.

    Args:
        lengths: of each line, in tokens.
        room: how much one run may take.

    Raises:
        ClipError: no two lines have room beside each other.
    """
    target = sum(lengths) / max(1, math.ceil(sum(lengths) / room))
    found: list[tuple[int, int]] = []
    first, taken, done = 0, 0, 0
    for place, length in enumerate(lengths):
        # Against the sum so far, not the run's own: else what rounding leaves piles up at the end.
        full = done >= target * (len(found) + 1)
        if place > first and (full or taken + length > room):
            found.append((first, place))
            first, taken = place, 0
        taken += length
        done += length
    found.append((first, len(lengths)))
    if max(lengths, default=0) > room or (len(found) > 1 and len(found) == len(lengths)):
        problem = f"captions of up to {max(lengths)} tokens cannot be summed up in {room}"
        raise ClipError(TOO_LONG, problem, "raise --summary-tokens, or lower --max-new-tokens")
    return found


def _span(clip: ClipRow) -> Span:
    return clip["start_s"], clip["end_s"]


def _end_s(clip: ClipRow) -> float:
    return math.inf if clip["end_s"] is None else clip["end_s"]


def _told(clip: ClipRow) -> str:
    end_s = clip["end_s"]
    return f"{clip['start_s']:g}:{'' if end_s is None else f'{end_s:g}'}"
