"""Measures the listing of 100,000 captions, with and without a look at each video file.

    python -m benchmarks.listing [--captions 100000] [--folder DIR]

A caption a video; the videos are small files that hold what the catalog remembers of them. Commands
run in turn, each in a process of its own.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.pages import BATCH, caption, clip, key, video
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.readings import Reading
from cogcache.store.store import FeatureStore

COMMANDS = {
    "ls --json": ["ls", "--json"],
    "ls --json --no-check": ["ls", "--json", "--no-check"],
    "ls --limit 20": ["ls", "--limit", "20"],
    "export, JSONL": ["export", "-", "--format", "jsonl"],
}


def fill(folder: Path, cache: Path, count: int) -> None:
    """Write files and a catalog that remembers them."""
    FeatureStore.create_or_open(cache)
    rng = random.Random(0)
    with Catalog(cache / "catalog.sqlite") as catalog:
        for first in range(0, count, BATCH):
            numbers = range(first, min(count, first + BATCH))
            paths = {
                number: folder / f"{number // 1000:03}" / f"{number}.mp4" for number in numbers
            }
            for number, path in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(number.to_bytes(8, "big"))
            # Two clips a video are what rows of `pages` have; here the first alone is taken.
            rows = [(paths[number], 2 * number) for number in numbers]
            catalog.files.remember_digests(
                [(path, path.stat(), key(f"video {clip_ // 2}")) for path, clip_ in rows]
            )
            known = [f"reading {key(f'video {number}')}" for number in numbers]
            reading = asdict(Reading(shown_s=[[0.0, 48.0]]))
            memory = [{"name": name, "value": reading} for name in known]
            catalog.files._file.upsert("memory", "name", memory)  # all at once
            catalog.files.add_videos([of(path, video(clip_ // 2)) for path, clip_ in rows])
            catalog.clips.add([of(path, clip(clip_)) for path, clip_ in rows])
            catalog.captions.add(
                [
                    {
                        **of(path, caption(clip_, "default", rng)),
                        "video_digest": clip(clip_)["video_digest"],
                    }
                    for path, clip_ in rows
                ]
            )


def of(path: Path, row: Any) -> Any:
    """Return a row under the name of a file."""
    return {**row, "path" if "path" in row else "video": str(path)}


def timed(command: list[str], cache: Path) -> tuple[float, float, int]:
    """Run a command; return processor seconds, seconds by the clock, and bytes printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    line = [sys.executable, "-m", "cogcache", *command, "--cache", str(cache)]
    done = subprocess.run(line, capture_output=True, check=False)
    after, took_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    assert done.returncode == 0, done.stderr.decode()[-500:]
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used_s, took_s, len(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as root:
        folder, cache = Path(root, "films"), Path(root, "cache")
        fill(folder, cache, asked.captions)
        print("| command | processor | by the clock | printed |\n| --- | --- | --- | --- |")
        for name, command in COMMANDS.items():
            used_s, took_s, size = timed(command, cache)
            print(f"| {name} | {used_s:.1f} s | {took_s:.1f} s | {size / 1e6:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
