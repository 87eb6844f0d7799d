"""Caches whose feature files and rows are made up, without a model: small and made in no time."""

from __future__ import annotations

from pathlib import Path

import torch

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.recovery import rows_of
from cogcache.catalog.rows import CaptionRow, ClipRow, path_to_text
from cogcache.catalog.whole_rows import TABLES
from cogcache.keys import FeatureKey
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest

AS_VERSION_7 = (
    "DROP TRIGGER main.captions_sd",
    "DROP TRIGGER main.captions_su",
    *(f"DROP TABLE main.{table.name}" for table in TABLES if table.since > 7),
    *(
        f"ALTER TABLE main.{table.name} DROP COLUMN checksum"
        for table in TABLES
        if table.since <= 7
    ),
    "DELETE FROM _sqlite_migrations WHERE name >= '0008'",
    "PRAGMA user_version = 7",
)
"""Takes a catalog back to what it was before rows bore checksums."""


def key_of(video_digest: str, start_s: float = 0.0, end_s: float | None = None) -> FeatureKey:
    return FeatureKey(
        video_digest=video_digest,
        start_s=start_s,
        end_s=end_s,
        sampling={"strategy": "per_second", "max_frames": 24, "window_s": 60.0},
        preprocessing={"image_size": 8},
        family="made-up",
        vision_digest="0" * 64,
        cache_point="projected",
        dtype="float32",
        epoch=1,
    )


def write_clip_features(store: FeatureStore, video: Path, key: FeatureKey) -> str:
    """Seal one clip's made-up features, told apart by its key; return the key's digest."""
    seed = int(key.digest[:8], 16)
    tensor = torch.randn((2, 4), generator=torch.Generator().manual_seed(seed))
    facts = {"timestamps_s": [0.0, 1.0], "frame_indices": [0, 10], "fps": 10.0}
    facts |= {"duration_s": 2.0, "total_num_frames": 20, "decoder": "pyav", "suspect": None}
    told = {**key.fields(), **facts, "video": path_to_text(video), "model": "made-up", "texts": {}}
    store.write(key.digest, {"video": tensor}, told)
    return key.digest


def make_cache(root: Path, num_videos: int = 3) -> list[str]:
    """Make a cache of as many clips under ``root/cache``, their "videos" beside it.

    Returns:
        The keys of the clips, by the number in the video's name.
    """
    store = FeatureStore.create_or_open(root / "cache")
    keys = []
    with Catalog(root / "cache" / "catalog.sqlite") as catalog:
        for number in range(num_videos):
            video = root / f"{number}.mp4"
            video.write_bytes(b"a video, for all that a catalog knows" * (number + 1))
            catalog.files.remember_digest(video, video.stat(), file_digest(video))
            keys.append(write_clip_features(store, video, key_of(file_digest(video))))
            row, clip = rows_of(store, keys[-1], video.stat().st_size)
            catalog.files.add_videos([row])
            catalog.clips.add([clip])
        catalog.captions.add([caption_of(clip) for clip in catalog.clips.rows()])
    return keys


def caption_of(clip: ClipRow) -> CaptionRow:
    return {
        "caption_key": clip["feature_key"][::-1],
        "feature_key": clip["feature_key"],
        "video": clip["video"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "prompt_name": "default",
        "prompt": "What is it?",
        "caption": f"What is seen in {clip['video']}",
        "model": "made-up",
        "quantization": "none",
        "flags": [],
        "num_tokens": 7,
        "seconds": 0.5,
        "settings": {},
    }
