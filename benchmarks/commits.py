"""Measures how many rows a second one writer can add to a catalog, and how large it gets.

    python -m benchmarks.commits

Rows are as the flagship's: settings in full, captions of 60 to 120 words, full text index and sums
kept. Every commit waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.published import publish
from cogcache.catalog.rows import CaptionRow, ClipRow, VideoRow
from cogcache.catalog.upkeep.merge import merge
from cogcache.settings.settings import load_settings
from cogcache.store.store import FeatureStore

BATCHES = (1, 8, 64, 512)
WORDS = [
    "".join(random.Random(n).choices("abcdefghiklmnoprstuw", k=3 + n % 8)) for n in range(5000)
]
SETTINGS = load_settings(None, {}).model_dump(mode="json")


def digest(*parts: object) -> str:
    """Return 64 hexadecimal digits that stand for some parts."""
    return f"{random.Random(repr(parts)).getrandbits(256):064x}"


def rows(name: str, number: int) -> tuple[VideoRow, ClipRow, CaptionRow]:
    """Return the rows of one clip."""
    rng = random.Random(f"{name} {number}")
    video, key = f"/data/videos/{name}/{number:08}.mp4", digest("clip", name, number)
    fields = {
        "video_digest": digest("video", name, number), "start_s": 0.0, "end_s": None,
        "sampling": SETTINGS["sampling"], "family": "cogvlm2", "vision_digest": digest("vision"),
        "preprocessing": {"image_size": 224, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
        "cache_point": "projected", "dtype": "bfloat16", "epoch": 1,
    }  # fmt: skip
    span: dict[str, Any] = {"video": video, "start_s": 0.0, "end_s": None}
    model = "THUDM/cogvlm2-llama3-caption"
    text = " ".join(rng.choices(WORDS, k=rng.randint(60, 120)))
    caption_fields = {
        "feature_key": key, "language_digest": digest("language"), "prompt": "Describe it.",
        "quantization": {"kind": "nf4"}, "layout": "chat", "generation": SETTINGS["generation"],
        "rotary_dtype": "bfloat16", "epoch": 1,
    }  # fmt: skip
    return (
        {
            "digest": str(fields["video_digest"]), "path": video, "duration_s": 24.0, "fps": 30.0,
            "width": 1280, "height": 720, "total_num_frames": 720, "codec": "h264",
            "size_bytes": 6_000_000,
        },
        {
            **span, "feature_key": key, "video_digest": str(fields["video_digest"]),
            "family": "cogvlm2", "model": model, "num_frames": 24, "size_bytes": 8_900_000,
            "decoder": "decord", "settings": fields,
        },
        {
            **span, "caption_key": digest("caption", name, number), "feature_key": key,
            "prompt_name": "default", "prompt": "Describe it.", "caption": text, "model": model,
            "quantization": "nf4", "flags": [], "num_tokens": 150, "seconds": 1.5,
            "settings": caption_fields,
        },
    )  # type: ignore[return-value]  # fmt: skip


def write(path: Path, name: str, clips: int, batch: int, seconds: float) -> tuple[int, list[float]]:
    """Add clips and captions batch by batch, as stages do; return how many, and each wait."""
    waits: list[float] = []
    made = [rows(name, number) for number in range(clips)]
    began_s = time.perf_counter()
    done = 0
    with Catalog(path) as catalog:
        while done < clips and time.perf_counter() - began_s < seconds:
            some = made[done : done + batch]
            started_s = time.perf_counter()
            catalog.files.add_videos([video for video, _, _ in some])
            catalog.clips.add([clip for _, clip, _ in some])
            catalog.failures.clear_failed([clip["feature_key"] for _, clip, _ in some])
            catalog.captions.add([caption for _, _, caption in some])
            waits.append(time.perf_counter() - started_s)
            done += len(some)
    return done, waits


def together(path: Path, writers: int, batch: int, seconds: float) -> tuple[float, float]:
    """Return clips a second of several processes on one catalog, and the 99th wait of 100."""
    jobs = [
        (path, f"{writers}-{n}", 200_000 // writers // 20, batch, seconds) for n in range(writers)
    ]
    with multiprocessing.get_context("fork").Pool(writers) as pool:
        began_s = time.perf_counter()
        results = pool.starmap(write, jobs)
        passed_s = time.perf_counter() - began_s
    waits = sorted(wait for _, some in results for wait in some)
    return sum(done for done, _ in results) / passed_s, waits[int(len(waits) * 0.99) - 1]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000, help="of the large catalog")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        folder = Path(temporary)
        with suppress(FileExistsError):
            FeatureStore.create_or_open(folder / "cache")
        path = folder / "cache/catalog.sqlite"
        for batch in BATCHES:
            done, waits = write(path, f"batch-{batch}", 6000, batch, given.seconds)
            median = statistics.median(waits)
            print(f"{batch} clips a commit: {done / sum(waits):.0f} clips/s, {median * 1e3:.1f} ms")
        for writers in (2, 4, 8):
            rate, late = together(path, writers, 8, given.seconds)
            print(f"{writers} processes, 8 a commit: {rate:.0f} clips/s, p99 {late * 1e3:.0f} ms")
        large(folder, given.clips, given.seconds)


def large(folder: Path, clips: int, seconds: float) -> None:
    """Fill a catalog, and print what its size costs."""
    FeatureStore.create_or_open(folder / "large")
    path = folder / "large/catalog.sqlite"
    began_s = time.perf_counter()
    for start in range(0, clips, 10_000):
        write(path, f"large-{start}", min(10_000, clips - start), 1000, 1e9)
    print(
        f"{clips} clips and captions written in {time.perf_counter() - began_s:.0f} s, made and all"
    )
    print(f"{path.stat().st_size / clips:.0f} bytes a clip with its caption")
    done, waits = write(path, "late", 6000, 8, seconds)
    print(f"8 clips a commit at that size: {done / sum(waits):.0f} clips/s")
    began_s = time.perf_counter()
    copy = publish(path, folder / "other", "copy")
    print(f"a copy is published in {time.perf_counter() - began_s:.1f} s")
    began_s = time.perf_counter()
    merged = merge([copy], folder / "merged")
    passed_s = time.perf_counter() - began_s
    print(json.dumps({"captions": merged.captions, "captions_per_s": merged.captions / passed_s}))


if __name__ == "__main__":
    main()
