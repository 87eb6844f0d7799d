"""Checks whether memory grows with a video's length: 10 minutes and 3 hours, both stages.

    python -m benchmarks.long_videos [--minutes 10 --minutes 180]
    python -m benchmarks.long_videos --decoders [--minutes 10 --minutes 60]
    python -m benchmarks.long_videos --search FILM

The second tells what a clip of a film takes with decord, which reads on beyond it, and with PyAV.
The third tells what the search for scenes takes, beside decoding alone.

Each film has 25 small frames a second and a cut every 20 seconds. The peak of each kind of process
is the most that was seen of one of them, without what it has mapped from files.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from cogcache.settings.stage_one import Sampling
from cogcache.video import decord_reader
from cogcache.video.container import open_video
from cogcache.video.decord_reader import READ_AHEAD_BYTES
from cogcache.video.reading import read_clip
from cogcache.video.scenes import THRESHOLDS, Piece, extent_of, search

FPS = 25
SCENE_S = 20
NUM_SCENES = 6
GOP = 250
CLIP_S = 24
CLIPS = 15
MIB = 1024**2
ANY = 2**60
RUNS = {
    "extract --segment 60": ["extract", "FILM", "--segment", "60"],
    "extract --scenes": ["extract", "FILM", "--scenes"],
    "caption --summarize": ["caption", "--segment", "60", "--summarize"],
}
COMMON = ["--strategy", "spread", "--max-frames", "8", "--decode-workers", "1", "--min-free", "0"]


def write_film(path: Path, minutes: int, scale: int = 1) -> Path:
    """Write H.264 scenes of coarse random colours that move; return ``path``.

    Only a few scenes are encoded; hours of film repeat their packets, which takes seconds. The
    pictures have 160 x 120 pixels times ``scale``.
    """
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160 * scale, 120 * scale, "yuv420p"
        stream.gop_size, stream.thread_count, stream.max_b_frames = GOP, 1, 0
        stream.time_base = Fraction(1, FPS)
        packets = [*_moving_scenes(stream, scale), *stream.encode(None)]
        repeat_packets(stream, packets, minutes * 60 * FPS)
    return path


def repeat_packets(
    stream: av.VideoStream, packets: Sequence[av.Packet], num_frames: int, fps: int = FPS
) -> None:
    """Write a film of `num_frames` frames into a stream's container: the packets again and again.

    The first packet should be a key frame, and none may hold a B-frame.
    """
    kept = [(bytes(packet), packet.is_keyframe) for packet in packets if packet.size]
    for number in range(num_frames):
        data, is_key = kept[number % len(kept)]
        packet = av.Packet(data)
        packet.stream, packet.time_base, packet.duration = stream, Fraction(1, fps), 1
        packet.pts = packet.dts = number
        packet.is_keyframe = is_key
        stream.container.mux(packet)


def _moving_scenes(stream: av.VideoStream, scale: int) -> Iterator[av.Packet]:
    rng = np.random.default_rng(0)
    for number in range(NUM_SCENES * SCENE_S * FPS):
        if number % (SCENE_S * FPS) == 0:
            cells = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
            pixels = np.kron(cells, np.ones((8 * scale, 8 * scale, 1), np.uint8))
        shifted = np.ascontiguousarray(np.roll(pixels, scale * (number % 160), axis=1))
        frame = av.VideoFrame.from_ndarray(shifted, format="rgb24")
        frame.time_base, frame.pts = Fraction(1, FPS), number
        yield from stream.encode(frame)


def run(arguments: list[str]) -> tuple[dict[str, int], float, str]:
    """Run a command; return the peaks by kind of process in bytes, seconds, and its first line."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cogcache", *arguments], stdout=subprocess.PIPE, text=True
    )
    main, peaks = psutil.Process(process.pid), {"main": 0, "worker": 0}
    while process.poll() is None:
        for kind, each in [("main", main), *(("worker", one) for one in children(main))]:
            peaks[kind] = max(peaks[kind], anonymous_bytes(each))
        time.sleep(0.1)
    assert process.stdout is not None
    first = process.stdout.read().partition("\n")[0]
    return peaks, time.monotonic() - started, first


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes below one."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def anonymous_bytes(process: psutil.Process) -> int:
    """Return what a process alone holds in memory."""
    try:
        facts = process.memory_info()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0
    return int(facts.rss - facts.shared)


def search_cost(film: Path) -> str:
    """Return a line of a table: milliseconds a frame, the best of three."""
    extent, decoding, searching = extent_of(film), [], []
    for _ in range(3):
        started = time.process_time()
        with open_video(film) as video:
            count = sum(1 for _ in video.container.decode(video.stream))
            size = f"{video.stream.width} x {video.stream.height}"
        decoded = time.process_time()
        begins_s = search(Piece(film, 0, extent.num_frames, "adaptive", THRESHOLDS["adaptive"]))
        decoding.append((decoded - started) / count * 1e3)
        searching.append((time.process_time() - decoded) / count * 1e3)
    best = f"{min(decoding):.2f} ms | {min(searching):.2f} ms"
    return f"| {film.name} | {size} | {count} | {best} | {len(begins_s)} |"


@dataclass(frozen=True, slots=True)
class Held:
    """What a process took that did nothing but read clips of one film."""

    peak_mib: float
    """Beyond what it began with."""
    cpu_s: float
    """A clip."""
    read_mb: float
    """A clip, of the file."""


def held(minutes: int, scale: int = 1, read_ahead_bytes: int = READ_AHEAD_BYTES) -> Held:
    """Read clips all over a film; ``read_ahead_bytes`` stands in for the bound upon decord."""
    decord_reader.READ_AHEAD_BYTES = read_ahead_bytes
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder, "film.mp4")
        command = [sys.executable, __file__, "--write", film, str(minutes), str(scale)]
        subprocess.run(command, check=True)
        this, peak, over = psutil.Process(), [0], threading.Event()
        fresh = anonymous_bytes(this)

        def watch() -> None:
            while not over.wait(0.005):
                peak[0] = max(peak[0], anonymous_bytes(this))

        thread = threading.Thread(target=watch)
        thread.start()
        cpu_s, read_mb = read_clips(film, minutes)
        over.set()
        thread.join()
        return Held((peak[0] - fresh) / MIB, cpu_s, read_mb)


def read_clips(film: Path, minutes: int) -> tuple[float, float]:
    """Return seconds of the processor and megabytes read a clip, once the film has its index."""
    rule, this = Sampling(strategy="spread", max_frames=24), psutil.Process()
    read_clip(film, rule, 0.0, CLIP_S)
    began_s, began_bytes = time.process_time(), this.io_counters().read_chars
    for number in range(CLIPS):
        start_s = (number + 0.5) * (minutes * 60 - CLIP_S) / CLIPS
        read_clip(film, rule, start_s, start_s + CLIP_S)
    read_bytes = this.io_counters().read_chars - began_bytes
    return (time.process_time() - began_s) / CLIPS, read_bytes / CLIPS / 1e6


def held_by_process(*arguments: int) -> Held:
    """Return what `held` does in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(held, *arguments).result()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, action="append")
    parser.add_argument("--search", type=Path, action="append", metavar="FILM")
    parser.add_argument("--decoders", action="store_true")
    parser.add_argument("--write", nargs=3, metavar=("FILM", "MINUTES", "SCALE"))
    given = parser.parse_args()
    if given.write:
        write_film(Path(given.write[0]), int(given.write[1]), int(given.write[2]))
        return
    if given.decoders:
        decoders(given.minutes or [1, 10, 60])
        return
    if given.search:
        print("| film | size | frames | decoded alone, a frame | searched, a frame | cuts |")
        print("| --- | --- | --- | --- | --- | --- |")
        for film in given.search:
            print(search_cost(film))
        return
    memory(given.minutes or [10, 180])


def decoders(lengths: list[int]) -> None:
    """Print what clips of films of these lengths take with each decoder."""
    print("| pictures | film | decoder | processor, a clip | read, a clip | peak |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scale, minutes in itertools.product((1, 9), lengths):
        for decoder, bound in (("decord", ANY), ("PyAV", 1)):
            told = held_by_process(minutes, scale, bound)
            cost = f"{told.cpu_s:.3f} s | {told.read_mb:.1f} MB | {told.peak_mib:.0f} MiB"
            film = f"{160 * scale} x {120 * scale} | {minutes} min"
            print(f"| {film} | {decoder} | {cost} |", flush=True)


def memory(lengths: list[int]) -> None:
    """Print the peaks of all commands on films of these lengths."""
    print("| film | command | main process | decode worker | seconds | said |")
    print("| --- | --- | --- | --- | --- | --- |")
    for minutes in lengths:
        with tempfile.TemporaryDirectory() as folder:
            film, cache = Path(folder, "film.mp4"), f"--cache={folder}/cache"
            write_film(film, minutes)
            for name, arguments in RUNS.items():
                given = [str(film) if each == "FILM" else each for each in arguments]
                extra = ["--max-new-tokens", "24", "--no-retry"] if "caption" in given else []
                workers = COMMON
                peaks, seconds, said = run([*given, cache, *workers, *extra])
                shown = " | ".join(f"{peaks[kind] / MIB:.0f} MiB" for kind in ("main", "worker"))
                print(f"| {minutes} min | {name} | {shown} | {seconds:.0f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
