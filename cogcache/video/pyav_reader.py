"""Frames of a video by their numbers, read with PyAV: whatever libav can open."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.video.container import REFETCH, Logs, check_memory, damage, first_error, open_video
from cogcache.video.frame_index import FrameIndex, Turn

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.video.stream import VideoStream

EXACT_SEEK = ("mp4", "matroska", "gif")
"""Containers that find a frame by its time; in others that is a guess, best made once a clip."""
Frames = NDArray[np.uint8]
Found = tuple[int, "VideoFrame"]


def pyav_frames(path: Path, index: FrameIndex, numbers: Sequence[int]) -> tuple[Frames, list[str]]:
    """Return the frames ``numbers``, ascending, and what was wrong with them.

    A frame that cannot be decoded is stood in for by the one before it. Only these frames are
    held in memory. Shape [len(numbers), H, W, 3].

    Raises:
        VideoError: none of the frames can be decoded (``decode_failed``).
        MemoryError: there is too little memory for a picture.
    """
    width, height = index.size
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    slots = {int(index.positions[number]): slot for slot, number in enumerate(numbers)}
    missing = set(slots)
    with ExitStack() as stack:
        reading = _Reading(path, index, stack)
        for position, frame in reading.find(sorted(slots)):
            missing.discard(position)
            rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
            frames[slots[position]] = rgb
        check_memory(line for logs in reading.logs for line in logs)
        if missing:
            said = next(reading.errors(), "the decoder gives no picture")
            raise VideoError("decode_failed", f"{path} cannot be decoded: {said}", REFETCH)
    return turned(frames, index.turn), list(reading.troubles())


def frames_from(path: Path, index: FrameIndex, first: int) -> Iterator[Found]:
    """Yield the numbers and pictures of all frames from `first` on, as they are decoded.

    Frames that cannot be decoded are passed over.
    """
    with ExitStack() as stack:
        for position, frame in _Reading(path, index, stack).from_position(
            int(index.positions[first])
        ):
            number = int(np.searchsorted(index.positions, position))
            if number < len(index.positions) and index.positions[number] == position:
                yield number, frame


def turned(frames: Frames, turn: Turn | None) -> Frames:
    """Return frames as a player shows them. ``turn`` is a display matrix's (a, b, c, d)."""
    if turn is None:
        return frames
    a, b, c, d = turn
    if a and d:
        return np.ascontiguousarray(frames[:, ::d, ::a])
    return np.ascontiguousarray(frames.swapaxes(1, 2)[:, ::b, ::c])


class _Reading:
    """A search for frames in one file."""

    def __init__(self, path: Path, index: FrameIndex, stack: ExitStack) -> None:
        self.path, self.index, self.stack = path, index, stack
        self.logs: list[Logs] = []
        self._open()
        self.has_sought = False
        self.stood_in: set[int] = set()
        self.num_damaged = 0

    def _open(self) -> None:
        self.stack.close()
        self.video = self.stack.enter_context(open_video(self.path))
        self.logs.append(self.video.logs)

    def find(self, wanted: list[int]) -> Iterator[Found]:
        """Yield each wanted position with its frame or, failing that, its neighbour.

        A position may be yielded again: the later frame is the better one.
        """
        for key, group in self._by_key(wanted):
            # A stream that only freshens its pictures bit by bit, and a container that is
            # searched by guessing, may begin too late: try again from an earlier key frame.
            for first in dict.fromkeys((key, max(key - 3, 0))):
                self._go_to(first)
                missed = yield from self._collect(group)
                self.stood_in = self.stood_in - set(group) | missed
                if not missed:
                    break

    def from_position(self, wanted: int) -> Iterator[Found]:
        """Yield all frames from a position on."""
        key = max(int(np.searchsorted(self.index.keys, wanted, side="right")) - 1, 0)
        for start in dict.fromkeys((key, max(key - 3, 0), 0)):
            self._go_to(start)
            frames = self._decoded()
            first = next(frames, None)
            if first is not None and (first[0] <= wanted or start == 0):
                yield from (found for found in chain([first], frames) if found[0] >= wanted)
                return

    def _by_key(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """Return the wanted positions with the number of the key frame to begin at."""
        exact = any(name in self.index.container.split(",") for name in EXACT_SEEK)
        groups: dict[int, list[int]] = {}
        for position in wanted:
            key = int(np.searchsorted(self.index.keys, position, side="right")) - 1
            first_key = key if exact else next(iter(groups), key)
            groups.setdefault(max(first_key, 0), []).append(position)
        return list(groups.items())

    def _go_to(self, key: int) -> None:
        if key == 0:
            self._open()
            return
        self.has_sought = True
        # Where a file cannot be searched, reading goes on from where it is: never too late,
        # as positions are asked for in ascending order.
        with damage():
            self.video.container.seek(int(self.index.keys[key]), stream=self.video.stream)

    def _collect(self, wanted: Sequence[int]) -> Generator[Found, None, set[int]]:
        """Yield each wanted position with a frame; return those whose own did not come."""
        todo, missed = deque(wanted), set[int]()
        before: VideoFrame | None = None
        for position, frame in self._decoded():
            while todo and position >= todo[0]:
                exact = position == todo[0]
                missed |= set() if exact else {todo[0]}
                yield todo.popleft(), frame if exact else before or frame
            if not todo:
                return missed
            before = frame
        if before is not None:
            yield from ((position, before) for position in todo)
        return missed | set(todo)

    def _decoded(self) -> Iterator[Found]:
        count = 0
        for packet in self._packets():
            for frame in self._decode(packet):
                position = frame.pts if self.index.by_timestamp else count
                count += 1
                self.num_damaged += frame.is_corrupt
                if position is not None:
                    yield position, frame

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        with damage():
            yield from self.video.container.demux(self.video.stream)

    def _decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        with damage():
            return self.video.stream.decode(packet)
        self.num_damaged += 1
        return []

    def troubles(self) -> Iterator[str]:
        """Yield what was not as it should be, for a reader."""
        if self.stood_in:
            yield f"chosen frames lost, with a neighbour in their place: {len(self.stood_in)}"
        if self.num_damaged:
            yield f"damaged frames: {self.num_damaged}"
        # A decoder that begins in the middle of a sound file reports errors too.
        if self.stood_in or self.num_damaged or not self.has_sought:
            yield from self.errors()

    def errors(self) -> Iterator[str]:
        """Yield what libav reported first, if anything."""
        yield from first_error([line for logs in self.logs for line in logs])
