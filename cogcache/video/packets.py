"""The packets of a picture stream: which frame each holds, and where decoding can begin.

A frame is known by the packet that it comes in, not by its time: times may come twice, begin anew
where two films were joined, or be missing.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogcache.video import damage
from cogcache.video.coded_pictures import Coded, Pictures

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet
    from av.video.stream import VideoStream

    from cogcache.video import OpenVideo

SPLICED = ("mpegts", "mpeg", "flv")
"""Containers whose decoding times may begin anew on the way: they are joined by appending files.
Matroska is, too, and has no decoding times."""
BACK_S, AHEAD_S = 0.1, 10.0
"""Jumps of the decoding time beyond which a new film begins, as ffmpeg has them
(`-dts_delta_threshold`)."""
NONE = np.iinfo(np.int64).min
SHOWN, HIDDEN, SECOND_FIELD, NEVER_SHOWN = range(4)


@dataclass(frozen=True, slots=True)
class Joined:
    """Films that were joined by appending files, each with time stamps of its own."""

    places: tuple[int, ...]
    """Byte at which each film's first picture begins, ascending."""
    shifts_s: tuple[float, ...]
    """What is added to the time stamps of each film so that they go on."""

    def film_at(self, place: int | None, after: int) -> int:
        """Return which film a packet is of that is the first of its stream with other times.

        Args:
            place: byte at which it begins; None: not known.
            after: the film before.
        """
        later = range(after + 1, len(self.places))
        if place is None or not later:
            return min(after + 1, len(self.places) - 1)
        return min(later, key=lambda film: abs(self.places[film] - place))


@dataclass(frozen=True, slots=True, eq=False)
class PacketTable:
    """All packets of a stream in the order of the file, P in all."""

    numbers: NDArray[np.int32] | None
    """The frame that each packet holds, -1 for none; None: frames are only counted. Shape [P]."""
    places: NDArray[np.int64]
    """Byte at which each packet begins; negative where that is not known. Shape [P]."""
    sizes: NDArray[np.int32]
    """Bytes of each packet. Shape [P]."""
    dts: NDArray[np.int64]
    """Each packet's decoding time in the stream's unit, as the file has it. Shape [P]."""
    entries: NDArray[np.int64]
    """Packets at which decoding can begin, ascending. Shape [K]."""
    entry_numbers: NDArray[np.int64]
    """The first frame that is whole when decoding begins at an entry. Shape [K]."""
    entry_stamps: NDArray[np.int64]
    """The time stamp by which each entry is sought. Shape [K]."""
    joined: Joined | None
    """Films whose time stamps begin anew on the way; times then find nothing."""

    @property
    def is_spliced(self) -> bool:
        """Whether time stamps begin anew on the way."""
        return self.joined is not None

    def entry_before(self, number: int) -> int:
        """Return the last entry from which a frame can be decoded."""
        return max(int(np.searchsorted(self.entry_numbers, number, side="right")) - 1, 0)

    def place_of(self, packet: Packet[VideoStream]) -> int | None:
        """Return which packet of the file one is that is met after a jump; None where unknown."""
        for column, value in ((self.places, packet.pos), (self.dts, packet.dts)):
            if value is None or (column is self.dts and self.is_spliced):
                continue
            # By its size too: where a container is entered at any byte, the first packet is the
            # rest of one that begins before.
            found = np.flatnonzero((column == value) & (self.sizes == packet.size))
            if len(found) == 1:
                return int(found[0])
        return None


class Packets:
    """Goes through a stream's packets and notes what each holds."""

    def __init__(self, video: OpenVideo) -> None:
        stream = video.stream
        self.video, self.stream = video, stream
        self._pictures = Pictures(stream.codec_context.name, stream.codec_context.extradata)
        self.pts, self.raw_pts = array("q"), array("q")
        """Times as they go on over joints, and as the file has them."""
        self.dts, self.places, self.sizes = array("q"), array("q"), array("i")
        self.kinds = array("b")
        self.durations = array("q")
        self.keys, self.idr = array("q"), array("q")
        """Packets marked as key frames that are whole, and those of them that begin anew."""
        self.num_incomplete = self.num_false_keys = 0
        self.has_fields = False
        self.stopped_by = ""
        self.first_frame: VideoFrame | None = None
        self.delay = 0
        """Packets that the decoder takes before it gives the first frame."""
        self._last_key: int | None = None
        self._parity: int | None = None
        """Of the field before, if it waits for the other one."""
        self._splices = _Splices(video)
        self._joints = [(0, 0)]
        """Packets from which on so much is added to time stamps."""
        self._collect()

    @property
    def is_spliced(self) -> bool:
        """Whether the time stamps begin anew on the way."""
        return bool(self._splices.offset)

    def count(self, kind: int) -> int:
        """Return how many packets are of a kind."""
        return self.kinds.count(kind)

    def _collect(self) -> None:
        with damage() as found:
            for packet in self.video.container.demux(self.stream):
                if self.first_frame is None:
                    self.first_frame = _decode_one(self.stream, packet)
                    self.delay = self.count(SHOWN) if self.first_frame is not None else 0
                if packet.size:
                    self._add(packet)
        for error in found:
            self.stopped_by = getattr(error, "strerror", None) or str(error)

    def _add(self, packet: Packet[VideoStream]) -> None:
        coded = self._pictures.of(bytes(packet), is_key=packet.is_keyframe)
        self.has_fields |= coded.has_fields
        offset = self._splices.next(packet)
        if offset != self._joints[-1][1]:
            self._joints.append((len(self.kinds), offset))
        kind = self._kind(packet, coded)
        self.num_incomplete += packet.is_corrupt
        self._note_key(packet, coded, kind)
        self.kinds.append(kind)
        self.pts.append(NONE if packet.pts is None else packet.pts + offset)
        self.raw_pts.append(NONE if packet.pts is None else packet.pts)
        self.dts.append(NONE if packet.dts is None else packet.dts)
        self.places.append(-1 if packet.pos is None else packet.pos)
        self.sizes.append(packet.size)
        self.durations.append(packet.duration or 0)

    def _kind(self, packet: Packet[VideoStream], coded: Coded) -> int:
        first, self._parity = self._parity, coded.parity
        if coded.parity is not None and first == 1 - coded.parity:
            self._parity = None
            return SECOND_FIELD
        if not coded.is_shown:
            return NEVER_SHOWN
        return HIDDEN if packet.is_discard else SHOWN

    def _note_key(self, packet: Packet[VideoStream], coded: Coded, kind: int) -> None:
        if packet.is_keyframe and kind != SECOND_FIELD:
            self._last_key = packet.pts if packet.pts is not None else self._last_key
            if not coded.is_entry:
                self.num_false_keys += 1
                return
            self.keys.append(len(self.kinds))
            if coded.is_idr:
                self.idr.append(len(self.kinds))
        elif self._last_key is not None and packet.pts is not None:
            self.num_false_keys += packet.pts < self._last_key

    def table(self, *, by_time: bool, in_order: bool) -> PacketTable:
        """Return the table of the packets.

        Args:
            by_time: whether time stamps tell in which order frames are shown.
            in_order: whether they are shown in the order in which they are coded.
        """
        kinds, pts = np.asarray(self.kinds, np.int8), np.asarray(self.pts, np.int64)
        numbers = _numbers(kinds, pts if by_time else None) if by_time or in_order else None
        keys = np.asarray(self.keys or [0], np.int64)
        dts = np.asarray(self.dts, np.int64)
        if numbers is None:
            keys, firsts = keys[:1] * 0, np.zeros(1, np.int64)
        else:
            shown = np.sort(pts[kinds == SHOWN])
            hidden = np.searchsorted(shown, pts[keys]) if by_time else np.zeros_like(keys)
            firsts = np.where(kinds[keys] == SHOWN, numbers[keys], hidden)
        stamps = pts[keys] if by_time else dts[keys]
        return PacketTable(
            numbers=numbers,
            places=np.asarray(self.places, np.int64),
            sizes=np.asarray(self.sizes, np.int32),
            dts=dts,
            entries=keys,
            entry_numbers=firsts,
            entry_stamps=stamps,
            joined=self._joined() if self.is_spliced else None,
        )

    def _joined(self) -> Joined:
        unit_s = float(self.stream.time_base or 0)
        known = [max(self.places[first], 0) for first, _ in self._joints]
        return Joined(tuple(known), tuple(shift * unit_s for _, shift in self._joints))


def _numbers(kinds: NDArray[np.int8], pts: NDArray[np.int64] | None) -> NDArray[np.int32]:
    """Return the number of the frame in each packet, by its time or by its place."""
    numbers = np.full(len(kinds), -1, np.int32)
    shown = np.flatnonzero(kinds == SHOWN)
    order = shown if pts is None else shown[np.argsort(pts[shown], kind="stable")]
    numbers[order] = np.arange(len(order))
    for second in np.flatnonzero(kinds == SECOND_FIELD):
        numbers[second] = numbers[second - 1]
    return numbers


class _Splices:
    """Adds to time stamps that begin anew what makes them go on."""

    def __init__(self, video: OpenVideo) -> None:
        names = set(video.container.format.name.split(","))
        unit_s = float(video.stream.time_base or 0)
        self._applies = bool(names & {*SPLICED}) and unit_s > 0
        self._by_keys = unit_s > 0 and "matroska" in names
        self._back, self._ahead = (each / unit_s if unit_s else 0 for each in (BACK_S, AHEAD_S))
        self._expected: int | None = None
        """When the next packet is to be decoded, or a new film to begin, as it goes on."""
        self._shown = NONE
        """When the last frame so far ends, as it goes on."""
        self._last: int | None = None
        """When the packet before was decoded, or the key frame before is shown."""
        rate = video.stream.average_rate or 0
        self._step = round(1 / (rate * unit_s)) if self._by_keys and rate > 0 else 0
        self.offset = 0

    def next(self, packet: Packet[VideoStream]) -> int:
        """Return what to add to a packet's time."""
        if self._by_keys and packet.pts is not None:
            self._next_by_keys(packet, packet.pts)
        elif self._applies and packet.dts is not None:
            self._next(packet, packet.dts)
        return self.offset

    def _next(self, packet: Packet[VideoStream], dts: int) -> None:
        # Where the file does not say how long a frame lasts: as long as the one before it did.
        lasts = packet.duration or self._step
        if self._expected is not None and self._last is not None:
            jump = dts + self.offset - self._expected
            if jump > self._ahead or jump < -self._back - lasts:
                # Of two films the second may have no frames out of order: then it is decoded later
                # than the first one's last frames, and yet shown after them.
                early = 0 if packet.pts is None else self._shown - packet.pts - self.offset + jump
                self.offset += max(early, 0) - jump
            self._step = max(dts + self.offset - self._last, 0) or self._step
        self._last = dts + self.offset
        self._expected = self._last + (packet.duration or self._step)
        if packet.pts is not None:
            end = packet.pts + self.offset + (packet.duration or self._step)
            self._shown = max(self._shown, end)

    def _next_by_keys(self, packet: Packet[VideoStream], pts: int) -> None:
        """Go by when key frames are shown: decoding times are made up, and jumps ahead are gaps."""
        lasts = packet.duration or self._step
        if packet.is_keyframe:
            before = self._last
            if before is not None and pts + self.offset < before - self._back - lasts:
                self.offset = (self._expected or 0) - pts
            self._last = pts + self.offset
        self._expected = max(self._expected or 0, pts + self.offset + lasts)


def _decode_one(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    """Return the first frame that a packet gives: PyAV tells of turning only there."""
    with damage():
        return next(iter(stream.decode(packet)), None)
    return None
