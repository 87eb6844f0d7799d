"""What a container says of a video, read with PyAV: its stream, and when each frame begins."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.h264 import is_entry
from cogcache.inputs import check_file, unreadable

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MAX_SIDE = 16_384
"""Pixels: what no film has, and a file made to fill the memory may."""
NOT_VIDEOS = frozenset({"concat", "dash", "hls", "image2", "sdp", "tty"})
"""Formats that libav plays: lists of other files, and texts and pictures as if they moved."""
Turn = tuple[int, int, int, int]
Logs = list[tuple[int, str, str]]
REFETCH = "try to play it; if it does not play, fetch it anew"


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """When each frame of a video begins, and what a decoder has to know to find it."""

    times_s: NDArray[np.float32]
    """Start of each frame from the first one's, in the order they are shown. Shape [N]."""
    positions: NDArray[np.int64]
    """Time stamps in the file's own unit; plain numbers where the file has none. Shape [N]."""
    keys: NDArray[np.int64]
    """Positions of the frames at which decoding can begin, ascending."""
    by_timestamp: bool
    """Whether decoded frames bear their position; if not, they are counted."""
    fps: float
    """Frames a second, on average."""
    duration_s: float
    """As announced; else the end of the last frame."""
    size: tuple[int, int]
    """Width and height of the picture as coded, before it is turned."""
    turn: Turn | None
    """How a player turns or mirrors the picture: (a, b, c, d) of the file's display matrix, by
    which the pixel at (x, y) is shown at (ax + cy, bx + dy). None: not at all."""
    container: str
    """Names of the container's format, as libav has them."""
    has_false_keys: bool
    """Whether some packets are marked as key frames and are none."""
    defects: tuple[str, ...]
    """What is wrong with the file as far as can be seen without decoding it."""


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """A file that is open, its picture stream, and what libav has complained of so far."""

    container: InputContainer
    stream: VideoStream
    logs: Logs


@contextmanager
def open_video(path: Path) -> Iterator[OpenVideo]:
    """Open the file and its picture stream.

    Raises:
        VideoError: ``missing``, ``unreadable``, ``empty_file``, ``not_a_video``,
            ``no_video_stream`` or ``too_large``.
    """
    check_file(path)
    with _logged_errors() as logs, _open_container(path, logs) as container:
        yield OpenVideo(container, _picture_stream(path, container), logs)


def reading_errors() -> tuple[type[Exception], ...]:
    """Return what PyAV raises at files that are not sound."""
    import av

    # IndexError: of a damaged head whose streams are numbered past their count.
    return (av.FFmpegError, OSError, ValueError, IndexError)


def _open_container(path: Path, logs: Logs) -> InputContainer:
    import av

    try:
        # An absolute path: "http:x.mp4" would be taken for an address.
        return av.open(
            os.path.abspath(path),  # noqa: PTH100
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except PermissionError as error:
        raise unreadable(path, error) from error
    except reading_errors() as error:
        # Not str(error): PyAV adds what was last reported, if of another file.
        said = next(first_error(logs), getattr(error, "strerror", None) or type(error).__name__)
        problem = f"{path} is no video that can be opened: {said}"
        raise VideoError("not_a_video", problem, REFETCH) from error


def _picture_stream(path: Path, container: InputContainer) -> VideoStream:
    import av
    from av.stream import Disposition

    name = container.format.name
    if name in NOT_VIDEOS or name.endswith("_pipe"):
        problem = f"{path} is no video but of the format {name!r}"
        raise VideoError("not_a_video", problem, "name video files")
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
        problem = f"{path} has no picture stream, only: {kinds}"
        raise VideoError("no_video_stream", problem, "leave it out, or name another file")
    if stream.codec_context is None:
        problem = f"{path}: no decoder knows how its pictures are coded"
        raise VideoError("decode_failed", problem, REFETCH)
    if max(stream.width, stream.height) > MAX_SIDE:
        problem = f"{path} has pictures of {stream.width} x {stream.height} pixels"
        raise VideoError("too_large", problem, f"sides of up to {MAX_SIDE} pixels are read")
    stream.thread_count = 1
    return stream


def index_frames(path: Path) -> FrameIndex:
    """Return the times of all frames; goes through the file's packets, decoding none.

    The clips of one video are read one after the other, so the last few indexes are kept.

    Raises:
        VideoError: the file cannot be opened, or holds no frame (``no_frames``).
    """
    facts = check_file(path)
    return _index_frames(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4)
def _index_frames(path: Path, _size_bytes: int, _mtime_ns: int) -> FrameIndex:
    with open_video(path) as video:
        packets = _Packets()
        packets.collect(video)
        if not packets.count:
            hint = "a file cut off while it was written has a head and no frames"
            raise VideoError("no_frames", f"{path} has a picture stream without frames", hint)
        return packets.index(video)


class _Packets:
    """The packets of a stream that each hold one frame to show."""

    def __init__(self) -> None:
        self.count = 0
        self.num_hidden = 0
        self.num_incomplete = 0
        self.num_false_keys = 0
        self.stopped_by = ""
        self.first_frame: VideoFrame | None = None
        self.stamps, self.keys = array("q"), array("q")

    def collect(self, video: OpenVideo) -> None:
        try:
            for packet in video.container.demux(video.stream):
                if self.first_frame is None:
                    self.first_frame = _decode_one(video.stream, packet)
                if packet.size:
                    self.add(packet)
        except reading_errors() as error:
            self.stopped_by = getattr(error, "strerror", None) or str(error)

    def add(self, packet: Packet[VideoStream]) -> None:
        if packet.is_keyframe and packet.pts is not None:
            self.add_key(packet, packet.pts)
        if packet.is_discard:
            self.num_hidden += 1
            return
        self.count += 1
        self.num_incomplete += packet.is_corrupt
        if packet.pts is not None:
            self.stamps.append(packet.pts)

    def add_key(self, packet: Packet[VideoStream], position: int) -> None:
        codec = packet.stream.codec_context
        if codec.name == "h264" and not is_entry(bytes(packet), codec.extradata):
            self.num_false_keys += 1
        else:
            self.keys.append(position)

    def index(self, video: OpenVideo) -> FrameIndex:
        container, stream = video.container, video.stream
        stamps = np.unique(np.array(self.stamps, np.int64))
        whole = len(stamps) == self.count
        # AVI numbers its packets in the order of decoding, whatever it calls those numbers.
        by_timestamp = whole and container.format.name != "avi"
        fps = _frame_rate(stream, stamps)
        times_s = (stamps - stamps[:1]) * float(stream.time_base or 0)
        if not whole:
            times_s = np.arange(self.count) / fps
        counted = np.arange(self.count, dtype=np.int64)
        return FrameIndex(
            times_s=times_s.astype(np.float32),
            positions=stamps if by_timestamp else counted,
            keys=np.unique(np.array(self.keys or [0], np.int64)) if by_timestamp else counted[:1],
            by_timestamp=by_timestamp,
            fps=fps,
            duration_s=announced_s(video) or float(times_s[-1]) + 1 / fps,
            size=(stream.width, stream.height),
            turn=_turn(self.first_frame),
            container=container.format.name,
            has_false_keys=bool(self.num_false_keys),
            defects=tuple(self.defects(video)),
        )

    def defects(self, video: OpenVideo) -> Iterator[str]:
        # Elsewhere than in MP4 the number announced is a guess or counts repeats.
        told = "mp4" in video.container.format.name and not self.num_hidden
        if told and video.stream.frames > self.count:
            yield f"{video.stream.frames} frames are announced, {self.count} are there"
        if self.num_incomplete:
            yield f"incomplete packets: {self.num_incomplete}"
        if self.stopped_by:
            yield f"reading stopped early: {self.stopped_by}"
        yield from first_error(video.logs)


def _decode_one(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    """Return the first frame that a packet gives: PyAV tells of turning only there."""
    try:
        return next(iter(stream.decode(packet)), None)
    except reading_errors():
        return None


def _turn(frame: VideoFrame | None) -> Turn | None:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame is not None else None
    if matrix is None:
        return None
    numbers = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    a, b, _, c, d = (round(each / 65_536) for each in numbers)
    upright, lying = a * d and not (b or c), b * c and not (a or d)
    return (a, b, c, d) if (upright or lying) and (a, b, c, d) != (1, 0, 0, 1) else None


def announced_s(video: OpenVideo) -> float:
    """Return how long the file says that its pictures run, in seconds; 0 if it does not say."""
    stream, time_base = video.stream, video.stream.time_base or 0
    if stream.duration:
        return float(stream.duration * time_base)
    duration_s = (video.container.duration or 0) / 1e6
    if {"matroska", "flv"} & set(video.container.format.name.split(",")):
        # These tell when the last frame ends, and the first may begin late.
        duration_s -= float((stream.start_time or 0) * time_base)
    return max(duration_s, 0.0)


def _frame_rate(stream: VideoStream, stamps: NDArray[np.int64]) -> float:
    """Return the average rate; guessed where the file does not say."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return float(rate)
    span_s = float((stamps[-1:] - stamps[:1]).sum() * (stream.time_base or 0))
    return (len(stamps) - 1) / span_s if span_s > 0 else 25.0


@contextmanager
def _logged_errors() -> Iterator[Logs]:
    """Collect what libav reports as an error in this thread: it often goes on all the same."""
    import av.logging

    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else one file's messages end up with the next
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def first_error(logs: Logs) -> Iterator[str]:
    """Yield what was reported first, if anything: the rest follows from it."""
    for _, name, text in logs[:1]:
        yield f"{name}: {text.strip()}"
