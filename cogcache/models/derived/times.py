"""When the frames of a clip were, as processors and prompts want to be told. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from cogcache.video import ClipFrames

SAME_S = 0.002
"""What a frame of even rate may be off: after hours, times are kept to a thousandth."""
FINE_FPS = 1000.0
"""What stands for the rate of a video whose frames lie between the ticks of its average one."""


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The times of a clip's frames; they stand in its feature file.

    Args:
        timestamps_s: when each frame begins, in seconds of the whole video.
        fps: frames a second of the video, on average.
        total_num_frames: of the whole video.
        duration_s: of the whole video.
        start_s: where the clip begins in the video.
        end_s: where it ends; None at the end of the video.
        offset_s: the time that a player shows at the video's first frame. What a model is told is
            that time, as in prompts; all above count from the first frame.
    """

    timestamps_s: Sequence[float]
    fps: float
    total_num_frames: int
    duration_s: float
    start_s: float = 0.0
    end_s: float | None = None
    offset_s: float = 0.0

    @classmethod
    def of_clip(cls, clip: ClipFrames) -> Self:
        """Return the times of decoded frames."""
        times = [float(time) for time in clip.timestamps_s]
        span = clip.start_s, clip.end_s
        video = clip.fps, clip.total_num_frames, clip.duration_s
        return cls(times, *video, *span, clip.offset_s)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Self | None:
        """Return the times that a feature file tells; None where it tells none."""
        if "timestamps_s" not in facts:
            return None
        return cls(**{name: facts[name] for name in cls.__dataclass_fields__ if name in facts})

    def on_ticks(self) -> tuple[list[int], float]:
        """Return the number of each frame and the rate that together give its time in a player.

        Those of the video, where its rate is even; else thousandths of a second.
        """
        fps, shown_s = self.fps, [self.offset_s + time for time in self.timestamps_s]
        if any(abs(round(time * fps) / fps - time) > SAME_S for time in shown_s):
            fps = FINE_FPS
        return [round(time * fps) for time in shown_s], fps

    @property
    def seconds(self) -> list[float]:
        """The time of each frame as a processor computes it: its number over the rate."""
        indices, fps = self.on_ticks()
        return [index / fps for index in indices]

    @property
    def num_frames(self) -> int:
        """Number of frames, taken or not, that begin within the clip."""
        first = min(math.ceil(self.start_s * self.fps - SAME_S), self.total_num_frames)
        stop = self.total_num_frames
        if self.end_s is not None:
            stop = min(stop, math.ceil(self.end_s * self.fps - SAME_S))
        return max(1, stop - first)

    @property
    def sampled_fps(self) -> float:
        """Frames taken a second: those taken over all frames of the clip, times their rate.

        The rule is that of `qwen_vl_utils`, the utility that Qwen's authors published for
        Qwen2-VL and Qwen2.5-VL (`fetch_video`, what it returns as `sample_fps`).

        Example:
            >>> FrameTimes([0.0, 1.0, 2.0, 3.0], 25.0, 75, 3.0).sampled_fps
            1.3333333333333333
        """
        return len(self.timestamps_s) / self.num_frames * self.fps
