"""From a sealed feature file back to its rows in the catalog.

A process that dies between the two leaves features that no row names. The file says it all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import ClipRow, VideoRow, text_to_path
from cogcache.catalog.values import misfits
from cogcache.errors import CorruptFeaturesError
from cogcache.keys import FeatureKey
from cogcache.store import FeatureStore
from cogcache.system import ObjectUrl


def rows_of(store: FeatureStore, key: str, video_size_bytes: int) -> tuple[VideoRow, ClipRow]:
    """Return the rows that stage one would have written for a feature file.

    Args:
        store: where the file lies.
        key: the digest of its feature key.
        video_size_bytes: size of the video, which the file does not tell.

    Raises:
        CorruptFeaturesError: the file is damaged.
    """
    told = _Told(store.describe(key))
    times_s = told["timestamps_s"]
    if not isinstance(times_s, Sequence) or isinstance(times_s, str):
        raise CorruptFeaturesError("its timestamps are no list of times")
    video: VideoRow = {
        "digest": told["video_digest"],
        "path": told["video"],
        "duration_s": told["duration_s"],
        "fps": told["fps"],
        "width": told.get("width"),
        "height": told.get("height"),
        "total_num_frames": told["total_num_frames"],
        "codec": told.get("codec"),
        "size_bytes": video_size_bytes,
        "offset_s": told.get("offset_s"),
    }
    clip: ClipRow = {
        "feature_key": key,
        "video_digest": told["video_digest"],
        "video": told["video"],
        "start_s": told["start_s"],
        "end_s": told["end_s"],
        "family": told["family"],
        "model": told["model"],
        "num_frames": len(times_s),
        "size_bytes": store.size_bytes(key),
        "decoder": told["decoder"],
        "settings": {field.name: told[field.name] for field in fields(FeatureKey)},
    }
    if told.get("cut") is not None:
        clip["cut"] = told["cut"]
        _check("cuts", {"cut": clip["cut"]})
    _check("videos", video)
    _check("clips", {**clip, "settings": json.dumps(clip["settings"])})
    return video, clip


class _Told(dict[str, Any]):
    """What a file says; that it does not say something makes it a damaged one."""

    def __missing__(self, name: str) -> Any:
        raise CorruptFeaturesError(f"it does not say its {name}")


def _check(table: str, row: Mapping[str, Any]) -> None:
    if wrong := misfits(table, row):
        raise CorruptFeaturesError(f"it says of its {', '.join(wrong)} what nothing can be")


def adopt(catalog: Catalog, rows: Iterable[tuple[VideoRow, ClipRow]]) -> int:
    """Add clips to the catalog by what their files say; what it knows of videos stays."""
    pairs = [*rows]
    known = {row["digest"] for row in catalog.files.videos()}
    catalog.files.add_videos(
        {**video, "size_bytes": _size_bytes(video["path"])}
        for video, _ in pairs
        if video["digest"] not in known
    )
    catalog.clips.add([clip for _, clip in pairs])
    catalog.captions.note_videos()
    return len(pairs)


def _size_bytes(video: str) -> int:
    path = text_to_path(video)
    try:
        return 0 if isinstance(path, ObjectUrl) else path.stat().st_size
    except OSError:
        return 0
