"""An exported clip shows what was captioned: read, exported, and read again by three readers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from kinds import CONTAINERS, SOON, SPECIAL
from numpy.typing import NDArray
from videos import write_video

from cogcache.export.clip_encoder import encode, part_of
from cogcache.export.clip_files import reason_to_encode
from cogcache.export.trainer_folders import DECORD
from cogcache.settings.stage_one import Sampling
from cogcache.video.frame_index import index_frames
from cogcache.video.reading import read_clip

ALL = {**CONTAINERS, **SPECIAL}
SPAN = (1.0, 2.6)
KINDS = [pytest.param(name, marks=() if name in SOON else pytest.mark.slow) for name in ALL]
COPIED = {"h264.mp4", "hevc.mp4", "vp9.mp4", "mpeg4.mp4", "b frames.mp4", "709.mp4"}
COPIED |= {"ten bits.mp4", "odd size.mp4"}
BOUND = 3
"""Of the mean difference of a frame, of 255."""
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


@pytest.mark.parametrize("name", KINDS)
def test_three_readers_see_in_a_clip_the_frames_that_were_captioned(name, tmp_path):
    source, made = tmp_path / name, tmp_path / "clip.mp4"
    ALL[name](source)
    wanted = captioned(source, *SPAN)
    done = encode(part_of(source, *SPAN), made, sound=True)
    height, width = (side // 2 * 2 for side in wanted.shape[1:3])
    assert (done.num_frames, done.width, done.height) == (len(wanted), width, height)
    for reader, read in READERS.items():
        frames = read(made)
        assert frames.shape == (len(wanted), height, width, 3), reader
        differ = np.abs(frames.astype(int) - wanted[:, :height, :width]).mean((1, 2, 3))
        assert differ.max() < BOUND, (reader, differ.round(1).tolist())


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_video_is_copied_only_where_readers_show_it_as_it_was_captioned(name, tmp_path):
    source = tmp_path / name
    ALL[name](source)
    reason = reason_to_encode(index_frames(source), DECORD)
    assert (reason is None) == (name in COPIED), reason
    if reason is None:
        wanted = captioned(source, 0.0, None)
        for reader, read in READERS.items():
            frames = read(source)
            assert frames.shape == wanted.shape, reader
            assert np.abs(frames.astype(int) - wanted).mean((1, 2, 3)).max() < BOUND, reader


def test_the_times_of_an_exported_clip_are_those_of_its_frames(tmp_path):
    source, made = tmp_path / "variable.mkv", tmp_path / "clip.mp4"
    ALL["variable.mkv"](source)
    part = part_of(source, *SPAN)
    encode(part, made, sound=True)
    np.testing.assert_allclose(index_frames(made).times_s, part.times_s, atol=2e-3)


def test_an_exported_clip_keeps_the_sound_of_its_time(tmp_path):
    source, made = tmp_path / "sound.mkv", tmp_path / "clip.mp4"
    ALL["sound.mkv"](source)
    encode(part_of(source, *SPAN), made, sound=True)
    with av.open(made) as container:
        seconds = sum(each.samples / each.sample_rate for each in container.decode(audio=0))
    assert seconds == pytest.approx(SPAN[1] - SPAN[0], abs=0.15)
    encode(part_of(source, *SPAN), made, sound=False)
    with av.open(made) as container:
        assert not container.streams.audio


def test_a_last_frame_that_is_held_is_exported_as_long_as_its_clip_shows_it(tmp_path):
    source, made = tmp_path / "a.mp4", tmp_path / "clip.mp4"
    write_video(source, times_s=[0.0, 0.1, 0.2, 9.0])
    encode(part_of(source, 2.0, 5.0), made, sound=True)
    index = index_frames(made)
    assert len(index.times_s) == 1
    assert index.duration_s == pytest.approx(3.0, abs=0.05)
