"""Which clips each video is cut into; what that takes to know is found once and remembered.

Segments need a video's length, which its head tells. Scenes need all of its frames: `searching`
looks at those while clips of other videos are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogcache import remote
from cogcache.canonical import digest
from cogcache.catalog import Catalog, VideoRow, path_to_text
from cogcache.config import Settings
from cogcache.errors import ClipError, ConfigError
from cogcache.scenes import THRESHOLDS, Span, spans_of
from cogcache.settings_clips import Clips
from cogcache.spool import Fetching, Spool
from cogcache.stopping import ended_by_signals
from cogcache.urls import is_url
from cogcache.video import VideoInfo, cut, probe
from cogcache.workers import decode_limits, map_unordered


@dataclass(slots=True)
class Cuts:
    """How videos are cut."""

    spans: dict[Path, list[Span]] = field(default_factory=dict)
    """Of those that are known or could be found."""
    failures: list[tuple[Path, ClipError, str]] = field(default_factory=list)
    """Videos that cannot be cut, why, and the key under which that is remembered."""
    known_failures: list[Path] = field(default_factory=list)
    """Videos that could not be cut in an earlier run, and were left alone in this one."""
    unsearched: list[Path] = field(default_factory=list)
    """Videos of which it has yet to be found where their scenes begin."""


def known_spans(digests: Collection[str], clips: Clips, catalog: Catalog) -> dict[str, list[Span]]:
    """Return the clips of those videos for which the catalog knows all that cutting needs."""
    if clips.scenes:
        names = {scene_name(each, clips): each for each in digests}
        found = catalog.recall_all(names)
        return {names[name]: _scene_spans(value, clips) for name, value in found.items()}
    rows = catalog.videos(digests=digests)
    return {
        row["digest"]: cut(row["duration_s"], clips.segment_s, clips.overlap_s)
        for row in rows
        if row["duration_s"] is not None
    }


def cut_videos(
    digests: Mapping[Path, str],
    settings: Settings,
    catalog: Catalog,
    failed: Collection[str],
    whole_key: Callable[[str], str],
) -> Cuts:
    """Find out how each video is cut, as far as that takes no look at all its frames.

    Args:
        digests: of the videos' bytes.
        settings: how to cut, and what workers may do.
        catalog: remembers what is found.
        failed: keys of what failed in earlier runs and is not to be tried again.
        whole_key: gives the key of a whole video by its digest.

    Raises:
        ConfigError: scenes are asked for, and PySceneDetect is not installed.
    """
    cuts = Cuts()
    clips = settings.clips
    key_of = (lambda each: search_key(each, clips)) if clips.scenes else whole_key
    known = known_spans(set(digests.values()), clips, catalog)
    unknown = {video: each for video, each in digests.items() if each not in known}
    cuts.known_failures = [video for video, each in unknown.items() if key_of(each) in failed]
    for video in cuts.known_failures:
        del unknown[video]
    if clips.scenes and unknown:
        _check_extra()
        cuts.unsearched, unknown = [*unknown], {}
    with ended_by_signals():
        errors = _find_lengths(unknown, settings, catalog) if unknown else {}
    cuts.failures = [(video, error, key_of(unknown[video])) for video, error in errors.items()]
    found = set(unknown.values()) - {unknown[video] for video in errors}
    catalog.clear_failed([key_of(each) for each in found])
    known |= known_spans(found, clips, catalog)
    cuts.spans = {video: known[each] for video, each in digests.items() if each in known}
    return cuts


def scene_name(video_digest: str, clips: Clips) -> str:
    """Return the name under which the catalog remembers where scenes of a video begin."""
    return f"scenes {clips.scene_detector} {threshold_of(clips):g} {video_digest}"


def search_key(video_digest: str, clips: Clips) -> str:
    """Return the key under which a search for scenes is claimed, and that it failed is known."""
    return digest({"": scene_name(video_digest, clips)})


def remember_scenes(
    video_digest: str, begins_s: Iterable[float], end_s: float, clips: Clips, catalog: Catalog
) -> list[Span]:
    """Remember where the scenes of a video begin, and return the clips that it is cut into."""
    value = {"begins_s": sorted(begins_s), "end_s": end_s, **_made_with()}
    catalog.remember(scene_name(video_digest, clips), value)
    return _scene_spans(value, clips)


def threshold_of(clips: Clips) -> float:
    """Return how much a frame has to differ to begin a scene."""
    return clips.scene_threshold or THRESHOLDS[clips.scene_detector]


def video_row(video: Path, video_digest: str, info: VideoInfo) -> VideoRow:
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
    }


def size_bytes(video: Path) -> int:
    """Return the size of a file; 0 where it is gone."""
    try:
        return (remote.facts(video) if is_url(video) else video.stat()).st_size
    except (
        OSError,
        remote.RemoteError,
    ):  # gone since it was read: no reason to lose what was made of it
        return 0


def _scene_spans(value: Mapping[str, Any], clips: Clips) -> list[Span]:
    return spans_of(
        value["begins_s"], value["end_s"], clips.min_scene_s, clips.segment_s, clips.overlap_s
    )


def _find_lengths(
    videos: Mapping[Path, str], settings: Settings, catalog: Catalog
) -> dict[Path, ClipError]:
    """Look at the heads of videos, and return what cannot be looked at."""
    errors, rows = {}, []
    bar = tqdm(total=len(videos), desc="probing new videos", unit="video", disable=None)
    with bar:
        for video, result in _probed(videos, settings):
            bar.update()
            if isinstance(result, ClipError):
                errors[video] = result
            else:
                rows.append(video_row(video, videos[video], result))
    catalog.add_videos(rows)
    return errors


def _probed(
    videos: Iterable[Path], settings: Settings
) -> Iterator[tuple[Path, VideoInfo | ClipError]]:
    # In processes of their own: a container can crash a decoder before its first frame.
    vision, spool = settings.vision, Spool.of_this_machine(settings.machines.spool_gib)
    results = map_unordered(
        Fetching(probe, spool),
        videos,
        workers=vision.decode_workers,
        limits=decode_limits(vision),
        ahead=4 * vision.decode_workers,
    )
    return (each for each in results if each is not None)


def _check_extra() -> None:
    if absent := [name for name in ("scenedetect", "cv2") if find_spec(name) is None]:
        problem = f"--scenes needs PySceneDetect, and {absent[0]} is not installed"
        raise ConfigError(problem, "pip install 'cogcache[scenes]'")


def _made_with() -> dict[str, str]:
    """Return what a reader of the catalog wants to know of a search."""
    names = ("scenedetect-headless", "scenedetect")
    for name in names:
        with suppress(PackageNotFoundError):
            return {"made_with": f"{name} {version(name)}"}
    return {}
