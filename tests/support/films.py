"""Films: videos of several scenes, with hard cuts between them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 10
LENGTHS = (30, 50, 20, 7, 40, 25)
"""Frames of each scene."""


def write_film(
    path: Path,
    lengths: Sequence[int] = LENGTHS,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    max_b_frames: int = 0,
    seed: int = 0,
) -> Path:
    """Write scenes of coarse random colours in each of which a white square moves."""
    rng = np.random.default_rng(seed)
    pictures = [
        np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 12, 1), np.uint8))
        for _ in lengths
    ]
    frames = [pic.copy() for pic, n in zip(pictures, lengths, strict=True) for _ in range(n)]
    times_s = [n / FPS for n in range(len(frames))] if times_s is None else times_s
    time_base = Fraction(1, FPS) if path.suffix == ".avi" else Fraction(1, 1000)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.gop_size, stream.max_b_frames, stream.thread_count = 12, max_b_frames, 1
        stream.codec_context.time_base = stream.time_base = time_base
        for number, pixels in enumerate(frames):
            pixels[number % 8 * 4 :, :6][:6] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base, frame.pts = time_base, round(times_s[number] / time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
