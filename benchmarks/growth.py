"""Checks that a long run does not grow: time and memory for each part of a run of tiny clips.

    python -m benchmarks.growth --clips 20000 --piece 2000 --folder DIR
    python -m benchmarks.growth --folder DIR --only more

`extract` and `caption` are each one process over all clips, looked at from outside: the processor
seconds are those of the process and all its workers. Then 200 clips more are made on the full
cache, beside 200 on an empty one. DIR keeps what was made; a second call goes on with it.

A busy machine makes the same work dearer: processors share caches and clocks. So a piece of work
that is always the same is timed every few seconds; the last column is a clip's time divided by it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

MORE = 200
_FRAMES, _SIZE_PX = 2, 32
_A_FOLDER = 500
"""Clips in one folder: those of a piece."""


@dataclass(frozen=True)
class Sample:
    """A process and its workers at one moment."""

    clips: int
    cpu_s: float
    wall_s: float
    main_bytes: int
    all_bytes: int
    """Resident, of all its processes; what they share is counted for each."""
    files: int
    """Open files of the main process."""
    same_s: float
    """Processor seconds of the work that is always the same."""


def same_work_s() -> float:
    """Return the processor seconds of some work in Python and in memory, always the same."""
    began_s = time.thread_time()
    numbers = np.arange(1 << 20, dtype=np.float32)
    for _ in range(8):
        numbers = np.sqrt(numbers + 1.0)
    sum(number * number for number in range(200_000))
    return time.thread_time() - began_s


def write_clip(path: Path, number: int) -> None:
    """Write a video of two frames whose bytes are those of no other."""
    rng = np.random.default_rng(number)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
        stream.width = stream.height = _SIZE_PX
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 2)
        ground, other = rng.integers(0, 255, (2, 3), np.uint8)
        for frame in range(_FRAMES):
            picture = np.broadcast_to(ground, (_SIZE_PX, _SIZE_PX, 3)).copy()
            picture[4 + 8 * frame : 14 + 8 * frame, 8:24] = other
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        container.mux(stream.encode(None))


def write_clips(folder: Path, first: int, count: int) -> None:
    """Write clips into folders of 500, those that are not there."""
    for number in range(first, first + count):
        path = folder / f"{number // _A_FOLDER:03}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_clip(path, number)


def count_of(catalog: Path, table: str) -> int:
    """Return how many rows a table of a catalog has; 0 while there is none."""
    if not catalog.exists():
        return 0
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(catalog, timeout=5)) as conn:
        return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    return 0


def looks(process: subprocess.Popen[bytes], clips: Callable[[], int]) -> Iterator[Sample]:
    """Yield what a process takes, twice a second until it ends."""
    main, began_s = psutil.Process(process.pid), time.monotonic()
    looked, same_s = 0, 0.0
    while process.poll() is None:
        same_s = same_work_s() if looked % 8 == 0 else same_s
        looked += 1
        with suppress(psutil.Error):
            some = [main, *main.children(recursive=True)]
            cpu_s, all_bytes = sum(main.cpu_times()[:4]), 0
            for each in some:
                with suppress(psutil.Error):
                    cpu_s += sum(each.cpu_times()[:4]) if each is not main else 0.0
                    all_bytes += each.memory_info().rss
            yield Sample(
                clips(), cpu_s, time.monotonic() - began_s, main.memory_info().rss, all_bytes,
                main.num_fds(), same_s,
            )  # fmt: skip
        time.sleep(0.5)


def run(arguments: list[str], catalog: Path, table: str) -> tuple[list[Sample], int]:
    """Run a command to its end; return what it took on the way, and its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cogcache", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return [*looks(process, lambda: count_of(catalog, table))], process.wait()
    finally:
        process.kill()


def print_pieces(name: str, samples: list[Sample], piece: int) -> None:
    """Print a line for each piece of a run: what a clip of it took."""
    print(f"{name}\n{'to clip':>8} {'cpu ms/clip':>12} {'clips/s':>8} {'main MiB':>9}"
          f" {'all MiB':>8} {'files':>6} {'same ms':>8} {'by it':>7}")  # fmt: skip
    worked = [each for each in samples if each.clips]
    begin, figures, ratios = 0, [], []
    for number, end in enumerate(worked):
        first = worked[begin]
        done = end.clips - first.clips
        is_last = number == len(worked) - 1 and done > piece / 2
        if done < piece and not is_last:
            continue
        cpu_ms = (end.cpu_s - first.cpu_s) / done * 1000
        same_ms = 1000 * float(np.mean([each.same_s for each in worked[begin:number]]))
        figures.append(cpu_ms)
        ratios.append(cpu_ms / same_ms)
        speed = done / (end.wall_s - first.wall_s)
        print(f"{end.clips:>8} {cpu_ms:>12.2f} {speed:>8.1f} {end.main_bytes / 2**20:>9.0f}"
              f" {end.all_bytes / 2**20:>8.0f} {end.files:>6} {same_ms:>8.1f} {ratios[-1]:>7.3f}",
              flush=True)  # fmt: skip
        begin = number
    for what, some in (("cpu", figures), ("by the same work", ratios)):
        if len(some) > 1:
            print(f"{what}: last by first: {some[-1] / some[0]:.3f};"
                  f" greatest by least: {max(some) / min(some):.3f}")  # fmt: skip


def stages(cache: Path, clips: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yield the two stages: name, what is typed, the table that they fill."""
    common = ["--cache", str(cache), "--model", "tiny"]
    yield "extract", ["extract", str(clips), *common], "clips"
    yield "caption", ["caption", *common, "--max-new-tokens", "4"], "captions"


def more(folder: Path, number: int) -> None:
    """Print what 200 clips take on the full cache, and on an empty one."""
    write_clips(folder / "more", 1_000_000, MORE)
    for where, cache in (("the full cache", folder / "cache"), ("an empty one", folder / "empty")):
        for name, arguments, table in stages(cache, folder / "more"):
            catalog = cache / "catalog.sqlite"
            before = count_of(catalog, table)
            samples, status = run(arguments, catalog, table)
            made, last = count_of(catalog, table) - before, samples[-1]
            memory = max(each.main_bytes for each in samples) / 2**20
            print(f"{MORE} more on {where} ({before} there), {name}: {made} made, status {status},"
                  f" {last.cpu_s:.1f} s processor, {last.wall_s:.1f} s, {memory:.0f} MiB",
                  flush=True)  # fmt: skip
    shutil.rmtree(folder / "empty")


def main() -> None:
    """Parse, make clips, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--piece", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=("clips", "extract", "caption", "more"))
    given = parser.parse_args()
    random.seed(0)
    write_clips(given.folder / "clips", 0, given.clips)
    cache = given.folder / "cache"
    for name, arguments, table in stages(cache, given.folder / "clips"):
        if given.only in (None, name):
            samples, status = run(arguments, cache / "catalog.sqlite", table)
            print_pieces(f"{name}: status {status}", samples, given.piece)
    if given.only in (None, "more"):
        more(given.folder, given.clips)


if __name__ == "__main__":
    main()
