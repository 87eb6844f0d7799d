"""What a container says of a video, read with PyAV: its stream, and when each frame begins."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.video.container import (
    OpenVideo,
    announced_s,
    check_memory,
    damage,
    first_error,
    open_video,
)
from cogcache.video.file_state import state_of
from cogcache.video.last_read import Last

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.video.stream import VideoStream

SLICE, IDR_SLICE = 1, 5
I_SLICE = 2
NAL_TYPE = 0b11111


def is_entry(packet: bytes, extradata: bytes | None) -> bool:
    """Tell whether decoding can begin at a packet that its container marks as a key frame.

    A stream that freshens its pictures bit by bit marks packets as such that hold no whole
    picture; decoders that begin there show rubbish for a while.

    Args:
        packet: one frame, in the length-prefixed form of MP4, Matroska and FLV.
        extradata: the stream's ``avcC``; of a stream in another form nothing is known, and the
            container is believed.
    """
    if not extradata or extradata[0] != 1:
        return True
    length_size, at = (extradata[4] & 3) + 1, 0
    while at + length_size < len(packet):
        start = at + length_size
        kind = packet[start] & NAL_TYPE
        if kind in {SLICE, IDR_SLICE}:
            return kind == IDR_SLICE or _slice_type(packet[start + 1 : start + 17]) == I_SLICE
        at = start + int.from_bytes(packet[at:start], "big")
    return True


def _slice_type(head: bytes) -> int | None:
    """Return the second number of a slice's head: two exp-Golomb codes without a length."""
    bits = "".join(f"{byte:08b}" for byte in head)
    at, value = 0, -1
    for _ in range(2):
        one = bits.find("1", at)
        end = 2 * one - at + 1
        if one < 0 or end > len(bits):
            return None
        value, at = int(bits[one:end], 2) - 1, end
    return value % 5  # 5 to 9 are 0 to 4 for a picture all of one type


Turn = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
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
    """Whether some packets are marked as key frames and are none in full: frames that follow are
    not whole, or are shown before them and need what came earlier (an open group of pictures)."""
    defects: tuple[str, ...]
    """What is wrong with the file as far as can be seen without decoding it."""

    @property
    def picture_bytes(self) -> int:
        """What one picture takes, decoded to RGB."""
        width, height = self.size
        return width * height * 3


_LAST: Last[FrameIndex] = Last()


def index_frames(path: Path) -> FrameIndex:
    """Return the times of all frames; goes through the file's packets, decoding none.

    The clips of one video are read one after the other, so the last index is kept.

    Raises:
        VideoError: the file cannot be opened, or holds no frame (``no_frames``).
    """
    return _LAST.of(state_of(path), lambda: _index_frames(path))


def _index_frames(path: Path) -> FrameIndex:
    with open_video(path) as video:
        packets = _Packets()
        packets.collect(video)
        check_memory(video.logs)  # else a sound file would be put down as damaged, clip after clip
        if not packets.count:
            hint = "a file cut off while it was written has a head and no frames"
            raise VideoError("no_frames", f"{path} has a picture stream without frames", hint)
        return packets.index(path, video)


class _Packets:
    """The packets of a stream that each hold one frame to show."""

    def __init__(self) -> None:
        self.count = 0
        self.num_hidden = 0
        self.num_incomplete = 0
        self.num_false_keys = 0
        self.last_key: int | None = None
        self.stopped_by = ""
        self.first_frame: VideoFrame | None = None
        self.stamps, self.keys = array("q"), array("q")

    def collect(self, video: OpenVideo) -> None:
        with damage() as found:
            for packet in video.container.demux(video.stream):
                if self.first_frame is None:
                    self.first_frame = _decode_one(video.stream, packet)
                if packet.size:
                    self.add(packet)
        for error in found:
            self.stopped_by = getattr(error, "strerror", None) or str(error)

    def add(self, packet: Packet[VideoStream]) -> None:
        if packet.is_keyframe and packet.pts is not None:
            self.add_key(packet, packet.pts)
            self.last_key = packet.pts
        elif self.last_key is not None and packet.pts is not None:
            self.num_false_keys += packet.pts < self.last_key
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

    def index(self, path: Path, video: OpenVideo) -> FrameIndex:
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
            defects=tuple(self.defects(path, video)),
        )

    def defects(self, path: Path, video: OpenVideo) -> Iterator[str]:
        # Elsewhere than in MP4 the number announced is a guess or counts repeats.
        told = video.stream.frames if "mp4" in video.container.format.name else 0
        # An edit list hides frames, or leaves out what no shown frame needs.
        if told > self.count + self.num_hidden and told > (there := _num_frames_unedited(path)):
            yield f"{told} frames are announced, {there} are there"
        if self.num_incomplete:
            yield f"incomplete packets: {self.num_incomplete}"
        if self.stopped_by:
            yield f"reading stopped early: {self.stopped_by}"
        yield from first_error(video.logs)


def _num_frames_unedited(path: Path) -> int:
    """Return how many frames an MP4 holds, whatever its edit list makes of them."""
    count = 0
    with open_video(path, {"ignore_editlist": "1"}) as video, damage():
        for packet in video.container.demux(video.stream):
            count += bool(packet.size)
    return count


def _decode_one(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    """Return the first frame that a packet gives: PyAV tells of turning only there."""
    with damage():
        return next(iter(stream.decode(packet)), None)
    return None


def _turn(frame: VideoFrame | None) -> Turn | None:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame is not None else None
    if matrix is None:
        return None
    numbers = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    a, b, _, c, d = (round(each / 65_536) for each in numbers)
    upright, lying = a * d and not (b or c), b * c and not (a or d)
    return (a, b, c, d) if (upright or lying) and (a, b, c, d) != (1, 0, 0, 1) else None


def _frame_rate(stream: VideoStream, stamps: NDArray[np.int64]) -> float:
    """Return the average rate; guessed where the file does not say."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return float(rate)
    span_s = float((stamps[-1:] - stamps[:1]).sum() * (stream.time_base or 0))
    return (len(stamps) - 1) / span_s if span_s > 0 else 25.0
