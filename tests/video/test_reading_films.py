"""A clip costs what it holds, however long its film is, and shows that film as it is now."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from scenes import settings
from videos import numbers_in, write_video

from benchmarks.long_videos import write_film
from cogcache.video.decord_reader import decord_frames
from cogcache.video.frame_index import index_frames
from cogcache.video.reading import ClipFrames, probe, read_clip

SPREAD = settings(strategy="spread", max_frames=6).sampling
MINUTES = 120
KINDS = {
    "b frames.mp4": {"max_b_frames": 3},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "plain.avi": {"codec": "mpeg4"},
    "plain.flv": {},
}
needs_proc = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="looks into /proc")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", MINUTES)


def open_files(path: Path) -> int:
    """Return how often this process has a file open."""
    found = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(each.exists() and each.samefile(path) for each in found)


def read_bytes() -> int:
    return int(psutil.Process().io_counters().read_chars)


def minute(film: Path, number: int, **how: str) -> ClipFrames:
    return read_clip(film, SPREAD, number * 60.0, number * 60.0 + 24.0, **how)


@pytest.mark.parametrize("name", KINDS)
def test_clips_in_any_order_show_the_frames_asked_for(name, tmp_path):
    path = write_video(tmp_path / name, num_frames=120, size=(96, 64), **KINDS[name])
    index, rng = index_frames(path), random.Random(0)
    for first in rng.sample(range(120), 12):
        span = range(first, min(first + rng.choice((1, 4, 30)), 120), rng.choice((1, 2)))
        frames = decord_frames(path, index, span)
        assert frames is not None
        assert numbers_in(frames) == list(span)


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx265", {"x265-params": "log-level=error:open-gop=1:bframes=4"}), ("mpeg4", {"bf": "2"})],
)
def test_groups_of_pictures_that_lean_on_the_one_before_are_shown_to_the_frame(
    codec, options, tmp_path
):
    path = write_video(tmp_path / "a.mp4", num_frames=120, codec=codec, gop=24, options=options)
    index = index_frames(path)
    for first in range(3, 112, 9):
        chosen = read_clip(path, SPREAD, index.times_s[first], index.times_s[first + 4])
        assert numbers_in(chosen.frames) == chosen.frame_indices.tolist()


@needs_proc
def test_a_clip_of_a_long_film_is_read_alone_and_not_what_comes_after_it(film):
    index_frames(film)
    before = read_bytes()
    clip = minute(film, 1)
    # The head lists all frames; of the rest, the group of pictures before the clip is read too.
    assert read_bytes() - before < 2 * film.stat().st_size * 60 / (MINUTES * 60) + 4 * 2**20
    assert clip.decoder == "pyav"


def test_a_long_film_shows_the_frames_that_decord_shows(film, monkeypatch):
    clips = [minute(film, number) for number in (0, 60, 119)]
    monkeypatch.setattr("cogcache.video.decord_reader.READ_AHEAD_BYTES", 2**50)
    for number, clip in zip((0, 60, 119), clips, strict=True):
        again = minute(film, number, decoder="decord")
        assert (clip.decoder, again.decoder) == ("pyav", "decord")
        assert np.array_equal(clip.frames, again.frames)
        assert np.array_equal(clip.timestamps_s, again.timestamps_s)


@needs_proc
def test_no_film_stays_open_between_clips(film, tmp_path):
    short = write_video(tmp_path / "short.mp4")
    clips = minute(film, 0), read_clip(short, SPREAD, decoder="decord")
    assert [clip.decoder for clip in clips] == ["pyav", "decord"]
    assert (open_files(film), open_files(short)) == (0, 0)


def test_a_film_that_is_replaced_or_grows_is_read_anew(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=20)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 19
    longer = write_video(tmp_path / "b.mp4", num_frames=50)
    shutil.copyfile(longer, path)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 49
    assert probe(path).total_num_frames == 50
    write_video(tmp_path / "c.mp4", num_frames=30).replace(path)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 29
    assert probe(path).total_num_frames == 30
