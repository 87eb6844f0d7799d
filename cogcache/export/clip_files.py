"""The video files that trainers read: whole videos as they are, clips cut out of them.

What is not covered: sound, which is left out of what is cut, and pixels that are not square.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from cogcache.errors import VideoError
from cogcache.export.items import Item

Media: TypeAlias = Literal["copy", "link"]

_CLOCK: Final = 90_000
_DEFAULT_RATE: Final = 25


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What trainers ask of a video file; None where nobody knows."""

    num_frames: int | None
    fps: float | None
    width: int | None
    height: int | None


def place(item: Item, path: Path, media: Media) -> ClipFacts:
    """Put the clip of ``item`` at ``path``, an MP4 file.

    A whole video that is one already is copied, or linked to; all else is encoded anew (H.264,
    nearly without loss), because other files are not read by every trainer.

    Raises:
        VideoError: the video is missing or cannot be decoded.
    """
    source = item.path
    if not source.is_file():
        raise VideoError("missing", f"{source} is not there")
    if item.is_whole and source.suffix == ".mp4":
        if media == "link":
            path.symlink_to(source.absolute())
        else:
            shutil.copyfile(source, path)
        return ClipFacts(item.total_num_frames, item.fps, item.width, item.height)
    return _cut(source, item.span, path)


def _cut(source: Path, span: tuple[float, float | None], path: Path) -> ClipFacts:
    import av  # here: exports of text alone need not pay for it

    try:
        with av.open(str(source)) as video, av.open(str(path), "w", format="mp4") as out:
            facts = _encode(video, out, span)
    except (av.FFmpegError, IndexError) as error:
        raise VideoError("decode_failed", f"{source} cannot be decoded: {error}") from error
    if not facts.num_frames:
        raise VideoError("no_frames", f"{source} has no frames in {span[0]:g} s and on")
    return facts


def _encode(video: Any, out: Any, span: tuple[float, float | None]) -> ClipFacts:
    source = video.streams.video[0]
    rate = source.average_rate or Fraction(_DEFAULT_RATE)
    # One thread: the same clip gives the same bytes on any machine.
    stream = out.add_stream("libx264", rate=rate, options={"crf": "16", "threads": "1"})
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, _CLOCK)
    count = 0
    for frame, time_s in _frames(video, source, span):
        if not count:
            stream.width, stream.height = frame.width // 2 * 2, frame.height // 2 * 2
        shown = frame.reformat(stream.width, stream.height, "yuv420p")
        shown.pts, shown.time_base = round((time_s - span[0]) * _CLOCK), Fraction(1, _CLOCK)
        out.mux(stream.encode(shown))
        count += 1
    if count:
        out.mux(stream.encode())
    return ClipFacts(count, float(rate), stream.width, stream.height)


def _frames(
    video: Any, source: Any, span: tuple[float, float | None]
) -> Iterator[tuple[Any, float]]:
    """Yield the frames in the span, upright, with their times from the video's start."""
    offset_s = float((source.start_time or 0) * source.time_base)
    start_s, end_s = span
    if start_s > 0:
        video.seek(int((start_s + offset_s) / source.time_base), stream=source)
    for frame in video.decode(source):
        time_s = (frame.time or 0.0) - offset_s
        if end_s is not None and time_s >= end_s:
            return
        if time_s >= start_s:
            yield _upright(frame), time_s


def _upright(frame: Any) -> Any:
    turns = round(frame.rotation / 90) % 4
    if not turns:
        return frame
    import numpy as np
    from av import VideoFrame

    pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return VideoFrame.from_ndarray(pixels, format="rgb24")
