"""Measures reading 24 frames of a 24 s clip with PyAV and decord, for sizes and codecs.

    python -m benchmarks.reading --folder FILMS --write
    python -m benchmarks.reading --folder FILMS [--size 360 ...] [--repeats 3]

The first writes the clips: part of a real film, scaled. The second reads each `--repeats` times,
in a process of its own, in which the decoder has read something else before, so that nothing is
counted but the reading. Printed are medians: seconds of the processor (all threads), bytes that
were read, and what the process came to hold beyond what it held before. Both decoders go through
`read_clip`, which looks at all packets first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av

from benchmarks.long_videos import repeat_packets
from cogcache.errors import VideoError
from cogcache.settings.stage_one import Sampling
from cogcache.video import decord_reader
from cogcache.video.frame_index import index_frames
from cogcache.video.reading import Decoder, read_clip

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from videos import OPTIONS, real_videos, same_scheduling, write_video

FPS = 25
CLIP_S = 24
SIZES = {360: (640, 360), 720: (1280, 720), 1080: (1920, 1080), 2160: (3840, 2160)}
CODECS = {"H.264": "libx264", "HEVC": "libx265", "VP9": "libvpx-vp9", "AV1": "libsvtav1"}
DECODERS: tuple[Decoder, ...] = ("pyav", "decord")
QUALITY = {"libx264": "23", "libx265": "26", "libvpx-vp9": "32", "libsvtav1": "35"}
MIB = 1024**2
MOST_BYTES = 10 * 1024**3
"""That a process may ask for: decord may come to hold all pictures of a film."""
ANY = 2**60


@dataclass(frozen=True)
class Taken:
    """What one reading took."""

    processor_s: float
    read_bytes: int
    peak_bytes: int


def write_clip(path: Path, codec: str, size: tuple[int, int]) -> None:
    """Write 24 s of a film: some seconds are encoded, and their packets repeated."""
    film = next(each for each in real_videos() if each.name == "bigbuckbunny.mp4")
    options = {**OPTIONS[codec], "crf": QUALITY[codec]}
    with same_scheduling(), av.open(film) as source, av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.max_b_frames, stream.thread_count = 0, 2
        packets = []
        for number, frame in enumerate(source.decode(video=0)):
            scaled = frame.reformat(*size, "yuv420p")
            scaled.pts, scaled.time_base = number, Fraction(1, FPS)
            scaled.pict_type = 0
            packets += stream.encode(scaled)
        packets += stream.encode(None)
        repeat_packets(stream, packets, CLIP_S * FPS, FPS)


def read_once(path: Path, decoder: Decoder, folder: Path) -> Taken:
    """Read the clip in this process, after something else has been read.

    Raises:
        VideoError: the decoder cannot read it.
    """
    read_clip(_other(folder), Sampling(), decoder=decoder)
    before = _memory("VmRSS"), _read_bytes(), _processor_s()
    Path("/proc/self/clear_refs").write_text("5")
    clip = read_clip(path, Sampling(), decoder=decoder)
    took = Taken(
        _processor_s() - before[2], _read_bytes() - before[1], _memory("VmHWM") - before[0]
    )
    assert (len(clip.frames), clip.decoder) == (CLIP_S, decoder)
    return took


def _other(folder: Path) -> Path:
    path = folder / "other.mp4"
    return path if path.exists() else write_video(path)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(path: Path, decoder: Decoder, repeats: int, folder: Path) -> Taken | str:
    """Return the medians over processes that read the clip, or why it cannot be read."""
    taken: list[Taken] = []
    command = [sys.executable, "-m", "benchmarks.reading", "--folder", str(folder)]
    for _ in range(repeats):
        done = subprocess.run(
            [*command, "--once", str(path), decoder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stdout or done.stderr or f"status {done.returncode}").splitlines()[-1]
        taken.append(Taken(**json.loads(done.stdout)))
    names = asdict(taken[0])
    return Taken(**{name: statistics.median(getattr(t, name) for t in taken) for name in names})


def _once(path: Path, decoder: Decoder, folder: Path) -> None:
    """Print what one reading took; the status is 1 and the text says why, where there is none."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    decord_reader.READ_AHEAD_BYTES = ANY
    try:
        print(json.dumps(asdict(read_once(path, decoder, folder))))
    except VideoError as error:
        sys.exit(print(decord_reader.misread(index_frames(path)) or error.problem) or 1)
    except MemoryError:
        sys.exit(print(f"more than {MOST_BYTES // MIB} MiB asked for") or 1)


def _line(name: str, decoder: str, taken: Taken | str) -> str:
    if isinstance(taken, str):
        return f"| {name} | {decoder} | {taken} | | |"
    read, peak = taken.read_bytes / 1e6, taken.peak_bytes / MIB
    return f"| {name} | {decoder} | {taken.processor_s:.2f} s | {read:.1f} MB | {peak:.0f} MiB |"


def main() -> None:
    """Write clips, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--size", type=int, action="append", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", nargs=2, metavar=("FILE", "DECODER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        _once(Path(asked.once[0]), asked.once[1], asked.folder)
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.write:
        print("| clip | decoder | processor | bytes read | memory |\n|---|---|---|---|---|")
    for side in asked.size or SIZES:
        for name, codec in CODECS.items():
            path = asked.folder / f"{side}-{codec}.mp4"
            if asked.write and not path.exists():
                write_clip(path, codec, SIZES[side])
                print(path.name, f"{path.stat().st_size / 1e6:.1f} MB", flush=True)
            for decoder in () if asked.write else DECODERS:
                taken = measure(path, decoder, asked.repeats, asked.folder)
                label = "{} x {}, {}".format(*SIZES[side], name)
                print(_line(label, decoder, taken), flush=True)


if __name__ == "__main__":
    main()
