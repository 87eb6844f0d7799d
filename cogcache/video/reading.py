"""A video file: what it is, the frames of one clip of it, and how to cut it into clips."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.units import GIB, format_bytes
from cogcache.video.container import announced_s, open_video
from cogcache.video.cutting import cut
from cogcache.video.decord_reader import decord_frames, unfit
from cogcache.video.file_state import file_digest, state_of
from cogcache.video.frame_index import FrameIndex, index_frames
from cogcache.video.last_read import Last
from cogcache.video.paths import find_videos
from cogcache.video.pyav_reader import pyav_frames
from cogcache.video.sampling import FamilyRule, SamplingRule, choose

if TYPE_CHECKING:
    from av.video.stream import VideoStream

__all__ = [
    "ClipFrames",
    "VideoInfo",
    "cut",
    "file_digest",
    "find_videos",
    "probe",
    "read_clip",
    "thumbnail",
]

MAX_CLIP_BYTES = 8 * GIB
"""Bytes of one clip's chosen frames: what a worker may be asked to hold."""
THUMBNAIL_SIDE = 256
Served = Literal["decord", "pyav"]
Decoder = Literal["auto", "decord", "pyav"]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file's head says of the video."""

    duration_s: float
    fps: float
    """Frames a second, on average."""
    total_num_frames: int
    """Frames announced; where the file does not say, how many its length makes."""
    width: int
    """Pixels, before the picture is turned."""
    height: int
    codec: str
    offset_s: float | None = None
    """The time that a player shows at the first frame; None where only the head was read."""
    reading: Mapping[str, Any] | None = None
    """What is to be remembered of how it is read; None where only the head was read."""


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """The chosen frames of one clip."""

    frames: NDArray[np.uint8]
    """RGB, turned as a player would. Shape [T, H, W, 3]."""
    timestamps_s: NDArray[np.float64]
    """When each frame begins, in seconds from the video's first. Shape [T]."""
    frame_indices: NDArray[np.int64]
    """Number of each frame in the whole video; a short clip may hold one twice. Shape [T]."""
    fps: float
    total_num_frames: int
    """Of the whole video, counted."""
    duration_s: float
    """Of the whole video."""
    decoder: Served
    suspect: str | None = None
    """What was wrong with the file on the way, if anything."""
    offset_s: float = 0.0
    """The time that a player shows at the video's first frame."""
    start_s: float = 0.0
    """Where the clip begins, in seconds of the whole video."""
    end_s: float | None = None
    """Where it ends; None at the end of the video."""


_LAST: Last[VideoInfo] = Last()


def probe(path: Path) -> VideoInfo:
    """Return what the file's head says; only if it says no length, its packets are gone through.

    Raises:
        VideoError: the file cannot be opened as a video.
    """
    return _LAST.of(state_of(path), lambda: _probe(path))


def measured(path: Path) -> VideoInfo:
    """Return what the file's packets say: its length is that of what is shown, if none is told.

    Raises:
        VideoError: the file cannot be opened as a video.
    """
    index = index_frames(path)
    info = probe(path)
    duration_s = index.duration_s if index.packets.is_spliced else info.duration_s
    return replace(info, duration_s=duration_s, offset_s=index.offset_s, reading=index.reading)


def _probe(path: Path) -> VideoInfo:
    with open_video(path) as video:
        stream, duration_s = video.stream, announced_s(video)
        if duration_s > 0 and stream.average_rate:
            fps = float(stream.average_rate)
            count = stream.frames or round(duration_s * fps)
            return _info(stream, duration_s, fps, count)
        index = index_frames(path)
        return _info(stream, index.duration_s, index.fps, len(index.times_s))


def _info(stream: VideoStream, duration_s: float, fps: float, count: int) -> VideoInfo:
    codec = stream.codec_context.name
    return VideoInfo(duration_s, fps, count, stream.width, stream.height, codec)


def read_clip(
    path: Path,
    sampling: SamplingRule | FamilyRule,
    start_s: float = 0.0,
    end_s: float | None = None,
    *,
    decoder: Decoder = "auto",
) -> ClipFrames:
    """Decode the frames of one clip that ``sampling`` chooses, and hold no others in memory.

    Which frames those are does not depend on the decoder that serves.

    Args:
        path: the video file.
        sampling: which frames of the clip to take.
        start_s: the clip is ``[start_s, end_s)`` of the video, in seconds from its first frame.
        end_s: None for all the rest.
        decoder: what reads; ``"auto"``: PyAV, and decord where PyAV gives no picture of a file
            for which decord is proven.

    Raises:
        VideoError: ``missing``, ``unreadable``, ``empty_file``, ``not_a_video``,
            ``no_video_stream``, ``no_frames``, ``clip_outside``, ``too_few_frames``,
            ``decode_failed``, ``decoder_unfit`` or ``too_large``.
    """
    index = index_frames(path)
    chosen = choose(index.times_s, index.fps, sampling, start_s, end_s, until_s=index.end_s)
    _check_size(path, index, len(chosen))
    numbers, slots = np.unique(chosen, return_inverse=True)
    served, frames, troubles = _frames(path, index, numbers.tolist(), decoder)
    return ClipFrames(
        frames=frames if len(numbers) == len(chosen) else frames[slots],
        timestamps_s=index.times_s[chosen].astype(np.float64),
        frame_indices=np.array(chosen, np.int64),
        fps=index.fps,
        total_num_frames=len(index.times_s),
        duration_s=index.duration_s,
        decoder=served,
        suspect="; ".join(dict.fromkeys([*index.defects, *troubles])) or None,
        offset_s=index.offset_s,
        start_s=start_s,
        end_s=end_s,
    )


def _frames(
    path: Path, index: FrameIndex, numbers: list[int], decoder: Decoder
) -> tuple[Served, NDArray[np.uint8], list[str]]:
    """Return which decoder has served, its frames, and what was wrong with them."""
    if decoder == "decord":
        frames = decord_frames(path, index, numbers)
        if frames is None:
            reason = unfit(index) or "it cannot read the file"
            problem = f"{path} is not to be read with decord: {reason}"
            raise VideoError("decoder_unfit", problem, "read it with PyAV: leave the decoder auto")
        return "decord", frames, []
    try:
        return "pyav", *pyav_frames(path, index, numbers)
    except VideoError as error:
        if decoder == "auto" and error.reason == "decode_failed":
            frames = decord_frames(path, index, numbers)
            if frames is not None:
                return "decord", frames, []
        raise


def _check_size(path: Path, index: FrameIndex, num_frames: int) -> None:
    size_bytes = num_frames * index.picture_bytes
    if size_bytes > MAX_CLIP_BYTES:
        width, height = index.size
        raise VideoError(
            "too_large",
            f"{path}: {num_frames} frames of {width} x {height} take {format_bytes(size_bytes)}",
            f"lower --max-frames: one clip may take {format_bytes(MAX_CLIP_BYTES)}",
        )


def thumbnail(frames: NDArray[np.uint8]) -> bytes:
    """Return the middle one of ``frames`` [T, H, W, 3] as a JPEG of at most 256 pixels a side."""
    from PIL import Image

    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
