"""Measures the time and memory that `cogcache extract` needs to find that nothing is left to do.

    python -m benchmarks.restart 1000 10000 100000

The cache is made up: as many small files stand for videos, and for each there is a row and an
empty feature file, under the key that stage one would give it. Nothing of them is read when a run
starts: that a file exists is what counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import ClipRow, VideoRow
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.registry import family_of
from cogcache.settings.settings import Settings
from cogcache.stages.clips.worklist import Wanted
from cogcache.store.store import FeatureStore

A_TIME = 5000
MEASURED = """
import resource, subprocess, sys, time
began_s = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
took_s = time.perf_counter() - began_s
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(took_s, used.ru_utime + used.ru_stime, used.ru_maxrss, done.returncode)
print(done.stdout, done.stderr)
"""


def write_videos(folder: Path, first: int, last: int) -> Iterator[tuple[Path, str]]:
    """Write files that stand for videos; yield each with its digest."""
    for number in range(first, last):
        path = folder / f"{number // 1000:03}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = f"video {number}".encode()
        path.write_bytes(content)
        yield path, sha256(content).hexdigest()


def fill(root: Path, first: int, last: int) -> None:
    """Add clips to a cache that need not be made again."""
    settings, cache = Settings(), root / "cache"
    store = FeatureStore.create_or_open(cache)
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    with Catalog(cache / "catalog.sqlite") as catalog:
        family = family.at(settings.vision.cache_point) if hasattr(family, "at") else family
        wanted = Wanted(settings, family, identify(family, "vision", catalog.files))
        for start in range(first, last, A_TIME):
            videos: list[VideoRow] = []
            clips: list[ClipRow] = []
            remembered = []
            for path, digest in write_videos(root / "videos", start, min(start + A_TIME, last)):
                key = wanted.key(digest, (0.0, None))
                features = store.path_of(key.digest)
                features.parent.mkdir(parents=True, exist_ok=True)
                features.touch()
                remembered.append((path, path.stat(), digest))
                videos.append(
                    {
                        "digest": digest, "path": str(path), "duration_s": 10.0, "fps": 25.0,
                        "width": 640, "height": 360, "total_num_frames": 250, "codec": "h264",
                        "size_bytes": path.stat().st_size,
                    }
                )  # fmt: skip
                clips.append(
                    {
                        "feature_key": key.digest, "video_digest": digest, "video": str(path),
                        "start_s": 0.0, "end_s": None, "family": key.family, "model": "tiny",
                        "num_frames": 11, "size_bytes": 10_000, "decoder": "decord",
                        "settings": key.fields(),
                    }
                )  # fmt: skip
            catalog.files.remember_digests(remembered)
            catalog.files.add_videos(videos)
            catalog.clips.add(clips)


def measure(root: Path) -> tuple[float, float, int, str]:
    """Return seconds, those of the processor, bytes at the peak, and what was said."""
    command = [sys.executable, "-m", "cogcache", "extract", root / "videos", "--cache"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command), str(root / "cache")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    took, busy, peak_kib, status, said = done.stdout.split(maxsplit=4)
    if status != "0":
        sys.exit(said)
    return float(took), float(busy), int(peak_kib) * 1024, said.splitlines()[0]


def main() -> None:
    """Fill, measure three times, print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=int, nargs="*", default=[1000, 10_000, 100_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, filled = Path(folder), 0
        for clips in sorted(given.clips):
            fill(root, filled, clips)
            filled = clips
            runs = [measure(root) for _ in range(3)]
            times = ", ".join(f"{took:.2f} ({busy:.2f})" for took, busy, _, _ in runs)
            peak = max(peak for _, _, peak, _ in runs) / 1e6
            said = f"{times} s (of the processor), peak {peak:.0f} MB; {runs[0][3]}"
            print(f"{clips} clips: {said}", flush=True)


if __name__ == "__main__":
    main()
