"""What a container says of a video, read with PyAV: its stream, and when each frame is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.video.colours import are_wide, unknown_matrix
from cogcache.video.container import (
    OpenVideo,
    announced_s,
    check_memory,
    check_size,
    damage,
    first_error,
    open_video,
    picture_streams,
)
from cogcache.video.display import Display, display_of
from cogcache.video.earlier_reader import Change, Found, change_of
from cogcache.video.file_state import state_of
from cogcache.video.last_read import Last
from cogcache.video.packets import HIDDEN, NONE, SECOND_FIELD, SHOWN, Packets, PacketTable

if TYPE_CHECKING:
    from av.video.stream import VideoStream

MAX_HELD_S = 3600.0
"""Seconds that a picture stands still at most; what is longer is a jump in the time stamps."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameIndex:
    """When each frame of a video begins, and what a decoder has to know to find it."""

    times_s: NDArray[np.float32]
    """Start of each frame from the first one's, in the order they are shown. Shape [N]."""
    packets: PacketTable
    """Which packet holds which frame."""
    fps: float
    """Frames a second, on average."""
    duration_s: float
    """As announced; else the end of the last frame."""
    offset_s: float
    """The time that a player shows at the first frame."""
    shown_s: tuple[tuple[float, float], ...]
    """From when to when frames are shown, from the first one's start; gaps are jumps."""
    display: Display
    codec: str
    """As libav names it."""
    container: str
    """Names of the container's format, as libav has them."""
    brand: str
    """The main one of an MP4; "" elsewhere."""
    has_false_keys: bool
    """Whether some packets are marked as key frames and are none in full: frames that follow are
    not whole, or are shown before them and need what came earlier (an open group of pictures)."""
    has_recovery_points: bool
    """Whether some entries are pictures of H.264 behind which pictures of before are still used."""
    has_fields: bool
    """Whether some frames come as two fields by themselves."""
    is_interlaced: bool
    """Whether the two fields of a frame show two moments."""
    has_wide_colours: bool
    """Whether some readers turn its colours into others, those of BT.709."""
    num_hidden: int
    """Frames that an edit list hides or leaves out."""
    num_tracks: int
    """Streams of moving pictures."""
    has_cover_first: bool
    """Whether a picture that does not move comes before the stream that is shown."""
    has_sound: bool
    defects: tuple[str, ...]
    """What is wrong with the file as far as can be seen without decoding it."""
    change: Change | None
    """What an earlier reader made of it that is not what is shown; None: the same."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in square pixels, before the picture is turned."""
        return self.display.size

    @property
    def by_number(self) -> bool:
        """Whether frames can be found by their numbers; if not, only by counting from the first."""
        return self.packets.numbers is not None

    @property
    def begins_whole(self) -> bool:
        """Whether the first frame can be decoded: films cut elsewhere begin in the middle."""
        return int(self.packets.entry_numbers[0]) == 0

    @property
    def reading(self) -> dict[str, Any]:
        """What is to be remembered of the video, as values of JSON."""
        return {
            "offset_s": self.offset_s,
            "shown_s": [[begin_s, end_s] for begin_s, end_s in self.shown_s],
            "since_s": None if self.change is None else self.change.since_s,
            "reason": "" if self.change is None else self.change.reason,
        }

    @property
    def end_s(self) -> float:
        """When the last frame ends."""
        return self.shown_s[-1][1]

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
        packets = Packets(video)
        check_memory(video.logs)  # else a sound file would be put down as damaged, clip after clip
        if not packets.count(SHOWN):
            hint = "a file cut off while it was written has a head and no frames"
            raise VideoError("no_frames", f"{path} has a picture stream without frames", hint)
        return _index(path, video, packets)


def _index(path: Path, video: OpenVideo, packets: Packets) -> FrameIndex:
    container, stream = video.container, video.stream
    stamps, first = _stamps(video, packets), packets.first_frame
    times = _times(video, packets, stamps)
    defects = tuple(_defects(path, video, packets))
    shown = _shown(times, packets, float(stream.time_base or 0))
    display = display_of(stream, first)
    check_size(path, *display.size)
    found = Found(
        times_s=times.times_s,
        fps=times.fps,
        display=display,
        has_fields=packets.has_fields,
        num_tracks=len(picture_streams(container)),
        is_sound=not packets.num_false_keys and not defects,
    )
    return FrameIndex(
        times_s=times.times_s,
        packets=packets.table(
            by_time=times.by_stamp, in_order=not stream.codec_context.has_b_frames
        ),
        fps=times.fps,
        # Of films that were joined only the last, or the first, is announced.
        duration_s=(0 if packets.is_spliced else announced_s(video)) or shown[-1][1],
        offset_s=_offset_s(video, stamps),
        shown_s=shown,
        display=found.display,
        codec=stream.codec_context.name,
        container=container.format.name,
        brand=container.metadata.get("major_brand", "").strip(),
        has_false_keys=bool(packets.num_false_keys),
        has_recovery_points=len(packets.keys) > len(packets.idr),
        has_fields=found.has_fields,
        is_interlaced=bool(first is not None and first.interlaced_frame),
        has_wide_colours=first is not None and are_wide(first),
        num_hidden=packets.count(HIDDEN) + max(_announced(video) - len(packets.kinds), 0),
        num_tracks=found.num_tracks,
        has_cover_first=any(each.index < stream.index for each in container.streams.video),
        has_sound=bool(container.streams.audio),
        defects=(*defects, *_odd_colours(packets)),
        change=change_of(video, packets, found),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """When frames begin."""

    times_s: NDArray[np.float32]
    fps: float
    by_stamp: bool
    """Whether frames bear their times; if not, they are counted."""


def _stamps(video: OpenVideo, packets: Packets) -> NDArray[np.int64]:
    """Return the time stamps of the frames that are shown, in the order of the file.

    Of AVI, in the order in which they are shown.
    """
    is_shown = np.asarray(packets.kinds, np.int8) == SHOWN
    dts: NDArray[np.int64] = np.asarray(packets.dts, np.int64)[is_shown]
    if video.container.format.name == "avi" and (dts != NONE).all():
        return _in_turn(dts, packets.delay)
    shown: NDArray[np.int64] = np.asarray(packets.pts, np.int64)[is_shown]
    return shown


def _in_turn(dts: NDArray[np.int64], delay: int) -> NDArray[np.int64]:
    """Return when frames are shown of which only their places in the file are told.

    AVI counts packets, and leaves numbers out where no new picture is shown. libav makes time
    stamps of that which are wrong for H.264. A player shows a frame when the decoder gives it.

    Args:
        dts: the places of the packets, ascending. Shape [N].
        delay: packets that the decoder takes before it gives the first frame.
    """
    step = max(int(np.diff(dts).min()), 1) if len(dts) > 1 else 1
    delay = min(delay, len(dts) - 1)
    stamps: NDArray[np.int64] = np.append(dts, dts[-1] + step * np.arange(1, delay + 1))[delay:]
    return stamps


def _times(video: OpenVideo, packets: Packets, stamps: NDArray[np.int64]) -> _Times:
    unique = np.unique(stamps[stamps != NONE])
    # Containers count the two fields of a frame as two pictures, where each has its packet.
    counted_twice = packets.count(SECOND_FIELD) > 0
    fps = (_measured_rate if counted_twice else _frame_rate)(video.stream, unique)
    # AVI numbers its packets in the order of decoding, whatever it calls those numbers.
    counted = video.container.format.name == "avi"
    if (stamps == NONE).any() or (counted and _told_by_rate(packets, unique)):
        return _Times((np.arange(len(stamps)) / fps).astype(np.float32), fps, by_stamp=False)
    times_s = (np.sort(stamps) - stamps.min()) * float(video.stream.time_base or 0)
    return _Times(times_s.astype(np.float32), fps, by_stamp=not counted)


def _told_by_rate(packets: Packets, stamps: NDArray[np.int64]) -> bool:
    """Say whether the frames of an AVI come at its rate, and libav cannot tell them apart.

    Which of two ways their times are reckoned in then shows in their last digit, and in the key.
    """
    is_even = len(np.unique(np.diff(stamps))) < 2
    shown = np.asarray(packets.pts, np.int64)[np.asarray(packets.kinds, np.int8) == SHOWN]
    return is_even and ((shown == NONE).any() or len(np.unique(shown)) != len(shown))


def _offset_s(video: OpenVideo, stamps: NDArray[np.int64]) -> float:
    """Return the time of the first frame from the file's begin: of its first stream, that is."""
    begin_s = (video.container.start_time or 0) / 1e6
    if video.container.start_time is None or (stamps == NONE).any():
        return 0.0
    return max(round(float(stamps.min() * (video.stream.time_base or 0)) - begin_s, 6), 0.0)


def _shown(times: _Times, packets: Packets, unit_s: float) -> tuple[tuple[float, float], ...]:
    """Return from when to when frames are shown, each until the next but for `MAX_HELD_S`."""
    kinds = np.asarray(packets.kinds, np.int8)
    last = int(np.argmax(np.where(kinds == SHOWN, np.asarray(packets.pts, np.int64), NONE)))
    held_s = max(packets.durations[last] * unit_s, 1 / times.fps)
    starts = times.times_s
    jumps = np.flatnonzero(np.diff(starts.astype(np.float64)) > MAX_HELD_S)
    # As Python's numbers: a clip's end is told in them. Of these few frames alone: a list of all
    # takes 32 bytes a frame, and films have many.
    begins = [float(starts[0]), *(float(starts[jump + 1]) for jump in jumps)]
    end_s = float(starts[-1]) + min(held_s, MAX_HELD_S)
    ends = [*(float(starts[jump]) + MAX_HELD_S for jump in jumps), end_s]
    return tuple(zip(begins, ends, strict=True))


def _defects(path: Path, video: OpenVideo, packets: Packets) -> Iterator[str]:
    told, there = _announced(video), len(packets.kinds)
    # An edit list hides frames, or leaves out what no shown frame needs.
    if told > there and told > (there := _num_frames_unedited(path)):
        yield f"{told} frames are announced, {there} are there"
    if packets.num_incomplete:
        yield f"incomplete packets: {packets.num_incomplete}"
    if packets.stopped_by:
        yield f"reading stopped early: {packets.stopped_by}"
    yield from first_error(video.logs)


def _odd_colours(packets: Packets) -> Iterator[str]:
    matrix = None if packets.first_frame is None else unknown_matrix(packets.first_frame)
    if matrix is not None:
        yield f"colours are coded in an unknown way ({matrix}), and may be shown as others"


def _announced(video: OpenVideo) -> int:
    """Return how many frames an MP4 says that it has; elsewhere that is a guess."""
    return video.stream.frames if "mp4" in video.container.format.name else 0


def _num_frames_unedited(path: Path) -> int:
    """Return how many frames an MP4 holds, whatever its edit list makes of them."""
    count = 0
    with open_video(path, {"ignore_editlist": "1"}) as video, damage():
        for packet in video.container.demux(video.stream):
            count += bool(packet.size)
    return count


def _frame_rate(stream: VideoStream, stamps: NDArray[np.int64]) -> float:
    """Return the average rate; guessed where the file does not say."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return float(rate)
    return _measured_rate(stream, stamps)


def _measured_rate(stream: VideoStream, stamps: NDArray[np.int64]) -> float:
    span_s = float((stamps[-1:] - stamps[:1]).sum() * (stream.time_base or 0))
    return (len(stamps) - 1) / span_s if span_s > 0 else 25.0
