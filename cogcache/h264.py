"""Where an H.264 stream really can be entered: not every packet marked as key frame is one."""

from __future__ import annotations

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
