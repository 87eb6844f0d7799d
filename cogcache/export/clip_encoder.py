"""Re-encodes a clip of a video: exactly the frames that were captioned, as a player shows them.

Frames, rotation, pixels and times are those that the reader gave. Sound is re-encoded as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import VideoError
from cogcache.export.clip_pictures import Coding
from cogcache.export.clip_sound import Sound, open_sound
from cogcache.video import FrameIndex, bounds, frames_from, index_frames

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

CLOCK: Final = 90_000
"""Ticks a second: the MPEG clock, a multiple of most frame rates."""
OPTIONS: Final = {"crf": "16", "x264-params": "qcomp=1", "threads": "1"}
"""Nearly without loss, and as good for frames that follow soon after each other, on which x264
saves by itself. One thread: the same clip gives the same bytes on any machine."""
FINE: Final = {**OPTIONS, "crf": "10"}
"""For palettes and RGB: colours that are dithered change from pixel to pixel."""
SLOWEST, FASTEST = Fraction(1, 1000), Fraction(1000)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the new file contains."""

    num_frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a video to encode."""

    source: Path
    index: FrameIndex
    first: int
    stop: int
    """Frames ``[first, stop)``."""
    begin_s: float
    """When the first of them is shown, as far as the clip goes, from the video's first frame."""
    end_s: float
    """When the last of them ends, so counted."""

    @property
    def times_s(self) -> NDArray[np.float64]:
        """When the frames begin, from the first of them. Shape [stop - first]."""
        times_s = self.index.times_s[self.first : self.stop].astype(np.float64)
        since_s: NDArray[np.float64] = times_s - times_s[0]
        return since_s

    @property
    def length_s(self) -> float:
        """How long the frames are shown."""
        return max(self.end_s - self.begin_s, 1 / CLOCK)


def part_of(source: Path, start_s: float, end_s: float | None) -> Part:
    """Return the part of a video that the clip `[start_s, end_s)` covers.

    Raises:
        VideoError: the video cannot be opened, or the clip is not in it.
    """
    index = index_frames(source)
    first, stop = bounds(index.times_s, start_s, end_s, index.end_s)
    until_s = index.end_s if end_s is None else min(end_s, index.end_s)
    # A frame that began before stands still through the clip.
    begin_s = max(float(index.times_s[first]), start_s if first + 1 == stop else 0.0)
    return Part(source, index, first, stop, begin_s, until_s)


def encode(part: Part, path: Path, *, sound: bool) -> Encoded:
    """Write the frames of a clip, and its sound, to an MP4 file.

    Args:
        part: what to encode.
        path: of the new file.
        sound: whether it is to have the sound of the video, if that has one.

    Raises:
        VideoError: the video cannot be decoded.
    """
    import av

    with (
        av.open(str(path), "w", format="mp4") as out,
        open_sound(part.source, part.index, part.begin_s, part.length_s, wanted=sound) as heard,
    ):
        writer = _Writer(out, part, heard)
        for number, frame in _each(part):
            writer.add(number, frame)
        if not writer.num_frames:
            problem = f"{part.source} gives no frame of the clip"
            raise VideoError("no_frames", problem, "try to play it")
        writer.end()
    return Encoded(writer.num_frames, part.index.fps, writer.size[0], writer.size[1])


def _each(part: Part) -> Iterator[tuple[int, VideoFrame]]:
    """Yield every frame of the clip; for one that is lost, the one before it, as in reading."""
    expected, before = part.first, None
    for number, frame in frames_from(part.source, part.index, part.first):
        if number >= part.stop:
            break
        if number < expected:
            problem = f"{part.source}: its frames come in another order than that of their times"
            raise VideoError(
                "decode_failed", problem, "put it into another container and try again"
            )
        while expected < number:
            yield expected, before or frame
            expected += 1
        if number == expected:
            yield number, frame
            expected += 1
        before = frame
    if before is not None:
        yield from ((number, before) for number in range(expected, part.stop))


class _Writer:
    """Writes one MP4 file."""

    def __init__(self, out: OutputContainer, part: Part, sound: Sound | None) -> None:
        self.out, self.part, self.sound = out, part, sound
        width, height = part.index.display.shown
        # Readers and trainers want even sides: an odd one loses its last row or column.
        self.size = max(width // 2 * 2, 2), max(height // 2 * 2, 2)
        self.num_frames = 0
        self._durations: dict[int, int] = {}
        """By the tick at which a frame is shown, which the encoder has in hand: for how many."""
        self.stream: VideoStream | None = None
        self._coding: Coding | None = None
        ticks = np.round(part.times_s * CLOCK).astype(np.int64)
        # A player cannot show two frames at once: the later one of a pair is shown a tick later.
        steps = np.arange(len(ticks))
        self._ticks = np.maximum.accumulate(ticks - steps) + steps
        self._end = max(round(part.length_s * CLOCK), int(self._ticks[-1]) + 1)

    def add(self, number: int, frame: VideoFrame) -> None:
        """Encode one frame."""
        if self.stream is None:
            self.stream = self._begin(frame)
            if self.sound is not None:
                self.sound.begin(self.out)
        place = number - self.part.first
        assert self._coding is not None
        shown = self._coding.shown(frame, self.part.index, self.size)
        shown.pts, shown.time_base = int(self._ticks[place]), Fraction(1, CLOCK)
        later = self._ticks[place + 1] if place + 1 < len(self._ticks) else self._end
        shown.duration = int(later - self._ticks[place])
        self._durations[shown.pts] = shown.duration
        self._mux(self.stream.encode(shown))
        self.num_frames += 1
        if self.sound is not None:
            self.sound.write(self.out, until_s=float(later) / CLOCK)

    def end(self) -> None:
        """Write the frames that the encoders still hold back."""
        if self.stream is not None:
            self._mux(self.stream.encode(None))
        if self.sound is not None:
            self.sound.end(self.out)

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            # The encoder does not hand on how long the last frame is shown.
            if packet.pts is not None and packet.time_base == Fraction(1, CLOCK):
                packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
            self.out.mux(packet)

    def _begin(self, frame: VideoFrame) -> VideoStream:
        rate = Fraction(self.part.index.fps).limit_denominator(1001)
        rate = min(max(rate, SLOWEST), FASTEST)
        self._coding = coding = Coding.of(frame)
        options = OPTIONS if coding.is_yuv else FINE
        stream: Any = self.out.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *self.size, coding.pix_fmt
        context = stream.codec_context
        context.time_base = Fraction(1, CLOCK)
        context.colorspace, context.color_range = coding.matrix, coding.range_
        context.color_primaries, context.color_trc = coding.primaries, coding.transfer
        return stream  # type: ignore[no-any-return]
