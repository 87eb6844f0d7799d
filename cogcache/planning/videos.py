"""Sizes, lengths and number of clips, taken from the videos that are to be captioned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cogcache.errors import ConfigError, VideoError
from cogcache.planning.clip import Size
from cogcache.settings import Clips
from cogcache.system import ObjectUrl
from cogcache.video import VideoInfo, cut, find_videos, probe

MOST_LOOKED_AT: Final = 200
"""Headers take milliseconds each; of more videos, so many are spread over the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was found in videos."""

    found: int
    looked_at: int
    size: Size
    """The one that most of them have."""
    duration_s: float
    """Of a clip, on average."""
    fps: float
    """The rate that most of them have, in frames a second."""
    clips: int
    """In all of them, as they are cut."""

    def words(self) -> str:
        """Say what was found, in a line."""
        of = f"{self.looked_at:,} of " if self.looked_at < self.found else ""
        width, height = self.size
        return (
            f"{of}{self.found:,} videos looked at: most are {width}x{height}, a clip has "
            f"{self.duration_s:.3g} s on average; {self.clips:,} clips in all"
        )


def look_at(videos: Sequence[str], clips: Clips) -> Looked:
    """Read the headers of videos; of many, those of some.

    Args:
        videos: files, folders, patterns and `@list.txt`.
        clips: how they are to be cut. Scenes are not looked for: a video counts whole.

    Raises:
        ConfigError: there is none that can be read.
    """
    paths = find_videos(list(videos))
    step = max(1, len(paths) // MOST_LOOKED_AT)
    infos: list[VideoInfo] = []
    for path in paths[::step]:
        if isinstance(path, ObjectUrl):  # nothing is fetched for a plan
            continue
        try:
            infos.append(probe(path))
        except VideoError:  # stage one lists it as a failure
            continue
    if not infos:
        raise ConfigError("none of the videos can be read", "give --size and --duration instead")
    cuts = [len(cut(info.duration_s, clips.segment_s, clips.overlap_s)) for info in infos]
    return Looked(
        found=len(paths),
        looked_at=len(infos),
        size=Counter((info.width, info.height) for info in infos).most_common(1)[0][0],
        duration_s=sum(info.duration_s for info in infos) / sum(cuts),
        fps=Counter(info.fps for info in infos).most_common(1)[0][0],
        clips=round(sum(cuts) / len(infos) * len(paths)),
    )
