"""Texts beside videos: a plain text, WebVTT or SRT for each video."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cogcache.export.items import Item
from cogcache.export.wording import one_line

_UNKNOWN_S: Final = 5.0
"""Length of a cue in seconds if the end of its clip is unknown."""


def as_text(items: Sequence[Item]) -> str:
    """Return the captions of one video, a line each, in the order of their clips."""
    return "".join(f"{one_line(item.caption)}\n" for item in items)


def as_vtt(items: Sequence[Item]) -> str:
    """Return the captions of one video as WebVTT."""
    cues = [
        f"{number}\n{_clock(begin, '.')} --> {_clock(end, '.')}\n{_vtt_text(text)}\n"
        for number, (begin, end, text) in enumerate(_cues(items), 1)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_srt(items: Sequence[Item]) -> str:
    """Return the captions of one video as SubRip."""
    cues = [
        f"{number}\n{_clock(begin, ',')} --> {_clock(end, ',')}\n{_srt_text(text)}\n\n"
        for number, (begin, end, text) in enumerate(_cues(items), 1)
    ]
    return "".join(cues)


SUBTITLES: Final[dict[str, Callable[[Sequence[Item]], str]]] = {
    "txt": as_text,
    "vtt": as_vtt,
    "srt": as_srt,
}


def by_video(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items of each video."""
    videos: dict[str, list[Item]] = {}
    for item in items:
        videos.setdefault(item.video_digest or item.row["video"], []).append(item)
    return [*videos.values()]


def _cues(items: Sequence[Item]) -> list[tuple[int, int, str]]:
    """Return begin and end in milliseconds, and the text, begins never decreasing."""
    cues = []
    for item in items:
        offset_s = item.offset_s or 0.0
        begin_s = offset_s + item.span[0]
        end_s = begin_s + _UNKNOWN_S if item.end_s is None else offset_s + item.end_s
        begin = round(begin_s * 1000)
        cues.append((begin, max(begin + 1, round(end_s * 1000)), one_line(item.caption)))
    return sorted(cues, key=lambda cue: cue[:2])


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{rest:03}"


def _vtt_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _srt_text(text: str) -> str:
    # SRT has no escapes: players take <i> for italics and {\an8} or \N for commands.
    plain = text.replace("\\", "/").replace("-->", "->")
    return re.sub("<([^<>]*)>", "\u2039\\1\u203a", plain)  # angle quotation marks
