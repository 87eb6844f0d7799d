"""Measures how well decoding and encoding overlap: decoders on one core, encoder on the other.

Each figure is of the clips that a longer run has more than a shorter one, so that what a run takes
once (starting the decode worker, loading) is not in it. The vision half has as many layers as make
encoding take about as long as decoding.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.small import SIZES, Bench, write_copy
from benchmarks.timing import Line
from cogcache.catalog.catalog import Catalog
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.settings.settings import Settings
from cogcache.stages.clips.worklist import Clip, Wanted
from cogcache.stages.encoding.clip_encoder import seal_clip
from cogcache.stages.encoding.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore

SHORT, LONG = 4, 16
"""Clips of the two runs; they share none."""
ALIKE_LAYERS = 1


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock on the wall, and of the processor, child processes included."""

    wall_s: float
    processor_s: float

    def __sub__(self, other: Taken) -> Taken:
        return Taken(self.wall_s - other.wall_s, self.processor_s - other.processor_s)

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall_s + other.wall_s, self.processor_s + other.processor_s)

    def __mul__(self, factor: float) -> Taken:
        return Taken(self.wall_s * factor, self.processor_s * factor)


def now() -> Taken:
    """Return what has been taken so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Taken(time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used))


def overlap(bench: Bench) -> Iterator[Line]:
    """Extract against the slower of its parts alone, their sum, and their processor seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _lines(bench)
    finally:
        torch.set_num_threads(before)


def _lines(bench: Bench) -> Iterator[Line]:
    own = Bench(
        bench.folder / "overlap", bench.repeats, 2, replace(SIZES, vision_layers=ALIKE_LAYERS)
    )
    own.folder.mkdir(exist_ok=True)
    videos = _videos(own, SHORT + LONG)
    settings = own.settings(decode_workers=1)
    whole, slower, summed, processor = [], [], [], []
    parts = _Parts(own, settings, videos[: LONG - SHORT])
    for _ in range(bench.repeats):
        made = _extracted(videos[SHORT:], settings) - _extracted(videos[:SHORT], settings)
        decoded, encoded, sealed = parts.run()
        whole.append(made)
        slower.append(max(decoded.wall_s, encoded.wall_s))
        summed.append(decoded + encoded + sealed)
    walls = [each.wall_s for each in whole]
    name = f"extract, {LONG - SHORT} clips: the slower of decoding and encoding alone, extract"
    yield Line(name, slower, walls, "≤ 1.15")
    name = "extract, against decoding, encoding and sealing one after the other"
    yield Line(name, walls, [each.wall_s for each in summed], "≥ 1.5")
    processor = [each.processor_s for each in whole]
    name = "processor seconds: of the parts alone, of extract"
    yield Line(name, [each.processor_s for each in summed], processor, "≤ 1.10")
    name = f"the parts alike? sealing {sealed.processor_s:.2f}; decoding, encoding"
    yield Line(name, [decoded.processor_s], [encoded.processor_s], "")


def _videos(bench: Bench, count: int) -> list[Path]:
    paths = [bench.folder / f"copy-{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_copy(bench.videos[number % 2], path, number)
    return paths


def _extracted(videos: Sequence[Path], settings: Settings) -> Taken:
    folder = Path(tempfile.mkdtemp())
    started = now()
    counts = extract(videos, folder / "cache", settings).counts
    taken = now() - started
    assert counts.done == len(videos), counts
    shutil.rmtree(folder)
    return taken


class _Parts:
    """The parts of extract, one after the other in this process."""

    def __init__(self, bench: Bench, settings: Settings, videos: Sequence[Path]) -> None:
        self.settings, self.videos = settings, videos
        self.family = family_of(Checkpoint.open(settings.model))
        whole = WholeModel.of(self.family.checkpoint)
        self.model = load_half(whole, "vision", dtype=torch.bfloat16).model
        with Catalog(bench.folder / "parts.sqlite") as catalog:
            wanted = Wanted(settings, self.family, identify(self.family, "vision", catalog.files))
        keys = [wanted.key(f"{number:064x}", (0.0, None)) for number in range(len(videos))]
        self.clips = [Clip(video, key) for video, key in zip(videos, keys, strict=True)]
        start_worker(settings.model, None, settings.vision.vision_dtype)

    def run(self) -> tuple[Taken, Taken, Taken]:
        """Return what decoding, encoding and sealing of all clips take."""
        started = now()
        sources = [ClipSource(video, 0.0, None, self.settings.sampling) for video in self.videos]
        prepared = [prepare(source) for source in sources]
        decoded = now()
        features = []
        for first in range(0, len(prepared), 2):  # frames_per_batch is that of two clips
            batch = [each.tensors() for each in prepared[first : first + 2]]
            features += self.family.encode(self.model, batch, self.settings.vision.frames_per_batch)
        encoded = now()
        self._seal(prepared, features)
        return decoded - started, encoded - decoded, now() - encoded

    def _seal(self, prepared: Sequence[PreparedClip], features: Sequence) -> None:
        folder = Path(tempfile.mkdtemp())
        store = FeatureStore.create_or_open(folder / "cache")
        for clip, ready, made in zip(self.clips, prepared, features, strict=True):
            seal_clip(clip, ready, made, store, self.settings)
        shutil.rmtree(folder)
