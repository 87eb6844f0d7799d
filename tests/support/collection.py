"""A small cache to look at, without a model: real videos, features and rows; some are hostile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from videos import write_video

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import RunEnd, path_to_text
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest
from cogcache.video.reading import thumbnail

SCRIPT = "<script>document.title = 'taken'</script>"
HOSTILE_NAME = '"><img src=x onerror="document.title=\'taken\'"><b>\u202egpj.mp4'
MODEL = "tiny"
PROMPTS = {"default": "Please describe this video in detail.", "color": "What color is it?"}


@dataclass(frozen=True, slots=True)
class Collection:
    """The cache, its videos in order of names, and the keys of their clips."""

    cache: Path
    videos: list[Path]
    keys: list[str]
    digests: list[str]


def make_collection(folder: Path) -> Collection:
    """Make a cache of four clips of three videos, with captions, failures and runs."""
    clips = [
        ("a-harbour.mp4", (0.0, 2.0), ["A red boat leaves the harbour.", "Red."]),
        ("a-harbour.mp4", (2.0, None), ["A blue boat enters the harbour slowly.", "Blue."]),
        ("b-scripts.mp4", (0.0, None), [f"A page that says {SCRIPT} & more.", ""]),
        (HOSTILE_NAME, (0.0, None), ["一只红色的船。", "Red $x$."]),
    ]
    names = dict.fromkeys(name for name, _, _ in clips)
    videos = {name: folder / "videos" / name for name in names}
    (folder / "videos").mkdir(parents=True)
    for number, path in enumerate(videos.values()):
        write_video(path, num_frames=40 + number, fps=10, size=(192, 96))
    store = FeatureStore.create_or_open(folder / "cache")
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        for path in videos.values():
            catalog.files.add_videos([_video(catalog, path)])
        _add_runs(catalog)
        for number, (name, span, texts) in enumerate(clips):
            _add_clip(catalog, store, _key(number), videos[name], span)
            catalog.captions.add(_captions(number, videos[name], span, texts))
        catalog.failures.add(_failure(folder / "videos" / f"broken{SCRIPT[:8]}.mp4"))
    digests = [file_digest(path) for path in videos.values()]
    keys = [_key(number) for number in range(len(clips))]
    return Collection(folder / "cache", list(videos.values()), keys, digests)


def _key(number: int) -> str:
    return f"{number:064x}"


def _video(catalog: Catalog, path: Path) -> Any:
    return {
        "digest": catalog.files.digest_of(path),
        "path": path_to_text(path),
        "duration_s": 4.0,
        "fps": 10.0,
        "width": 192,
        "height": 96,
        "total_num_frames": 40,
        "codec": "h264",
        "size_bytes": path.stat().st_size,
    }


def _add_clip(
    catalog: Catalog, store: FeatureStore, key: str, path: Path, span: tuple[float, float | None]
) -> None:
    frames = np.full((1, 96, 192, 3), (40, 90, 160), np.uint8)
    size = store.write(key, {"x": torch.zeros(1)}, {"video": str(path)}, thumbnail(frames))
    row: Any = {
        "feature_key": key,
        "video_digest": catalog.files.digest_of(path),
        "video": path_to_text(path),
        "start_s": span[0],
        "end_s": span[1],
        "family": "cogvlm2",
        "model": MODEL,
        "num_frames": 4,
        "size_bytes": size,
        "decoder": "decord",
        "settings": {},
        "run": 1,
    }
    catalog.clips.add([row])
    catalog.cuts.add([(key, "clip")])


def _captions(
    number: int, path: Path, span: tuple[float, float | None], texts: list[str]
) -> list[Any]:
    return [
        {
            "caption_key": f"{name}-{number}-{kind}",
            "feature_key": _key(number),
            "video": path_to_text(path),
            "start_s": span[0],
            "end_s": span[1],
            "prompt_name": name,
            "prompt": prompt,
            "caption": text if kind == "nf4" else text.replace("Red", "Crimson"),
            "model": MODEL,
            "quantization": kind,
            "flags": [] if text else ["empty"],
            "num_tokens": 3 * len(text.split()),
            "seconds": 0.5,
            "settings": {"prompt": prompt},
            "run": 2,
        }
        for (name, prompt), text in zip(PROMPTS.items(), texts, strict=True)
        for kind in ("nf4", "none")
    ]


def _failure(path: Path) -> Any:
    return {
        "video": path_to_text(path),
        "start_s": 0.0,
        "end_s": None,
        "stage": "extract",
        "feature_key": None,
        "reason": "no_video_stream",
        "message": f"{path} holds no picture <b>at all</b>",
    }


def _add_runs(catalog: Catalog) -> None:
    for command, bytes_read in (("extract", 400), ("caption", 600)):
        run = catalog.runs.start(command, MODEL, {"model": MODEL})
        samples = [
            {
                "time_s": 0.1 * i,
                "anonymous_bytes": 5_000_000 * i,
                "file_bytes": 90_000_000,
                "device_bytes": 0,
                "reserved_bytes": 0,
            }
            for i in range(20)
        ]
        end = RunEnd(
            "done",
            planned_peak_bytes=150_000_000,
            measured_peak_bytes=185_000_000,
            split={"load": 0.5, "encode": 1.25},
            counts={"found": 4, "cached": 0, "done": 4, "failed": 0, "skipped": 0},
            report={
                "timeline": samples,
                "total_s": 2.0,
                "base_bytes": 90_000_000,
                "bytes_by_shard": {"model.safetensors": bytes_read},
                "versions": {"cogcache": "0"},
                "stopped": None,
                "quantization": None,
            },
        )
        catalog.runs.finish(run, end)
