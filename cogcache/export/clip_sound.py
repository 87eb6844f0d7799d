"""The sound of a clip: what a player plays while it shows the frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cogcache.video import AHEAD_S, BACK_S, ONLY_THE_FILE, FrameIndex, Joined, damage

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

logger = logging.getLogger(__name__)

BLOCK: Final = 1024
"""Samples in one AAC frame."""
MAX_RATE: Final = 48_000
KBIT: Final = 1000
GAP_S: Final = 0.05
"""Silence is put where sound is missing for longer; less is the rounding of time stamps."""
EARLIER_S: Final = 1.0
"""Begin to read so much before the clip: sound is decoded from what came before, too."""
Samples = NDArray[np.float32]


@contextmanager
def open_sound(
    source: Path, index: FrameIndex, begin_s: float, length_s: float, *, wanted: bool
) -> Iterator[Sound | None]:
    """Open the sound from `begin_s` after the first frame on; None where there is none."""
    import av

    if not wanted:
        yield None
        return
    with (
        damage(),
        av.open(
            os.path.abspath(source),  # noqa: PTH100
            options=ONLY_THE_FILE,
            metadata_errors="replace",
        ) as container,
    ):
        first_s = (container.start_time or 0) / 1e6 + index.offset_s
        sound = Sound(container, first_s + begin_s, length_s, index.packets.joined)
        yield sound if sound.has_any else None


class Sound:
    """The best sound stream of a file, cut to a clip and encoded as AAC.

    Args:
        container: the file, open, for this alone.
        begin_s: when the clip begins, by the file's time stamps.
        length_s: how long it is.
        joined: how the time stamps go on, of films that were joined.
    """

    def __init__(
        self, container: InputContainer, begin_s: float, length_s: float, joined: Joined | None
    ) -> None:
        self._container, self._begin_s, self._joined = container, begin_s, joined
        stream: Any = container.streams.best("audio")
        self._input = stream
        self._blocks: Iterator[Samples] = iter(())
        self._next: Samples | None = None
        self._written = 0
        if stream is not None and stream.codec_context is not None:
            self._rate = min(stream.rate or MAX_RATE, MAX_RATE)
            self._layout = "mono" if stream.channels == 1 else "stereo"
            self._length = round(length_s * self._rate)
            self._blocks = self._cut_in_blocks()
            self._next = next(self._blocks, None)

    @property
    def has_any(self) -> bool:
        """Whether anything is heard in the clip."""
        return self._next is not None

    def begin(self, out: OutputContainer) -> None:
        """Add the stream to a file whose pictures' stream is there."""
        self._output: Any = out.add_stream("aac", rate=self._rate, layout=self._layout)
        self._output.bit_rate = (96 if self._layout == "mono" else 160) * KBIT

    def write(self, out: OutputContainer, until_s: float) -> None:
        """Write the sound up to this time."""
        while self._next is not None and self._written < until_s * self._rate:
            out.mux(self._output.encode(self._frame(self._next)))
            self._next = next(self._blocks, None)

    def end(self, out: OutputContainer) -> None:
        """Write the rest."""
        self.write(out, float("inf"))
        out.mux(self._output.encode(None))

    def _frame(self, samples: Samples) -> Any:
        from fractions import Fraction

        from av import AudioFrame

        frame = AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._written
        frame.time_base = Fraction(1, self._rate)
        self._written += samples.shape[1]
        return frame

    def _cut_in_blocks(self) -> Iterator[Samples]:
        """Yield the clip's samples, `BLOCK` at a time. Shape [channels, at most BLOCK]."""
        held: list[Samples] = []
        size = 0
        for samples in self._in_clip():
            held.append(samples)
            size += samples.shape[1]
            while size >= BLOCK:
                joined = np.concatenate(held, axis=1)
                yield np.ascontiguousarray(joined[:, :BLOCK])
                held, size = [joined[:, BLOCK:]], size - BLOCK
        if size:
            yield np.ascontiguousarray(np.concatenate(held, axis=1))

    def _in_clip(self) -> Iterator[Samples]:
        """Yield samples without a gap from the clip's begin on; silence where there are none."""
        at = 0
        for start, samples in self._resampled():
            if start >= self._length:
                return
            if start > at + GAP_S * self._rate:
                silence = min(start, self._length) - at
                yield np.zeros((samples.shape[0], silence), np.float32)
                at = start
            elif start < at:
                samples = samples[:, at - start :]
            samples = samples[:, : self._length - at]
            if samples.shape[1]:
                yield samples
                at += samples.shape[1]

    def _resampled(self) -> Iterator[tuple[int, Samples]]:
        """Yield samples, and the number of the first from the clip's begin; it may be negative."""
        resamplers: dict[tuple[object, ...], Any] = {}
        if self._joined is None and self._begin_s > EARLIER_S:
            with damage():
                self._container.seek(int((self._begin_s - EARLIER_S) * 1e6))
        with damage() as found:
            for packet in self._packets():
                for frame in self._decoded(packet):
                    # Films that were joined may have sound of different kinds.
                    kind = frame.format.name, frame.layout.name, frame.sample_rate
                    if kind not in resamplers:
                        resamplers[kind] = self._resampler()
                    yield from self._placed(resamplers[kind].resample(frame))
        if found:
            logger.info("the sound ends early: %s", found[0])

    def _resampler(self) -> Any:
        import av

        return av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)

    def _packets(self) -> Iterator[Any]:
        """Yield the packets of the sound, those far before the clip left out if films were joined.

        Their times find nothing then, so the file is gone through from its begin.
        """
        films = None if self._joined is None else _Films(self._joined)
        for packet in self._container.demux(self._input):
            if films is not None and packet.pts is not None:
                shift_s = films.shift_s(packet)
                time_s = float(packet.pts * packet.time_base) + shift_s
                if time_s < self._begin_s - EARLIER_S:
                    continue
                packet.pts += round(shift_s / packet.time_base)
            yield packet

    def _decoded(self, packet: Any) -> list[Any]:
        with damage():
            return list(packet.decode())
        return []

    def _placed(self, frames: list[Any]) -> Iterator[tuple[int, Samples]]:
        for frame in frames:
            if frame.pts is None:
                continue
            time_s = float(frame.pts * frame.time_base) - self._begin_s
            yield round(time_s * self._rate), frame.to_ndarray()


class _Films:
    """Follows the sound through films that were joined: its time stamps begin anew with each."""

    def __init__(self, joined: Joined) -> None:
        self._joined, self._film = joined, 0
        self._next_s: float | None = None

    def shift_s(self, packet: Any) -> float:
        """Return what to add to the time of the next packet, so that it goes on."""
        time_s = float(packet.pts * packet.time_base)
        if self._next_s is None:
            place = packet.pos or 0
            self._film = sum(each <= place for each in self._joined.places[1:])
        elif not self._next_s - BACK_S <= time_s <= self._next_s + AHEAD_S:
            self._film = self._joined.film_at(packet.pos, self._film)
        self._next_s = time_s + float((packet.duration or 0) * packet.time_base)
        return self._joined.shifts_s[self._film]
