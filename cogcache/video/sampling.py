"""Which frames of a video are looked at: the two published rules of CogVLM2-Video, and our own.

Times are compared as they come: decoders give float32, and the published rules compare those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cogcache.errors import ConfigError, VideoError

Times = NDArray[np.floating[Any]]


class SamplingRule(Protocol):
    """The settings under ``[sampling]``."""

    @property
    def strategy(self) -> str:
        """``"per_second"`` (published as "chat"), ``"uniform"`` (as "base") or ``"spread"``.

        Of ``"published"`` the family makes a ``FamilyRule``.
        """

    @property
    def max_frames(self) -> int:
        """Most frames taken of a clip; of ``uniform``, exactly as many."""

    @property
    def fps(self) -> float | None:
        """Frames a second that are taken, of ``per_second`` and ``spread``; None for one."""

    @property
    def window_s(self) -> float:
        """Seconds from the clip's start that ``uniform`` spreads its frames over."""


@runtime_checkable
class FamilyRule(Protocol):
    """The frames that a family's release takes: ``[sampling]`` with the strategy ``published``."""

    def of_clip(self, num_frames: int, fps: float) -> Sequence[int]:
        """Return indices into a clip's frames.

        Args:
            num_frames: frames that the clip has.
            fps: average frame rate of the video.
        """


def per_second(timestamps_s: Times, max_frames: int = 24, fps: float = 1.0) -> list[int]:
    """Return the indices of the frames nearest to 0 s, 1 s, 2 s, ... in that order.

    With ``fps`` they are the ones nearest to 0 s, 1 / fps, 2 / fps, ...

    Of two frames equally near, the earlier is taken; the last one may come twice.

    Args:
        timestamps_s: when each frame begins, in seconds from the clip's start. Shape [N].
        max_frames: most frames to return.
        fps: frames a second.
    """
    # round() + 1 and not ceil(): the published loop does so, and each frame more or less
    # moves every later token.
    count = min(round(float(timestamps_s.max()) * fps) + 1, max_frames)
    moments = range(count) if fps == 1.0 else [step / fps for step in range(count)]
    return [int(np.abs(timestamps_s - moment).argmin()) for moment in moments]


def uniform(num_frames: int, fps: float, max_frames: int = 24, window_s: float = 60.0) -> list[int]:
    """Return ``max_frames`` indices spread evenly over the first ``window_s`` seconds.

    A clip with fewer frames than that gives some of them twice.

    Args:
        num_frames: frames that the clip has.
        fps: its average frame rate.
        max_frames: how many indices to return.
        window_s: seconds from the clip's start to spread them over.
    """
    num_seen = max(min(num_frames, int(window_s * fps)), 1)
    return [int(index) for index in np.linspace(0, num_seen - 1, max_frames, dtype=int)]


def spread(timestamps_s: Times, max_frames: int = 24, fps: float = 1.0) -> list[int]:
    """Return the frames nearest to ``fps`` moments for each second of the clip, over all of it.

    A clip that has no more of them than ``max_frames`` gives what ``per_second`` gives; of a longer
    one, ``max_frames`` moments from its first frame to its last are equally far apart.

    Args:
        timestamps_s: when each frame begins, in seconds from the clip's start. Shape [N].
        max_frames: how many moments at most.
        fps: moments a second.
    """
    last_s = float(timestamps_s.max())
    if round(last_s * fps) + 1 <= max_frames:
        return per_second(timestamps_s, max_frames, fps)
    moments = np.linspace(0.0, last_s, max_frames)
    return [int(np.abs(timestamps_s - moment).argmin()) for moment in moments]


def choose(
    timestamps_s: Times,
    fps: float,
    rule: SamplingRule | FamilyRule,
    start_s: float = 0.0,
    end_s: float | None = None,
    *,
    until_s: float = 0.0,
) -> list[int]:
    """Return the indices, into the whole video, of the frames to look at in one clip.

    Args:
        timestamps_s: when each frame of the whole video begins, ascending, in seconds. Shape [N].
        fps: average frame rate.
        rule: strategy and its numbers; seconds count from the clip's start. Or a family's own.
        start_s: the clip holds the frames from here on ...
        end_s: ... that begin before this; to the video's end if None. A clip in which no frame
            begins holds the one that stands still through it.
        until_s: when the last frame ends, where that is known: it may be held for long.

    Raises:
        VideoError: the clip begins after the video's end (``clip_outside``), or has too few
            frames for a family's rule (``too_few_frames``).
        ConfigError: there is no such strategy.
    """
    first, stop = bounds(
        timestamps_s, start_s, end_s, max(until_s, float(timestamps_s[-1]) + 1 / fps)
    )
    chosen: Sequence[int]
    if isinstance(rule, FamilyRule):
        chosen = rule.of_clip(stop - first, fps)
    elif rule.strategy == "per_second":
        since_start_s = np.maximum(timestamps_s[first:stop] - start_s, 0)
        chosen = per_second(since_start_s, rule.max_frames, rule.fps or 1.0)
    elif rule.strategy == "uniform":
        chosen = uniform(stop - first, fps, rule.max_frames, rule.window_s)
    elif rule.strategy == "spread":
        since_start_s = np.maximum(timestamps_s[first:stop] - start_s, 0)
        chosen = spread(since_start_s, rule.max_frames, rule.fps or 1.0)
    else:
        raise ConfigError(
            f"sampling.strategy is {rule.strategy!r}",
            "set it to per_second, uniform, spread or published",
        )
    return [first + index for index in chosen]


def bounds(
    timestamps_s: Times, start_s: float, end_s: float | None, video_end_s: float
) -> tuple[int, int]:
    """Return the first frame of a clip and the first after it.

    Args:
        timestamps_s: when each frame of the whole video begins, ascending. Shape [N].
        start_s: where the clip begins.
        end_s: where it ends; None: at the video's end.
        video_end_s: when the last frame ends.

    Raises:
        VideoError: the clip begins after the video's end (``clip_outside``).
    """
    if start_s >= video_end_s:
        raise VideoError(
            "clip_outside",
            f"the clip begins at {start_s:g} s, the video ends at {video_end_s:.2f} s",
            "choose an earlier --clip; a shorter video than announced is often a cut-off file",
        )
    # Compared with a Python float, so that numpy rounds the bound as it rounded the times:
    # a frame at 0.7 s, in float32 just below it, belongs to the clip from 0.7 s on.
    first = int(np.count_nonzero(timestamps_s < start_s))
    stop = len(timestamps_s) if end_s is None else int(np.count_nonzero(timestamps_s < end_s))
    return (first, stop) if first < stop else (max(first - 1, 0), max(first, 1))
