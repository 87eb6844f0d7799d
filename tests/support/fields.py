"""H.264 whose pictures are coded a field at a time, as television does: no encoder here makes that.

Each picture is two slices of uncoded samples (I_PCM), the first of them an IDR picture; the numbers
behind the bits are those of ITU-T H.264, sections 7.3.2 to 7.3.5.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from videos import picture

WIDTH, HEIGHT = 192, 96
BLOCK = 16
FPS = 25
CLOCK = Fraction(1, 90_000)
MAIN_PROFILE, LEVEL = 77, 30
SPS, PPS, IDR, OTHER = 0x67, 0x68, 0x65, 0x61
I_SLICE, I_PCM = 7, 25
Plane = NDArray[np.uint8]


def bits(*numbers: int | tuple[int, int]) -> str:
    """Return numbers as bits: (value, width), or one of variable length (Exp-Golomb)."""
    parts = []
    for number in numbers:
        if isinstance(number, tuple):
            parts.append(f"{number[0]:0{number[1]}b}")
        else:
            parts.append("0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}")
    return "".join(parts)


def unit(kind: int, payload: str | bytes) -> bytes:
    """Return a unit of the stream: a start code, what it is, and its bytes."""
    if isinstance(payload, str):
        closed = payload + "1"
        whole = closed + "0" * (-len(closed) % 8)
        payload = int(whole, 2).to_bytes(len(whole) // 8, "big")
    escaped = bytearray()
    for byte in payload:
        if byte <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(byte)
    return b"\0\0\0\1" + bytes([kind]) + bytes(escaped)


def head() -> bytes:
    """Return the parameters of the sequence and of its pictures."""
    sequence = bits((MAIN_PROFILE, 8), (0, 8), (LEVEL, 8), 0, 0, 2, 1, (0, 1))
    # Width and the height of a field in blocks, not frames alone, then flags, none of which is set
    # but the one that fields go with.
    sequence += bits(WIDTH // BLOCK - 1, HEIGHT // 2 // BLOCK - 1, (0b001, 3), (0b00, 2))
    pictures = bits(0, 0, (0b00, 2), 0, 0, 0, (0, 3), 0, 0, 0, (0b100, 3))
    return unit(SPS, sequence) + unit(PPS, pictures)


def field(planes: list[Plane], number: int, parity: int) -> bytes:
    """Return the slice of one field.

    Args:
        planes: luma and both chromas of the frame.
        number: of the frame.
        parity: 0 for the rows 0, 2, 4, …; 1 for the others.
    """
    parts = bits(0, I_SLICE, 0, (0, 4), (1, 1), (parity, 1))
    parts += bits((0, 1)) if parity else bits(number % 2, (0b00, 2))
    parts += bits(0, 1)
    luma, *chroma = (plane[parity::2] for plane in planes)
    for top in range(0, HEIGHT // 2, BLOCK):
        for left in range(0, WIDTH, BLOCK):
            parts += bits(I_PCM)
            parts += "0" * (-len(parts) % 8)
            samples = [luma[top : top + BLOCK, left : left + BLOCK]]
            half = slice(top // 2, (top + BLOCK) // 2), slice(left // 2, (left + BLOCK) // 2)
            samples += [each[half] for each in chroma]
            parts += "".join(f"{byte:08b}" for sample in samples for byte in sample.tobytes())
    return unit(OTHER if parity else IDR, parts)


def frames(count: int) -> list[tuple[bytes, bytes]]:
    """Return the two fields of each frame; frame `i` spells `i`."""
    made = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number, WIDTH, HEIGHT), format="rgb24")
        flat = frame.reformat(format="yuv420p").to_ndarray()
        size = HEIGHT // 2 * WIDTH // 2
        chroma = flat[HEIGHT:].reshape(-1)
        planes = [flat[:HEIGHT]]
        planes += [chroma[n * size : (n + 1) * size].reshape(HEIGHT // 2, -1) for n in (0, 1)]
        made.append((head() + field(planes, number, 0), field(planes, number, 1)))
    return made


def write_fields(path: Path, *, apart: bool, num_frames: int = 40) -> Path:
    """Write such a video, with a packet a field (``apart``) or a packet a frame."""
    raw = path.with_name(f".{path.name}.h264")
    made = frames(num_frames)
    raw.write_bytes(b"".join(one + other for one, other in made))
    ticks = round(1 / FPS / CLOCK)
    with av.open(raw) as before, av.open(path, "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, fields in enumerate(made):
            for place, data in enumerate(fields if apart else [b"".join(fields)]):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, CLOCK
                packet.pts = packet.dts = number * ticks + place * ticks // 2
                packet.duration = ticks // len(fields) if apart else ticks
                packet.is_keyframe = place == 0
                after.mux(packet)
    return path
