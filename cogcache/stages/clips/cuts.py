"""Which clips each video is cut into. What must be known for it is found once and remembered.

Segments need a video's length, which its head tells; scenes need all of its frames. `searching`
looks at them while clips of other videos are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from cogcache.catalog import Catalog, Reading, VideoRow, path_to_text, readings
from cogcache.errors import ConfigError
from cogcache.keys import digest
from cogcache.settings import Clips
from cogcache.system import Location, ObjectUrl, extra_hint, object_stores
from cogcache.video import THRESHOLDS, Span, VideoInfo, cut, spans_of


@dataclass(slots=True)
class Cuts:
    """How videos are cut."""

    spans: dict[Location, list[Span]] = field(default_factory=dict)
    """Of those of which it is known."""
    known_failures: list[Location] = field(default_factory=list)
    """Videos that could not be cut in an earlier run, and are left alone in this one."""
    unsearched: list[Location] = field(default_factory=list)
    """Videos that have to be looked at for it."""


def known_spans(
    digests: Collection[str], clips: Clips, catalog: Catalog, *, all_videos: bool = False
) -> dict[str, list[Span]]:
    """Return the clips of those videos for which the catalog knows all that cutting needs.

    Args:
        digests: of the videos.
        clips: how to cut.
        catalog: remembers what was found.
        all_videos: cut those too of which it is not known when their frames are shown.
    """
    known = readings(catalog.files, digests)
    if all_videos:
        known = dict.fromkeys(digests, Reading()) | known
    if clips.scenes:
        names = {scene_name(each, clips): each for each in known}
        found = catalog.files.recall_all(names)
        return {
            names[name]: _scene_spans(value, clips, known[names[name]])
            for name, value in found.items()
        }
    rows = catalog.files.videos(digests=known)
    return {
        row["digest"]: cut(
            row["duration_s"], clips.segment_s, clips.overlap_s, known[row["digest"]].shown_s
        )
        for row in rows
        if row["duration_s"] is not None
    }


def cut_videos(
    digests: Mapping[Location, str],
    clips: Clips,
    catalog: Catalog,
    failed: Collection[str],
    failure_key: Callable[[str], str],
) -> Cuts:
    """Find out how each video is cut, as far as that is known without a look at it.

    Args:
        digests: of the videos' bytes.
        clips: how to cut.
        catalog: remembers what was found.
        failed: keys of what failed in earlier runs and is not to be tried again.
        failure_key: gives the key, by a digest, under which it is known that a video cannot be cut.

    Raises:
        ConfigError: scenes are asked for, and PySceneDetect is not installed.
    """
    known = known_spans(set(digests.values()), clips, catalog)
    cuts = Cuts()
    for video, each in digests.items():
        if each in known:
            cuts.spans[video] = known[each]
        elif failure_key(each) in failed:
            cuts.known_failures.append(video)
        else:
            cuts.unsearched.append(video)
    if clips.scenes and cuts.unsearched:
        _check_extra()
    return cuts


def scene_name(video_digest: str, clips: Clips) -> str:
    """Return the name under which the catalog remembers where scenes of a video begin."""
    return f"scenes {clips.scene_detector} {threshold_of(clips):g} {video_digest}"


def search_key(video_digest: str, clips: Clips) -> str:
    """Return the key under which the look at a video that tells how it is cut is claimed."""
    length = f"length {video_digest}"
    return digest({"": scene_name(video_digest, clips) if clips.scenes else length})


def remember_scenes(
    video_digest: str, begins_s: Iterable[float], end_s: float, clips: Clips, catalog: Catalog
) -> list[Span]:
    """Remember where the scenes of a video begin, and return the clips that it is cut into."""
    value = {"begins_s": sorted(begins_s), "end_s": end_s, **_made_with()}
    catalog.files.remember(scene_name(video_digest, clips), value)
    known = readings(catalog.files, [video_digest])
    return _scene_spans(value, clips, known.get(video_digest, Reading()))


def threshold_of(clips: Clips) -> float:
    """Return how much a frame has to differ to begin a scene."""
    return clips.scene_threshold or THRESHOLDS[clips.scene_detector]


def video_row(video: Location, video_digest: str, info: VideoInfo) -> VideoRow:
    """Return a video as the catalog keeps it."""
    return {
        "digest": video_digest,
        "path": path_to_text(video),
        "duration_s": info.duration_s,
        "fps": info.fps,
        "width": info.width,
        "height": info.height,
        "total_num_frames": info.total_num_frames,
        "codec": info.codec,
        "size_bytes": size_bytes(video),
        "offset_s": info.offset_s,
    }


def size_bytes(video: Location) -> int:
    """Return the size of a file; 0 where it is gone."""
    try:
        if isinstance(video, ObjectUrl):
            return object_stores.facts(video).st_size
        return video.stat().st_size
    except (OSError, object_stores.RemoteError):
        return 0  # gone since it was read: no reason to lose what was made of it


def _scene_spans(value: Mapping[str, Any], clips: Clips, reading: Reading) -> list[Span]:
    return spans_of(
        value["begins_s"],
        value["end_s"],
        clips.min_scene_s,
        clips.segment_s,
        clips.overlap_s,
        reading.shown_s,
    )


def _check_extra() -> None:
    if absent := [name for name in ("scenedetect", "cv2") if find_spec(name) is None]:
        problem = f"--scenes needs PySceneDetect, and {absent[0]} is not installed"
        raise ConfigError(problem, extra_hint("scenes"))


def _made_with() -> dict[str, str]:
    """Return what a reader of the catalog wants to know of a search."""
    names = ("scenedetect-headless", "scenedetect")
    for name in names:
        with suppress(PackageNotFoundError):
            return {"made_with": f"{name} {version(name)}"}
    return {}
