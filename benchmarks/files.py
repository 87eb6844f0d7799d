"""Measures feature files: time to write and read, size, and every codec on real features."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import torch
from h5py import h5d, h5p, h5s, h5z

from benchmarks.small import SCENE_FRAMES, Bench
from benchmarks.timing import Line, in_turn, timed
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors, Family
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import draw_scene, render
from cogcache.store.format import TYPES, Bits, block_rows
from cogcache.store.store import FeatureStore
from cogcache.units import MIB
from cogcache.video.reading import read_clip

FEWEST_BYTES = 4 * MIB
"""Features of as many clips are put behind one another that there is something to time."""
SHUFFLE, BITS = hdf5plugin.Blosc2.SHUFFLE, hdf5plugin.Blosc2.BITSHUFFLE
CODECS: dict[str, tuple[bool, Any]] = {
    "none": (False, None),
    "gzip 1, byte shuffle": (True, "gzip"),
    "zstd 1": (False, hdf5plugin.Zstd(clevel=1)),
    "zstd 1, byte shuffle": (True, hdf5plugin.Zstd(clevel=1)),
    "zstd 3, byte shuffle": (True, hdf5plugin.Zstd(clevel=3)),
    "zstd 9, byte shuffle": (True, hdf5plugin.Zstd(clevel=9)),
    "bit shuffle, lz4": (False, hdf5plugin.Bitshuffle(cname="lz4")),
    "bit shuffle, zstd 1": (False, hdf5plugin.Bitshuffle(cname="zstd", clevel=1)),
    "blosc2 lz4 1, byte shuffle": (
        False, hdf5plugin.Blosc2(cname="lz4", clevel=1, filters=SHUFFLE),
    ),
    "blosc2 zstd 1, byte shuffle": (
        False, hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=SHUFFLE),
    ),
    "blosc2 zstd 1, bit shuffle": (
        False, hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=BITS),
    ),
    "blosc2 zstd 5, byte shuffle": (
        False, hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=SHUFFLE),
    ),
}  # fmt: skip
"""Whether HDF5's own byte shuffle comes first, and the filter."""


def sealing(bench: Bench) -> Iterator[Line]:
    """Sealing and reading a feature file, against numpy's save with fsync, and load."""
    tensors = {"features": torch.randn(24, 66, 4096).bfloat16()}
    plain = tensors["features"].view(torch.uint16).numpy()
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    store, number = FeatureStore.create_or_open(folder / "cache"), count()
    store.write("f" * 64, tensors, {"texts": {}}, compression="none")
    np.save(folder / "read.npy", plain)

    def save() -> None:
        with (folder / f"{next(number)}.npy").open("xb") as file:
            np.save(file, plain)
            file.flush()
            os.fsync(file.fileno())

    def seal() -> None:
        store.write(f"{next(number):064x}", tensors, {"texts": {}}, compression="none")

    def load() -> None:
        np.load(folder / "read.npy").sum()

    def read() -> None:
        store.read("f" * 64).tensors["features"].view(torch.uint16).numpy().sum()

    seal()
    repeats = 3 * bench.repeats
    theirs, ours = in_turn(repeats, save, seal, time.perf_counter)
    yield Line("sealing 13 MB: speed against numpy.save and fsync", ours, theirs, "≥ 0.6")
    read()
    theirs, ours = in_turn(repeats, load, read, time.perf_counter)
    yield Line("reading 13 MB: speed against numpy.load; both summed up", ours, theirs, "≥ 0.5")


def size(bench: Bench) -> Iterator[Line]:
    """Bytes of features as they are sealed by default, against raw bf16 of projected ones."""
    for model in (bench.model, "tiny"):
        for point, bar in (("projected", "≤ 0.75"), ("pooled", "≤ 0.33")):
            projected, bits = (_features(bench, model, each).array for each in ("projected", point))
            raw = projected.nbytes / len(projected) * len(bits)
            stored = len(_image(Bits("bfloat16", bits), *CODECS["zstd 1, byte shuffle"]))
            name = f"bytes of features against raw projected: {Path(model).name}, {point}"
            yield Line(name, [raw / 1e6], [stored / 1e6], bar, "MB")


def codecs(bench: Bench) -> Iterator[Line]:
    """Every codec on the features of every model at hand, timed on one thread."""
    for model in (bench.model, "tiny"):
        for point in ("projected", "pooled"):
            bits = _features(bench, model, point)
            for name, codec in CODECS.items():
                yield _coded(bench, bits, f"{Path(model).name} {point}: {name}", codec)


def _coded(bench: Bench, bits: Bits, name: str, codec: tuple[bool, Any]) -> Line:
    megabytes = bits.array.nbytes / 1e6
    image = _image(bits, *codec)
    writing = median(timed(lambda: _image(bits, *codec)) for _ in range(bench.repeats))
    reading = median(timed(lambda: _read(image)) for _ in range(bench.repeats))
    speeds = f"written at {megabytes / writing:.0f}, read at {megabytes / reading:.0f} MB/s"
    return Line(f"{name}, {speeds}", [megabytes], [len(image) / 1e6], "", "MB")


def _image(bits: Bits, shuffle: bool, codec: Any) -> bytes:
    """Return an HDF5 file with one tensor, in blocks as feature files have them."""
    shape, kind = bits.array.shape, TYPES[bits.dtype]
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        how = h5p.create(h5p.DATASET_CREATE)
        how.set_fill_time(h5d.FILL_TIME_NEVER)
        if codec is not None:
            how.set_chunk((min(block_rows(shape, bits.array.itemsize), shape[0]), *shape[1:]))
            if shuffle:
                how.set_shuffle()
            if codec == "gzip":
                how.set_deflate(1)
            else:
                options = codec["compression_opts"]
                how.set_filter(codec["compression"], h5z.FLAG_MANDATORY, options)
        made = h5d.create(file.id, b"features", kind, h5s.create_simple(shape), how)
        made.write(h5s.ALL, h5s.ALL, bits.array, mtype=kind)
        file.flush()
        return file.id.get_file_image()


def _read(image: bytes) -> None:
    with h5py.File.in_memory(image) as file:
        dataset = file["features"].id
        into = np.empty(dataset.shape, np.int16)
        dataset.read(h5s.ALL, h5s.ALL, into, mtype=dataset.get_type())


def _features(bench: Bench, model: str, point: str) -> Bits:
    """Return the bf16 features of video frames, of as many clips as there have to be."""
    family = family_of(Checkpoint.open(model)).at(point)
    whole = WholeModel.of(family.checkpoint, **family.partition_settings())
    vision = load_half(whole, "vision", dtype=torch.bfloat16).model
    make = _scene if model == "tiny" else _frames_of(bench)
    parts: list[torch.Tensor] = []
    while sum(part.nbytes for part in parts) < FEWEST_BYTES:
        clip = make(family, len(parts))
        [encoded] = family.encode(vision, [clip], 48)
        parts.append(encoded.tensors["features"])
    return Bits.of("features", torch.cat(parts))


def _scene(family: Family, seed: int) -> ClipTensors:
    """Return the frames of a clip such as `tiny` was trained on, one a second."""
    from cogcache.models.cogvlm2.preprocessing import preprocess

    scene = draw_scene(np.random.default_rng(seed), SCENE_FRAMES)
    frames = render([scene], [float(second) for second in range(6)], 96)[0]
    pixels = preprocess(torch.from_numpy(np.ascontiguousarray(frames)), family.image_size)
    return ClipTensors({"pixel_values_videos": pixels.bfloat16()})


def _frames_of(bench: Bench) -> Callable[[Family, int], ClipTensors]:
    def make(family: Family, number: int) -> ClipTensors:
        video = bench.videos[number % len(bench.videos)]
        start_s = float(number // len(bench.videos) % 24) / 24
        clip = read_clip(video, bench.settings().sampling, start_s, None)
        return family.prepare(clip, torch.bfloat16)

    return make
