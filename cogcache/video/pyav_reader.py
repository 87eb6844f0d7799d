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
from cogcache.video.colours import with_known_matrix
from cogcache.video.container import REFETCH, Logs, check_memory, damage, first_error, open_video
from cogcache.video.frame_index import FrameIndex

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.video.stream import VideoStream

EXACT_SEEK = frozenset({"mp4", "matroska", "gif"})
"""Containers that find a frame by its time; in others that is a guess, best made once a clip."""
BYTE_SEEK = frozenset({"mpegts", "mpeg"})
"""Containers that can be entered at any byte, and whose times may begin anew on the way."""
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
    slots = {number: slot for slot, number in enumerate(numbers)}
    missing = set(slots)
    with ExitStack() as stack:
        reading = _Reading(path, index, stack)
        for number, frame in reading.find(sorted(slots)):
            missing.discard(number)
            frames[slots[number]] = _rgb(path, frame, width, height)
        check_memory(line for logs in reading.logs for line in logs)
        if missing:
            said = next(reading.errors(), "the decoder gives no picture")
            raise VideoError("decode_failed", f"{path} cannot be decoded: {said}", REFETCH)
    return index.display.turned(frames), list(reading.troubles())


def _rgb(path: Path, frame: VideoFrame, width: int, height: int) -> Frames:
    """Return the colours of a frame. Shape [height, width, 3]."""
    with damage() as found:
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
        return rgb.astype(np.uint8, copy=False)
    problem = f"{path}: its colours ({frame.format.name}) cannot be turned into RGB: {found[0]}"
    raise VideoError("decode_failed", problem, REFETCH)


def frames_from(path: Path, index: FrameIndex, first: int) -> Iterator[Found]:
    """Yield the numbers and pictures of all frames from `first` on, as they are decoded.

    Frames that cannot be decoded are passed over.
    """
    with ExitStack() as stack:
        yield from _Reading(path, index, stack).from_number(first)


class _Reading:
    """A search for frames in one file."""

    def __init__(self, path: Path, index: FrameIndex, stack: ExitStack) -> None:
        self.path, self.index, self.stack = path, index, stack
        self.table = index.packets
        self.names = frozenset(index.container.split(","))
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
        """Yield each wanted number with its frame or, failing that, its neighbour.

        A number may be yielded again: the later frame is the better one.
        """
        for entry, group in self._by_entry(wanted):
            # A stream that only freshens its pictures bit by bit may need an earlier entry.
            for first in dict.fromkeys((entry, max(entry - 3, 0))):
                missed = yield from self._collect(group, self._decoded(first))
                self.stood_in = self.stood_in - set(group) | missed
                if not missed:
                    break

    def from_number(self, wanted: int) -> Iterator[Found]:
        """Yield all frames from a number on."""
        entry = self.table.entry_before(wanted)
        for start in dict.fromkeys((entry, max(entry - 3, 0), 0)):
            frames = self._decoded(start)
            first = next(frames, None)
            if first is not None and (first[0] <= wanted or start == 0):
                yield from (found for found in chain([first], frames) if found[0] >= wanted)
                return

    def _by_entry(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """Return the wanted numbers with the entry to begin at."""
        exact = bool(self.names & EXACT_SEEK)
        groups: dict[int, list[int]] = {}
        for number in wanted:
            entry = self.table.entry_before(number)
            first = entry if exact else next(iter(groups), entry)
            groups.setdefault(first, []).append(number)
        return list(groups.items())

    def _collect(
        self, wanted: Sequence[int], frames: Iterator[Found]
    ) -> Generator[Found, None, set[int]]:
        """Yield each wanted number with a frame; return those whose own did not come."""
        todo, missed = deque(wanted), set[int]()
        before: VideoFrame | None = None
        for number, frame in frames:
            while todo and number >= todo[0]:
                exact = number == todo[0]
                missed |= set() if exact else {todo[0]}
                yield todo.popleft(), frame if exact else before or frame
            if not todo:
                return missed
            before = frame
        if before is not None:
            yield from ((number, before) for number in todo)
        return missed | set(todo)

    def _decoded(self, entry: int) -> Iterator[Found]:
        """Yield the frames from an entry on, and maybe some before."""
        numbers = self.table.numbers
        count = 0
        for place, packet in self._placed(entry):
            if packet.size and numbers is not None:
                # The decoder hands a packet's time on to the frame that it becomes.
                packet.pts = int(numbers[place]) if place < len(numbers) else -1
            for frame in self._decode(packet):
                number = count if numbers is None else frame.pts
                count += 1
                self.num_damaged += frame.is_corrupt
                if number is not None and number >= 0:
                    yield number, frame

    def _placed(self, entry: int) -> Iterator[tuple[int, Packet[VideoStream]]]:
        """Yield packets from an entry or from before it on, each with its place in the file."""
        for start in dict.fromkeys((entry, max(entry - 3, 0), 0)):
            packets = self._packets_from(start)
            if start == 0:
                yield from self._counted(0, packets)
                return
            for packet in packets:
                place = self.table.place_of(packet)
                if place is not None and place > self.table.entries[entry]:
                    break  # a file that is searched by guessing: it was entered too late
                if place is not None:
                    yield from self._counted(place, chain([packet], packets))
                    return

    def _counted(
        self, place: int, packets: Iterator[Packet[VideoStream]]
    ) -> Iterator[tuple[int, Packet[VideoStream]]]:
        known = self.table.places
        for packet in packets:
            # Behind damage a reader that came by another way may pass over other packets.
            off = place < len(known) and packet.pos is not None and known[place] >= 0
            if packet.size and off and known[place] != packet.pos:
                found = self.table.place_of(packet)
                place = place if found is None else found
            yield place, packet
            place += bool(packet.size)

    def _packets_from(self, entry: int) -> Iterator[Packet[VideoStream]]:
        if entry == 0:
            self._open()
        else:
            self.has_sought = True
            self._seek(entry)
        with damage():
            yield from self.video.container.demux(self.video.stream)

    def _seek(self, entry: int) -> None:
        byte = int(self.table.places[self.table.entries[entry]])
        # Where a file cannot be searched, reading goes on from where it is: packets tell.
        with damage():
            if self.names & BYTE_SEEK and byte >= 0:
                self.video.container.seek(byte, unsupported_byte_offset=True)
            else:
                stamp = int(self.table.entry_stamps[entry])
                self.video.container.seek(stamp, stream=self.video.stream)

    def _decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        with damage():
            return [with_known_matrix(frame) for frame in self.video.stream.decode(packet)]
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
