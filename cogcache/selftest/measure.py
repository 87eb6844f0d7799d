"""Measures the time of one clip on this machine, with two made-up clips through both stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from cogcache.catalog import Catalog
from cogcache.settings import Settings
from cogcache.stages import ClipSource, prepare, start_worker
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.system import CachePaths, in_own_process, scratch_folder

NUM_CLIPS: Final = 2
_FPS: Final = 10
_WORK: Final = {"extract": ("encode",), "caption": ("wait_for_features", "generate")}
"""The parts of a run that repeat for every clip; loading the model is not one of them."""


def measure(settings: Settings, size: tuple[int, int], duration_s: float) -> dict[str, float]:
    """Run both stages on made-up clips and return the seconds that one clip takes, by stage.

    Args:
        settings: model, sampling and precisions; the model's weights are loaded.
        size: width and height of the clips.
        duration_s: of each.

    Raises:
        CogcacheError: a stage could not do its work.
    """
    with scratch_folder() as folder:
        clips = folder / "clips"
        clips.mkdir()
        for number in range(NUM_CLIPS):
            write_moving_noise(clips / f"{number}.mp4", size, duration_s, seed=number)
        cache = folder / "cache"
        job = clips, cache, settings
        decode_s = in_own_process(_decode, job)
        for stage in (_extract, _caption):
            in_own_process(stage, job)
        with Catalog(CachePaths(cache).catalog) as catalog:
            rows: dict[str, Any] = {row["command"]: row["split"] for row in catalog.runs.rows()}
    seconds = {
        stage: sum(float(rows[stage].get(part, 0.0)) for part in parts) / NUM_CLIPS
        for stage, parts in _WORK.items()
    }
    # Clips are decoded while others are encoded: the slower of the two counts.
    decode_s /= settings.vision.decode_workers
    return seconds | {"extract": max(seconds["extract"], decode_s)}


def _decode(job: tuple[Path, Path, Settings]) -> float:
    """Return the seconds that a decode worker takes for a clip that is not its first."""
    clips, _, settings = job
    start_worker(settings.model, settings.revision, settings.vision.vision_dtype)
    for video in sorted(clips.iterdir()):
        began_s = time.perf_counter()
        prepare(ClipSource(video, 0.0, None, settings.sampling))
    return time.perf_counter() - began_s


def _extract(job: tuple[Path, Path, Settings]) -> None:
    clips, cache, settings = job
    extract([clips], cache, settings)


def _caption(job: tuple[Path, Path, Settings]) -> None:
    _, cache, settings = job
    caption(cache, settings)


def write_moving_noise(path: Path, size: tuple[int, int], duration_s: float, seed: int) -> None:
    """Write an H.264 video of a picture that moves to the right, at ten frames a second."""
    width, height = (side + side % 2 for side in size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, _FPS)
        for picture in _pictures(width, height, max(1, round(duration_s * _FPS)), seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _pictures(width: int, height: int, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    picture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width].astype(np.uint8)
    for index in range(count):
        yield np.ascontiguousarray(np.roll(picture, 4 * index, axis=1))
