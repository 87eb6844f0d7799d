"""Which clips each video is cut into; what that takes to know is found once and remembered.

Segments need a video's length, which its head tells. Scenes need all of its frames: they are
searched for in worker processes, with time-outs and failures as at decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from cogcache import remote
from cogcache.canonical import digest
from cogcache.catalog import Catalog, VideoRow, path_to_text
from cogcache.config import Settings
from cogcache.errors import ClipError, ConfigError
from cogcache.scenes import THRESHOLDS, Extent, Span, extent_of, pieces_of, search, spans_of
from cogcache.settings_clips import Clips
from cogcache.spool import Fetching, Spool
from cogcache.stopping import ended_by_signals
from cogcache.urls import is_url
from cogcache.video import VideoInfo, cut, probe
from cogcache.workers import decode_limits, map_unordered

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(slots=True)
class Cuts:
    """How videos are cut."""

    spans: dict[Path, list[Span]] = field(default_factory=dict)
    """Of those that are known or could be found."""
    failures: list[tuple[Path, ClipError, str]] = field(default_factory=list)
    """Videos that cannot be cut, why, and the key under which that is remembered."""
    known_failures: list[Path] = field(default_factory=list)
    """Videos that could not be cut in an earlier run, and were left alone in this one."""


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
    """Find out how each video is cut.

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
    key_of = (lambda each: digest({"": scene_name(each, clips)})) if clips.scenes else whole_key
    known = known_spans(set(digests.values()), clips, catalog)
    unknown = {video: each for video, each in digests.items() if each not in known}
    cuts.known_failures = [video for video, each in unknown.items() if key_of(each) in failed]
    for video in cuts.known_failures:
        del unknown[video]
    find = _find_scenes if clips.scenes else _find_lengths
    with ended_by_signals():
        errors = find(unknown, settings, catalog) if unknown else {}
    cuts.failures = [(video, error, key_of(unknown[video])) for video, error in errors.items()]
    found = set(unknown.values()) - {unknown[video] for video in errors}
    catalog.clear_failed([key_of(each) for each in found])
    known |= known_spans(found, clips, catalog)
    cuts.spans = {video: known[each] for video, each in digests.items() if each in known}
    return cuts


def scene_name(video_digest: str, clips: Clips) -> str:
    """Return the name under which the catalog remembers where scenes of a video begin."""
    return f"scenes {clips.scene_detector} {_threshold(clips):g} {video_digest}"


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


def _threshold(clips: Clips) -> float:
    return clips.scene_threshold or THRESHOLDS[clips.scene_detector]


def _scene_spans(value: Mapping[str, Any], clips: Clips) -> list[Span]:
    return spans_of(
        value["begins_s"], value["end_s"], clips.min_scene_s, clips.segment_s, clips.overlap_s
    )


def _find_lengths(
    videos: Mapping[Path, str], settings: Settings, catalog: Catalog
) -> dict[Path, ClipError]:
    """Look at the heads of videos, and return what cannot be looked at."""
    errors, rows = {}, []
    with _bar(len(videos), "probing new videos", "video") as bar:
        for video, result in _in_workers(probe, videos, settings):
            bar.update()
            if isinstance(result, ClipError):
                errors[video] = result
            else:
                rows.append(video_row(video, videos[video], result))
    catalog.add_videos(rows)
    return errors


def _find_scenes(
    videos: Mapping[Path, str], settings: Settings, catalog: Catalog
) -> dict[Path, ClipError]:
    """Search all frames of videos for cuts, and return what cannot be searched.

    What is found of a video is remembered when all its pieces are done.
    """
    _check_extra()
    once = {each: video for video, each in reversed(list(videos.items()))}
    extents, errors = _extents(list(once.values()), settings)
    clips = settings.clips
    pieces = (
        piece
        for video, extent in extents.items()
        for piece in pieces_of(video, extent, clips.scene_detector, _threshold(clips))
        if video not in errors
    )
    begins_s: dict[Path, list[float]] = {video: [] for video in extents}
    left = {video: extent.num_frames for video, extent in extents.items()}
    with _bar(sum(left.values()), "finding scenes", "frame") as bar:
        for piece, result in _in_workers(search, pieces, settings):
            video, num_frames = piece.video, piece.stop - piece.first
            bar.update(num_frames)
            if isinstance(result, ClipError):
                errors[video] = result
                continue
            begins_s[video] += result
            left[video] -= num_frames
            if not left[video]:
                value = {"begins_s": sorted(begins_s[video]), "end_s": extents[video].end_s}
                catalog.remember(scene_name(videos[video], clips), {**value, **_made_with()})
    return {video: errors[once[each]] for video, each in videos.items() if once[each] in errors}


def _extents(
    videos: Sequence[Path], settings: Settings
) -> tuple[dict[Path, Extent], dict[Path, ClipError]]:
    extents: dict[Path, Extent] = {}
    errors: dict[Path, ClipError] = {}
    with _bar(len(videos), "counting frames", "video") as bar:
        for video, result in _in_workers(extent_of, videos, settings):
            bar.update()
            if isinstance(result, ClipError):
                errors[video] = result
            else:
                extents[video] = result
    return extents, errors


def _in_workers(
    task: Callable[[Job], Result], jobs: Iterable[Job], settings: Settings
) -> Iterator[tuple[Job, Result | ClipError]]:
    # In processes of their own: a container can crash a decoder before its first frame.
    vision, spool = settings.vision, Spool.of_this_machine(settings.machines.spool_gib)
    return map_unordered(
        Fetching(task, spool),
        jobs,
        workers=vision.decode_workers,
        limits=decode_limits(vision),
        ahead=4 * vision.decode_workers,
    )


def _bar(total: int, what: str, unit: str) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit=unit, unit_scale=total > 10_000, disable=None)


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
