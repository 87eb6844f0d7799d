"""Every frame of a file, by the readers of trainers, and as it is captioned."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cogcache.export.clip_encoder import encode, part_of
from cogcache.settings.stage_one import Sampling
from cogcache.video.reading import read_clip

Frames = NDArray[np.uint8]


def by_decord(path: Path) -> Frames:
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(path))
    return reader.get_batch(range(len(reader))).asnumpy()  # type: ignore[no-any-return]


def by_opencv(path: Path) -> Frames:
    cv2 = pytest.importorskip("cv2")
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames)


def by_pyav(path: Path) -> Frames:
    with av.open(path) as container:
        return np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])


READERS = {"decord": by_decord, "OpenCV": by_opencv, "PyAV": by_pyav}


def captioned(path: Path, start_s: float, end_s: float | None) -> Frames:
    """Return every frame of a clip, as it is captioned."""
    part = part_of(path, start_s, end_s)
    every = Sampling(strategy="uniform", max_frames=part.stop - part.first, window_s=1000)
    clip = read_clip(path, every, start_s, end_s)
    assert clip.frame_indices.tolist() == list(range(part.first, part.stop))
    return clip.frames


def differences(source: Path, made: Path, start_s: float, end_s: float | None) -> dict[str, float]:
    """Export a clip to ``made``, and return by reader the largest mean difference of a frame.

    Raises:
        AssertionError: there are other frames than those captioned, or of another size.
    """
    wanted = captioned(source, start_s, end_s)
    done = encode(part_of(source, start_s, end_s), made, sound=True)
    height, width = (side // 2 * 2 for side in wanted.shape[1:3])
    assert (done.num_frames, done.width, done.height) == (len(wanted), width, height)
    found = {}
    for reader, read in READERS.items():
        frames = read(made)
        assert frames.shape == (len(wanted), height, width, 3), reader
        differ = np.abs(frames.astype(int) - wanted[:, :height, :width]).mean((1, 2, 3))
        found[reader] = float(differ.max())
    return found
