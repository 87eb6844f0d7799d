"""The video files that trainers read: whole videos are copied, everything else is re-encoded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cogcache.errors import VideoError
from cogcache.export.clip_encoder import Part, encode, part_of
from cogcache.export.items import Item
from cogcache.video import FrameIndex, damage, misread

Media: TypeAlias = Literal["copy", "link"]

QUICKTIME: Final = "qt"


@dataclass(frozen=True, slots=True)
class Takes:
    """What a trainer's video reader can read."""

    reader: str
    """By what it reads."""
    codecs: frozenset[str] = frozenset({"h264", "hevc", "mpeg4", "vp9"})
    """Those that its builds are sure to decode, as libav names them."""
    sound: bool = True
    """Whether it reads files that have sound."""


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """The facts that trainers need about a video file; None for those that nobody knows."""

    num_frames: int | None
    fps: float | None
    width: int | None
    height: int | None


def place(item: Item, source: Path, path: Path, media: Media, takes: Takes) -> ClipFacts:
    """Put the clip of ``item`` at ``path``, an MP4 file.

    A whole video is copied, or linked to, if it is an MP4 that every reader shows as it was
    captioned; all else is encoded anew (H.264, nearly without loss).

    Args:
        item: the caption and its clip.
        source: the file that holds its video.
        path: of the new file.
        media: whether files that stay as they are are copied.
        takes: what the trainer's reader takes.

    Raises:
        VideoError: the video cannot be decoded.
    """
    part = part_of(source, *item.span)
    if _is_whole(part, item.span[1]) and reason_to_encode(part.index, takes) is None:
        if media == "link":
            path.symlink_to(source.absolute())
        else:
            shutil.copyfile(source, path)
        width, height = part.index.display.shown
        return ClipFacts(len(part.index.times_s), part.index.fps, width, height)
    with damage() as found:
        made = encode(part, path, sound=takes.sound)
        return ClipFacts(made.num_frames, made.fps, made.width, made.height)
    problem = f"{source} cannot be decoded: {found[0]}"
    raise VideoError("decode_failed", problem) from found[0]


def reason_to_encode(index: FrameIndex, takes: Takes) -> str | None:
    """Return why a whole video must be re-encoded; None if it can be copied.

    A reader that takes no account of how a file is turned, stretched or cut shows something else
    than what was captioned, and most readers do not.
    """
    is_mp4 = "mp4" in index.container.split(",") and index.brand != QUICKTIME
    reasons = {
        "it is no MP4": not is_mp4,
        f"{takes.reader} may have no decoder for {index.codec}": index.codec not in takes.codecs,
        "it has sound": index.has_sound and not takes.sound,
        "its frames are interlaced, which readers show in different ways": index.is_interlaced,
        "its colours are wide ones, which some readers turn into others": index.has_wide_colours,
    }
    found = next((reason for reason, holds in reasons.items() if holds), misread(index))
    return found or ("a cover comes before the pictures" if index.has_cover_first else None)


def _is_whole(part: Part, end_s: float | None) -> bool:
    has_all = part.first == 0 and part.stop == len(part.index.times_s)
    # A last frame that is held for long may be in several clips.
    return has_all and (end_s is None or end_s >= part.index.end_s)
