"""Makes a small cache of random features quickly, for tests that kill processes or fill disks."""

from __future__ import annotations

from pathlib import Path

import torch

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.recovery import rows_of
from cogcache.catalog.rows import path_to_text
from cogcache.keys import FeatureKey
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest

NUM_CLIPS = 6


def write_cache(folder: Path) -> None:
    """Write a cache of made-up features, whose videos are a few bytes each."""
    store = FeatureStore.create_or_open(folder / "cache")
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        for number in range(NUM_CLIPS):
            video = folder / f"{number}.mp4"
            video.write_bytes(b"a video, for all that a catalog knows" * (number + 1))
            digest = file_digest(video)
            catalog.files.remember_digest(video, video.stat(), digest)
            key = _key(digest)
            tensor = torch.full((2, 4), float(number))
            facts = {"timestamps_s": [0.0, 1.0], "frame_indices": [0, 10], "fps": 10.0}
            facts |= {"duration_s": 2.0, "total_num_frames": 20, "decoder": "pyav"}
            facts |= {"suspect": None, "video": path_to_text(video), "model": "made-up"}
            store.write(key.digest, {"video": tensor}, {**key.fields(), **facts, "texts": {}})
            video_row, clip = rows_of(store, key.digest, video.stat().st_size)
            catalog.files.add_videos([video_row])
            catalog.clips.add([clip])
            catalog.captions.add([_caption(number, clip)])


def _key(video_digest: str) -> FeatureKey:
    return FeatureKey(
        video_digest=video_digest, start_s=0.0, end_s=None, sampling={}, preprocessing={},
        family="made-up", vision_digest="0" * 64, cache_point="projected", dtype="float32",
        epoch=1,
    )  # fmt: skip


def _caption(number: int, clip: object) -> dict[str, object]:
    names = ("feature_key", "video", "video_digest", "start_s", "end_s", "model")
    return {
        **{name: clip[name] for name in names},  # type: ignore[index]
        "caption_key": f"{number:064x}", "prompt_name": "default", "prompt": "What is it?",
        "caption": f"It is number {number}.", "quantization": "none", "flags": [],
        "num_tokens": 7, "seconds": 0.5, "settings": {},
    }  # fmt: skip
