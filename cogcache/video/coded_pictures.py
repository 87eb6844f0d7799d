"""What one packet of coded pictures holds, told from its first bytes: nothing is decoded.

Containers mark key frames and count packets; neither is the same as frames that can be shown. An
H.264 picture may come as two fields in two packets, and VP8 has pictures that are never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

SLICE, IDR_SLICE, SPS, PPS = 1, 5, 7, 8
I_SLICE = 2
NAL_TYPE = 0b11111
HEAD_BYTES = 24
"""Of a slice: enough for the numbers that are read here."""
HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Those whose sequence parameters tell the format of the colours (H.264, section 7.3.2.1.1)."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One packet of pictures."""

    is_entry: bool = True
    """Whether decoding can begin here, if the container says so too."""
    is_idr: bool = True
    """Whether it begins anew for certain; elsewhere than in H.264 the container is believed."""
    is_shown: bool = True
    """False: a picture that others are made from, and that no player shows."""
    parity: int | None = None
    """0 for the top field of a picture alone, 1 for the bottom field; None for whole pictures."""
    has_fields: bool = False
    """Whether its pictures are coded a field at a time, be they in one packet or in two."""


WHOLE_PICTURE = Coded()


class Pictures:
    """Tells what the packets of one stream hold, in their order.

    Args:
        codec: as libav names it.
        extradata: the stream's; of H.264, whether packets are length-prefixed and what fields are.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._look = {"h264": self._h264, "vp8": _vp8, "vp9": _vp9}.get(codec)
        self._length_size = 0
        self._has_fields: dict[int, int | None] = {}
        """By sequence: bits of a frame's number where fields may come alone, else None."""
        if codec == "h264" and extradata and extradata[0] == 1:
            self._length_size = (extradata[4] & 3) + 1
            for nal in _avcc(extradata):
                self._learn(nal)
        elif codec == "h264" and extradata:
            for nal in _annex_b(extradata):
                self._learn(nal)

    def of(self, packet: bytes, *, is_key: bool) -> Coded:
        """Return what a packet holds.

        Args:
            packet: its bytes.
            is_key: whether its container marks it as a key frame.
        """
        return WHOLE_PICTURE if self._look is None else self._look(packet, is_key)

    def _h264(self, packet: bytes, is_key: bool) -> Coded:
        fields = any(bits is not None for bits in self._has_fields.values())
        if not (is_key or fields or not self._has_fields):
            return WHOLE_PICTURE
        first: bytes | None = None
        parities = set[int | None]()
        for nal in self._nals(packet):
            kind = nal[0] & NAL_TYPE
            if kind in {SPS, PPS}:
                self._learn(nal)
            elif kind in {SLICE, IDR_SLICE}:
                first = first or nal
                parities.add(self._parity(nal))
                # Slices of one picture follow; only fields need a look at all of them.
                if parities == {None}:
                    break
        return self._judged(first, parities)

    def _judged(self, first: bytes | None, parities: set[int | None]) -> Coded:
        if first is None:
            return WHOLE_PICTURE
        is_idr = first[0] & NAL_TYPE == IDR_SLICE
        head = Bits(first[1:HEAD_BYTES])
        head.number()
        is_entry = is_idr or head.number() % 5 == I_SLICE
        alone = next(iter(parities)) if len(parities) == 1 else None
        return Coded(is_entry, is_idr, parity=alone, has_fields=parities != {None})

    def _nals(self, packet: bytes) -> Iterator[bytes]:
        if not self._length_size:
            return _annex_b(packet)
        return _prefixed(packet, self._length_size)

    def _learn(self, nal: bytes) -> None:
        if len(nal) > 4 and nal[0] & NAL_TYPE == SPS:
            number, bits = _fields_of(nal)
            self._has_fields[number] = bits

    def _parity(self, nal: bytes) -> int | None:
        """Return which field a slice is of; None where it is of a whole picture."""
        # Pictures name their sequence by a table of their own; streams with two kinds of
        # sequences at once are not known.
        bits = next((each for each in self._has_fields.values() if each is not None), None)
        if bits is None:
            return None
        head = Bits(nal[1 : 1 + HEAD_BYTES])
        head.number(), head.number(), head.number()  # first macroblock, type, picture parameters
        head.take(bits)
        return head.take(1) if head.take(1) else None


@dataclass
class Bits:
    """Reads the bits of a slice or of parameters, from the first to the last."""

    data: bytes
    at: int = field(default=0)

    def __post_init__(self) -> None:
        # A 3 behind two zeros is there so that no start code appears (section 7.4.1.1).
        data = self.data.replace(b"\0\0\3", b"\0\0")
        self._value, self._size = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next bits as a number; beyond the end they are 0."""
        self.at += count
        shift = self._size - self.at
        value = self._value >> shift if shift >= 0 else self._value << -shift
        return value & ((1 << count) - 1)

    def number(self) -> int:
        """Return the next number of variable length (Exp-Golomb, section 9.1)."""
        zeros = 0
        while self.at < self._size and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _fields_of(nal: bytes) -> tuple[int, int | None]:
    """Return a sequence's number, and the bits of a frame's number if fields may come alone."""
    profile, bits = nal[1], Bits(nal[4:])
    number = bits.number()
    if profile in HIGH_PROFILES:
        colours = bits.number()
        if colours == 3:
            bits.take(1)
        bits.number(), bits.number(), bits.take(1)
        _pass_tables(bits, 12 if colours == 3 else 8)
    frame_bits = bits.number() + 4
    kind = bits.number()
    if kind == 0:
        bits.number()
    elif kind == 1:
        bits.take(1), bits.number(), bits.number()
        for _ in range(min(bits.number(), 255)):
            bits.number()
    bits.number(), bits.take(1), bits.number(), bits.number()  # references, gaps, width, height
    return number, None if bits.take(1) else frame_bits


def _pass_tables(bits: Bits, count: int) -> None:
    """Pass over the tables of weights, where there are some (section 7.3.2.1.1.1)."""
    if not bits.take(1):
        return
    for table in range(count):
        last = following = 8
        for _ in range((16 if table < 6 else 64) if bits.take(1) else 0):
            if following:
                step = bits.number()
                following = (last + ((step + 1) // 2 if step % 2 else -(step // 2))) % 256
            last = following or last


def _avcc(extradata: bytes) -> Iterator[bytes]:
    """Yield the sequence parameters in an ``avcC`` box."""
    at = 6
    for _ in range(extradata[5] & 31 if len(extradata) > 5 else 0):
        size = int.from_bytes(extradata[at : at + 2], "big")
        yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _prefixed(packet: bytes, length_size: int) -> Iterator[bytes]:
    at = 0
    while at + length_size < len(packet):
        start = at + length_size
        end = start + int.from_bytes(packet[at:start], "big")
        if end > start:
            yield packet[start:end]
        at = end


def _annex_b(packet: bytes) -> Iterator[bytes]:
    """Yield what lies between start codes."""
    at = packet.find(b"\0\0\1")
    while at >= 0:
        end = packet.find(b"\0\0\1", at + 3)
        nal = packet[at + 3 : end if end >= 0 else len(packet)]
        if nal:
            yield nal
        at = end


def _vp8(packet: bytes, is_key: bool) -> Coded:
    # RFC 6386, section 9.1: bit 4 of the first byte says whether the frame is shown.
    return Coded(is_shown=not packet or bool(packet[0] & 0b1_0000))


def _vp9(packet: bytes, is_key: bool) -> Coded:
    """Look at the uncompressed header (VP9 bitstream, section 6.2); of several frames one is."""
    if not packet or packet[-1] & 0b1110_0000 == 0b1100_0000:
        return WHOLE_PICTURE
    head = Bits(packet[:2])
    head.take(2)
    profile = head.take(1) + 2 * head.take(1)
    if profile == 3:
        head.take(1)
    if head.take(1):  # shows a frame that came earlier
        return WHOLE_PICTURE
    head.take(1)
    return Coded(is_shown=bool(head.take(1)))
