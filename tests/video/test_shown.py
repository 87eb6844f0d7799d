"""Which frames of a file are shown, and when: odd files, their right frames and times."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from kinds import CONTAINERS, LEFT_OUT_S, SOON, SPECIAL
from videos import numbers_in, write_video

from cogcache.settings.stage_one import Sampling
from cogcache.video.container import open_video
from cogcache.video.cutting import cut
from cogcache.video.decord_reader import decord_frames, unfit
from cogcache.video.frame_index import index_frames
from cogcache.video.pyav_reader import frames_from, pyav_frames
from cogcache.video.reading import measured, read_clip

ALL = {**CONTAINERS, **SPECIAL}
KINDS = [pytest.param(name, marks=() if name in SOON else pytest.mark.slow) for name in ALL]
OTHERWISE = {
    "interlaced.mp4": "decord gives the colours of both fields to each of them",
    "ten bits.mp4": "decord rounds ten bits to eight in another way",
}
"""Where the two decoders' frames are not the same bit for bit, and why; then nearly the same."""


def by_ffmpeg(path: Path, stream: int, pix_fmt: str) -> bytes:
    """Return all frames of a file, as they are coded."""
    command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", str(path), "-map", f"0:{stream}"]
    command += ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", pix_fmt, "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def stream_of(path: Path) -> int:
    with open_video(path) as video:
        return video.stream.index


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_are_bit_for_bit_those_that_ffmpeg_passes_through(name, tmp_path):
    path = tmp_path / name
    ALL[name](path)
    index = index_frames(path)
    found = [*frames_from(path, index, 0)]
    # What comes before the first key frame can be shown by nobody.
    first = int(index.packets.entry_numbers[0])
    assert [number for number, _ in found] == list(range(first, len(index.times_s)))
    ours = b"".join(frame.to_ndarray().tobytes() for _, frame in found)
    assert ours == by_ffmpeg(path, stream_of(path), found[0][1].format.name)


@pytest.mark.parametrize("name", KINDS)
def test_decord_gives_the_same_frames_where_it_may_read(name, tmp_path):
    pytest.importorskip("decord")
    path = tmp_path / name
    ALL[name](path)
    index = index_frames(path)
    numbers = range(len(index.times_s))
    if unfit(index) is not None:
        assert decord_frames(path, index, numbers) is None
        return
    frames, troubles = pyav_frames(path, index, numbers)
    theirs = decord_frames(path, index, numbers)
    assert theirs is not None
    assert troubles == []
    differ = np.abs(frames.astype(int) - theirs)
    assert differ.mean() < 2 if name in OTHERWISE else not differ.any()


@pytest.mark.parametrize("name", ["fields.ts", "fields.mkv", "fields.mp4"])
def test_two_fields_are_one_frame(name, tmp_path):
    path = tmp_path / name
    ALL[name](path)
    index = index_frames(path)
    np.testing.assert_allclose(index.times_s, np.arange(40) / 25, atol=1e-3)
    assert index.fps == pytest.approx(25, rel=0.01)
    clip = read_clip(path, Sampling(), 0.5, 1.5)
    assert clip.frame_indices.tolist() == numbers_in(clip.frames)
    assert index.change is not None


def test_frames_with_one_time_stamp_are_both_there(tmp_path):
    path = tmp_path / "twice.mkv"
    ALL["twice.mkv"](path)
    index = index_frames(path)
    assert len(index.times_s) == 40
    assert index.times_s[14] == index.times_s[15]
    clip = read_clip(path, Sampling(strategy="uniform", max_frames=40))
    assert numbers_in(clip.frames) == list(range(40))
    assert index.change is not None


@pytest.mark.parametrize("name", ["joined.ts", "joined.mkv"])
def test_films_that_were_joined_go_on_where_the_first_ends(name, tmp_path):
    path = tmp_path / name
    ALL[name](path)
    index = index_frames(path)
    np.testing.assert_allclose(index.times_s, np.arange(80) / 10, atol=1e-3)
    for number in (5, 39, 40, 77):
        frames, _ = pyav_frames(path, index, [number])
        assert numbers_in(frames) == [number % 40]


@pytest.mark.parametrize(
    ("name", "offset_s"), [("left out.avi", 0), ("left out b.avi", 0.2), ("h264.avi", 0)]
)
def test_frames_of_avi_begin_where_a_player_shows_them(name, offset_s, tmp_path):
    path = tmp_path / name
    ALL[name](path)
    index = index_frames(path)
    wanted = LEFT_OUT_S if name.startswith("left") else np.arange(40) / 10
    np.testing.assert_allclose(index.times_s, wanted, atol=1e-3)
    assert index.offset_s == pytest.approx(offset_s)
    assert (index.change is not None) == name.startswith("left")


def test_a_last_frame_is_in_the_clips_through_which_it_is_held(tmp_path):
    path = write_video(tmp_path / "held.mkv", times_s=[0.0, 0.1, 0.2, 60.0])
    clip = read_clip(path, Sampling(), 20.0, 30.0)
    assert clip.frame_indices.tolist() == [2]


def test_segments_are_of_shown_time_only():
    assert cut(30.0, 10.0, shown_s=[(0.0, 6.0)]) == [(0.0, 10.0)]
    assert cut(30.0, 10.0, shown_s=[(0.0, 30.0)]) == cut(30.0, 10.0)
    jump = cut(1e9 + 5, 10.0, shown_s=[(0.0, 25.0), (1e9, 1e9 + 5)])
    assert [start for start, _ in jump[:3]] == [0.0, 10.0, 20.0]
    assert len(jump) <= 5
    assert jump[-1][1] is None


def test_pixels_that_are_not_square_become_so(tmp_path):
    path = write_video(tmp_path / "wide.mkv", pixel_ratio="4/3")
    assert read_clip(path, Sampling()).frames.shape[1:3] == (48, 128)


def test_a_matrix_that_scales_does_not_scale(tmp_path):
    path = tmp_path / "scaled.mov"
    ALL["scaled.mov"](path)
    clip = read_clip(path, Sampling())
    assert clip.frames.shape[1:3] == (48, 96)
    assert numbers_in(clip.frames) == clip.frame_indices.tolist()


def test_pictures_that_begin_behind_the_sound_are_told_as_late(tmp_path):
    path = tmp_path / "late.mkv"
    ALL["late.mkv"](path)
    assert measured(path).offset_s == pytest.approx(1.5, abs=0.1)
