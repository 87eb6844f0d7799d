"""A small cache with captions of real videos, for the tests of exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cogcache.catalog.catalog import Catalog
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest
from cogcache.video.reading import probe

HOSTILE = 'A red, "big" ball:\r\nit rolls <b>on</b> & on\u2028then\x85stops --> there.\n'
PLAIN = "一个蓝色的圆圈。"
CUT = "It turns left."


def make_cache(root: Path) -> Path:
    """Make a cache of three clips: a whole MP4, a part of it, and a whole Matroska file."""
    films = root / "films" / "test set"
    films.mkdir(parents=True)
    first, second = films / "val.1.mp4", films / "b.mkv"
    for number, path in enumerate((first, second)):
        write_clip(draw_scene(np.random.default_rng(number)), path)
    FeatureStore.create_or_open(root / "cache")
    with Catalog(root / "cache" / "catalog.sqlite") as catalog:
        for path in (first, second):
            add_video(catalog, path)
        add_caption(catalog, first, 0.0, None, HOSTILE)
        add_caption(catalog, first, 0.5, 1.5, CUT)
        add_caption(catalog, second, 0.0, None, PLAIN)
    return root / "cache"


def add_video(catalog: Catalog, path: Path) -> None:
    info = probe(path)
    names = ("duration_s", "fps", "width", "height", "total_num_frames", "codec")
    row = {name: getattr(info, name) for name in names}
    row |= {"digest": file_digest(path), "path": str(path), "size_bytes": path.stat().st_size}
    catalog.files.add_videos([row])


def add_caption(
    catalog: Catalog, video: Path, start_s: float, end_s: float | None, text: str, **other: object
) -> None:
    """Add a clip of a video, if it is not there, and a caption of it."""
    digest = file_digest(video)
    key = f"{digest[:32]}{round(start_s * 1000):032x}"
    clip = {"feature_key": key, "video_digest": digest, "video": str(video), "start_s": start_s}
    clip |= {"end_s": end_s, "family": "f", "model": "tiny", "num_frames": 4, "size_bytes": 9}
    catalog.clips.add([clip | {"decoder": "pyav", "settings": {}}])
    catalog.cuts.add([(key, "clip")])
    number = len(catalog.captions.rows())
    row = {"caption_key": f"{number:064x}", "feature_key": key, "video": str(video)}
    row |= {"start_s": start_s, "end_s": end_s, "prompt_name": "default", "prompt": "Describe."}
    row |= {"caption": text, "model": "tiny", "quantization": "nf4", "flags": [], "num_tokens": 7}
    row |= {"seconds": 0.5, "settings": {}, "created_at": "2026-03-05T10:00:00+00:00"}
    catalog.captions.add([row | other])


def add_features(cache: Path) -> None:
    """Seal features for every clip of the cache."""
    store = FeatureStore.open(cache)
    with Catalog(cache / "catalog.sqlite") as catalog:
        for clip in catalog.clips.rows():
            numbers = torch.randn(24, 64, 64, generator=torch.Generator().manual_seed(1))
            tensors = {"features": numbers.bfloat16(), "grid": torch.tensor([24, 8, 8])}
            store.write(clip["feature_key"], tensors, {"video": clip["video"], "fps": 8.0})


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
